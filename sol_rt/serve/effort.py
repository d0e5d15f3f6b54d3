"""`reasoning_effort`: the operator's map from OpenAI's words to budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sol_rt.budget.dial import check_budget
from sol_rt.errors import UsageError, brief
from sol_rt.serve.request import DIAL, EFFORTS, Asked

DEFAULTS: Mapping[str, float | None] = {
    "none": None,
    "minimal": 0.6,
    "low": 0.8,
    "medium": None,
    "high": 1.0,
    "xhigh": 1.0,
    "max": 1.0,
}
"""Budgets, 0 to 1, of levels that the operator's map leaves out; None for the server's default.

Who wants no reasoning still wants a good answer. A budget under the operator's minimum becomes that minimum.
"""


def parse_effort(text: str) -> tuple[str, float]:
    """A level's name and budget, from `low=0.4`. Raises UsageError."""
    name, _, rest = text.partition("=")
    try:
        budget = float(rest) if name in EFFORTS else None
    except ValueError:
        budget = None
    if budget is None:
        raise UsageError(f"--effort: got {brief(text)}, expected NAME=BUDGET, a name of {', '.join(EFFORTS)}")
    check_budget(budget)
    return name, budget


def with_effort(asked: Asked, efforts: Mapping[str, float], lowest: float) -> Asked:
    """The request with the budget of its effort, unless it has a dial of its own.

    Args:
        asked: the request.
        efforts: the operator's budgets by level, before DEFAULTS.
        lowest: the operator's least budget.
    """
    if asked.effort is None or not asked.arguments.keys().isdisjoint(DIAL):
        return asked
    budget = efforts.get(asked.effort)
    if budget is None and (default := DEFAULTS[asked.effort]) is not None:
        budget = max(default, lowest)
    return asked if budget is None else replace(asked, arguments={**asked.arguments, "budget": budget}, by_effort=True)
