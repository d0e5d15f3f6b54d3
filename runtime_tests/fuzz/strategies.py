"""Inputs as hypothesis draws them: a file that a reader takes, with some values or bytes changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from fuzz.mutate import TOKENS, VALUES
from helpers.poison import places

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**70), 10**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(VALUES)
)
_DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def inputs(kind: str, seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Inputs of a kind, each made out of a seed."""
    if kind == "json":
        return st.sampled_from(list(seeds)).flatmap(_changed_json)
    if kind == "lines":
        return st.sampled_from(list(seeds)).flatmap(_changed_lines)
    return st.sampled_from(list(seeds)).flatmap(_changed_bytes)


def _changed_json(seed: bytes) -> st.SearchStrategy[bytes]:
    document = json.loads(seed)
    place = st.sampled_from(list(places(document)))
    changes = st.lists(st.tuples(place, st.just(None) | st.tuples(_DOCUMENTS)), min_size=1, max_size=3)
    return changes.map(lambda made: _with_changes(document, made))


def _with_changes(document: Any, changes: list[tuple[tuple[Any, ...], tuple[Any] | None]]) -> bytes:
    made = copy.deepcopy(document)
    for path, value in changes:
        inner = made
        try:
            for key in path[:-1]:
                inner = inner[key]
            if value is None:
                del inner[path[-1]]
            else:
                inner[path[-1]] = copy.deepcopy(value[0])
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    return json.dumps(made).encode("utf-8", "surrogatepass")


def _changed_lines(seed: bytes) -> st.SearchStrategy[bytes]:
    lines = seed.rstrip(b"\n").split(b"\n")

    def with_line(at: int) -> st.SearchStrategy[bytes]:
        return _changed_json(lines[at]).map(lambda line: b"\n".join([*lines[:at], line, *lines[at + 1 :]]) + b"\n")

    return st.integers(0, len(lines) - 1).flatmap(with_line)


def _changed_bytes(seed: bytes) -> st.SearchStrategy[bytes]:
    place = st.integers(0, min(4096, len(seed))) | st.integers(0, len(seed))
    piece = st.binary(max_size=8) | st.sampled_from(TOKENS)
    changes = st.lists(st.tuples(place, st.integers(0, 16), piece), min_size=1, max_size=4)

    def made(given: list[tuple[int, int, bytes]]) -> bytes:
        data = seed
        for at, gone, new in given:
            data = data[:at] + new + data[at + gone :]
        return data

    return changes.map(made)
