"""The strongest static rival of a schedule: the mix of two actions that loses least at a budget.

The two actions are neighbours on the lower convex hull of cost and loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from sol_rt.budget.hull import falling_hull
from sol_rt.budget.schedules import PolicyInput
from sol_rt.bundle.actions import Action
from sol_rt.generate.native.own_schedule import Controller


class MixSchedule:
    """Alternates between two of the controller's actions, by error diffusion, so that their mean cost is its target."""

    name = "mix"

    def __init__(self, controller: Controller, pair: tuple[Action, Action]) -> None:
        self._controller, self._pair = controller, pair
        self._places = [controller.actions.index(action) for action in pair]
        self._carry = 0.5  # what is owed to the dearer action, in steps

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        costs = controller.relative_costs(step.context)[self._places].tolist()
        low, high = sorted(range(2), key=costs.__getitem__)
        rise = costs[high] - costs[low]
        share = (controller.target(step.context) - costs[low]) / rise if rise > 0 else 1.0
        self._carry += min(max(share, 0.0), 1.0)
        if self._carry < 1.0 - 1e-9:
            return self._pair[low]
        self._carry -= 1.0
        return self._pair[high]


def hull_pair(points: Mapping[Action, tuple[float, float]], budget: float) -> tuple[Action, Action] | None:
    """The two actions whose mix loses least at a budget.

    Args:
        points: relative cost and loss of each action.
        budget: requested relative cost.

    Returns None if the budget is below the cheapest action. If the budget pays for the action that loses least, returns
    that action twice.
    """
    at = {point: action for action, point in points.items()}
    corners = falling_hull(points.values())
    if budget >= corners[-1][0]:
        return at[corners[-1]], at[corners[-1]]
    for low, high in itertools.pairwise(corners):
        if low[0] <= budget < high[0]:
            return at[low], at[high]
    return None
