"""The file of golden traces: one case a line, and how `SolModel` plays a case.

Seven fields, separated by tabs:

1. name
2. token ids of the prompt, separated by spaces
3. options `key=value`, separated by spaces: those of `SolModel.stream`; booleans are 0 or 1. Besides,
   `budget_at=STEP:BUDGET[,STEP:BUDGET…]` sets the budget before decode step STEP (1 is the first), and `native=1` marks
   a case that only hosts with native operators play.
4. token ids of the text
5. tags of the decode steps' actions: one fewer than tokens, as the first token comes from the prefill
6. relative costs of the decode steps by the bytes model; hosts agree within 1e-9
7. the text, as a JSON string

Lines that begin with `#` are comments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sol_rt.generate.model import SolModel

FILE = "cases.tsv"
_WHOLE = ("max_new_tokens", "top_k", "seed")
_FRACTIONS = (
    "budget", "max_loss", "tokens_per_second", "kv_density", "channel_density", "bits", "temperature", "top_p", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(_WHOLE, int),
    **dict.fromkeys(_FRACTIONS, float),
    "schedule": str,
    "do_sample": lambda value: value == "1",
    "native": lambda value: value == "1",
    "budget_at": lambda value: {int(step): float(budget) for step, budget in (p.split(":") for p in value.split(","))},
}


@dataclass(frozen=True)
class Case:
    """A generation to run.

    Attributes:
        name: its name.
        prompt: token ids.
        options: as they stand in the file.
    """

    name: str
    prompt: tuple[int, ...]
    options: Mapping[str, str]

    @property
    def native_only(self) -> bool:
        """True if function bodies may choose other tokens."""
        return self.options.get("native") == "1"


@dataclass(frozen=True)
class Played:
    """Result of a generation: token ids, the decode steps' tags and relative costs, and the text."""

    tokens: tuple[int, ...]
    actions: tuple[str, ...]
    costs: tuple[float, ...]
    text: str


def play(model: SolModel, case: Case) -> Played:
    """Runs a case."""
    options = {key: _READERS[key](value) for key, value in case.options.items()}
    changes: dict[int, float] = options.pop("budget_at", {})
    options.pop("native", None)
    tokens = []
    with_budget = model.stream(case.prompt, **options)
    for generated in with_budget:
        tokens.append(generated)
        if len(tokens) in changes:
            with_budget.budget = changes[len(tokens)]
    return Played(
        tuple(generated.token for generated in tokens),
        tuple(generated.action.tag for generated in tokens[1:]),
        tuple(generated.relative_cost for generated in tokens[1:]),
        "".join(generated.text for generated in tokens),
    )


def line_of(case: Case, played: Played) -> str:
    """The case's line in the file."""
    fields = (
        case.name,
        " ".join(map(str, case.prompt)),
        " ".join(f"{key}={value}" for key, value in case.options.items()),
        " ".join(map(str, played.tokens)),
        " ".join(played.actions),
        " ".join(f"{cost:.17g}" for cost in played.costs),
        json.dumps(played.text),
    )
    return "\t".join(fields)


def read_cases(path: Path) -> list[tuple[Case, Played]]:
    """The cases of a file, each with what it must come to."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, prompt, options, tokens, actions, costs, text = line.split("\t")
            pairs = (option.split("=", 1) for option in options.split())
            case = Case(name, tuple(map(int, prompt.split())), dict(pairs))
            numbers = tuple(map(int, tokens.split())), tuple(actions.split()), tuple(map(float, costs.split()))
            found.append((case, Played(*numbers, json.loads(text))))
    return found


def difference(expected: Played, got: Played) -> str:
    """Describes the difference in one line; empty if the two agree."""
    for name in ("tokens", "actions"):
        one, other = getattr(expected, name), getattr(got, name)
        for index, (wanted, found) in enumerate(zip(one, other, strict=False)):
            if wanted != found:
                return f"{name}[{index}]: got {found}, expected {wanted}"
        if len(one) != len(other):
            return f"{name}: got {len(other)}, expected {len(one)}"
    for index, (wanted_cost, cost) in enumerate(zip(expected.costs, got.costs, strict=True)):
        if abs(cost - wanted_cost) > 1e-9 * wanted_cost:
            return f"costs[{index}]: got {cost:.17g}, expected {wanted_cost:.17g}"
    return "" if expected.text == got.text else f"text: got {got.text!r}, expected {expected.text!r}"


def write_cases(path: Path, comments: Iterable[str], lines: Iterable[str]) -> None:
    """Writes the file."""
    content = [*(f"# {comment}" for comment in comments), *lines]
    path.write_text("\n".join(content) + "\n", encoding="utf-8", newline="\n")
