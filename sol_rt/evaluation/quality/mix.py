"""The strongest static rival of a schedule: the mix of two actions that loses least at a budget.

The two actions are neighbours on the lower convex hull of cost and loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.hull import falling_hull
from sol_rt.budget.schedules import PolicyInput
from sol_rt.budget.schedules.hull import ErrorDiffusion
from sol_rt.bundle.actions import Action


class MixSchedule:
    """Alternates between the controller's first two actions, so that their mean cost is the controller's target."""

    name = "mix"

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._turns = ErrorDiffusion()

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        costs = controller.relative_costs(step.context)[:2].tolist()
        low, high = sorted(range(2), key=costs.__getitem__)
        dearer = self._turns.take_dearer(controller.target(step.context), costs[low], costs[high])
        return controller.actions[high if dearer else low]


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
