"""The strongest static rival: two actions in turn, those between which the lower hull of cost and loss runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from sol_rt.budget.controller import Controller
from sol_rt.budget.frontier import falling_hull
from sol_rt.budget.schedules import PolicyInput
from sol_rt.bundle.actions import Action


class MixSchedule:
    """The controller's first two actions in turn, their shares such that the expected cost is its target."""

    name = "mix"

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._carry = 0.5

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        costs = controller.relative_costs(step.context)[:2].tolist()
        low, high = sorted(range(2), key=costs.__getitem__)
        span = costs[high] - costs[low]
        share = (controller.target(step.context) - costs[low]) / span if span > 0 else 1.0
        self._carry += min(max(share, 0.0), 1.0)
        if self._carry < 1.0 - 1e-9:
            return controller.actions[low]
        self._carry -= 1.0
        return controller.actions[high]


def hull_pair(points: Mapping[Action, tuple[float, float]], budget: float) -> tuple[Action, Action] | None:
    """The two actions whose mix loses least at a budget, by (relative cost, loss) of each; None below the cheapest.

    At or over the cost of the one that loses least, that action itself, twice.
    """
    at = {point: action for action, point in points.items()}
    corners = falling_hull(points.values())
    if budget >= corners[-1][0]:
        return at[corners[-1]], at[corners[-1]]
    for low, high in itertools.pairwise(corners):
        if low[0] <= budget < high[0]:
            return at[low], at[high]
    return None
