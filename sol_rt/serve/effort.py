"""`reasoning_effort`: the operator's map from OpenAI's words to budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sol_rt.budget.dial import check_budget
from sol_rt.errors import UsageError, brief
from sol_rt.serve.request import DIAL, EFFORTS, Asked


@dataclass(frozen=True)
class Effort:
    """A level of effort.

    Attributes:
        budget: of the answer, 0 to 1; None for the server's default.
        thinking_tokens: tokens of reasoning at most; None for any number.
    """

    budget: float | None = None
    thinking_tokens: int | None = None


DEFAULTS: Mapping[str, Effort] = {
    "none": Effort(thinking_tokens=0),
    "minimal": Effort(0.6),
    "low": Effort(0.8),
    "medium": Effort(),
    "high": Effort(1.0),
    "xhigh": Effort(1.0),
    "max": Effort(1.0),
}
"""Levels that the operator's map leaves out: who wants no reasoning still wants a good answer.

A budget under the operator's minimum becomes that minimum.
"""


def parse_effort(text: str) -> tuple[str, Effort]:
    """A level by its name, from `low=0.4` or `low=0.4:256` with the most tokens of reasoning. Raises UsageError."""
    name, _, rest = text.partition("=")
    budget, _, tokens = rest.partition(":")
    try:
        effort = Effort(float(budget), int(tokens) if tokens else None)
    except ValueError:
        effort = Effort()
    if name not in EFFORTS or effort.budget is None or (effort.thinking_tokens or 0) < 0:
        expected = f"NAME=BUDGET or NAME=BUDGET:TOKENS, a name of {', '.join(EFFORTS)}"
        raise UsageError(f"--effort: got {brief(text)}, expected {expected}")
    check_budget(effort.budget)
    return name, effort


def with_effort(asked: Asked, efforts: Mapping[str, Effort], lowest: float) -> Asked:
    """The request with the budget of its effort, unless it has a dial of its own; and with the cap of its reasoning.

    Args:
        asked: the request.
        efforts: the operator's levels, before DEFAULTS.
        lowest: the operator's least budget.
    """
    if asked.effort is None:
        return asked
    effort = efforts.get(asked.effort, DEFAULTS[asked.effort])
    asked = replace(asked, thinking_budget=effort.budget, thinking_tokens=effort.thinking_tokens)
    if effort.budget is None or not asked.arguments.keys().isdisjoint(DIAL):
        return asked
    budget = effort.budget if asked.effort in efforts else max(effort.budget, lowest)
    return replace(asked, arguments={**asked.arguments, "budget": budget}, by_effort=True)
