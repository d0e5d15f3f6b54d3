"""Documents with one value replaced by something that nobody expects there, and what a reader may do with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from sol_rt.errors import SolError

LONG = "A" * 5000
POISONS: tuple[Any, ...] = (
    LONG, "", "é\u2028\n", 10**60, -(10**60), 2**31, 2**63, -1, 0, 3, 1e308, 5e-324, None, True, [], {}, [LONG],
    {LONG: LONG},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a document; of long lists and tables, only to the first few."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (key, item) in enumerate(items):
        if number < 30:
            yield from places(item, (*path, key))


def poisoned(document: Any) -> Iterator[tuple[str, Any]]:
    """Every place with every poison, without the key, and with an unknown one: (what was done, document)."""
    for path in places(document):
        for poison in POISONS:
            yield f"{path} = {poison!r:.20}", changed(document, path, poison)
        if isinstance(path[-1], str):
            yield f"{path} gone", changed(document, path, None, remove=True)
    if isinstance(document, dict):
        yield "a long key", {**document, LONG: 1}


def changed(document: Any, path: tuple[Any, ...], value: Any, *, remove: bool = False) -> Any:
    made = copy.deepcopy(document)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = copy.deepcopy(value)
    return made


def texts(document: Any) -> Iterator[tuple[str, str]]:
    """The document as JSON text with a poison, and JSON texts that no document gives."""
    for what, made in poisoned(document):
        yield what, json.dumps(made)
    whole = json.dumps(document)
    others = {
        "NaN": whole.replace("1", "NaN", 1),
        "empty": "",
        "half": whole[: len(whole) // 2],
        "deep": "[" * 100_000,
        "digits": "9" * 6000,
        "a list": "[]",
        "null": "null",
        "twice": whole + whole,
        "NUL": whole + "\0{}",
        "mark": "\ufeff" + whole,
        "long": f'"{LONG}"',
    }
    yield from others.items()


def refusals(read: Callable[[Any], object], inputs: Iterator[tuple[str, Any]]) -> tuple[int, list[str]]:
    """Gives every input to a reader. Returns how many it refused, and what it did wrong.

    Right is to take an input, or to raise a SolError of one line that repeats at most 200 characters of it.
    """
    refused, wrong = 0, []
    for what, value in inputs:
        try:
            read(value)
        except SolError as error:
            refused += 1
            if "\n" in str(error) or LONG[:201] in str(error) or len(str(error)) > 1000:
                wrong.append(f"{what}: {str(error)[:300]!r}")
        except BaseException as error:
            wrong.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    return refused, wrong
