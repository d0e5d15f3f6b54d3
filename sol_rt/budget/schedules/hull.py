"""`hull`: the two neighbouring actions of the measured lower hull in turn. It needs no policy."""

from __future__ import annotations

import itertools

import numpy as np

from sol_rt.budget.controller.base import BaseController
from sol_rt.budget.hull import Hull
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.bundle.actions import Action


class HullSchedule:
    """Alternates between the two actions of the hull around the controller's target, whatever the text.

    Error diffusion deals the two out, so that their mean cost is the target. No fixed mix of the actions loses less by
    the losses that the export measured.

    Args:
        controller: a fresh controller, whose actions are the hull's.
        hull: the hull of these actions.
    """

    name = "hull"

    def __init__(self, controller: BaseController, hull: Hull) -> None:
        self._controller, self._hull = controller, hull
        self._carry = 0.5

    def choose(self, step: PolicyInput) -> Action:
        """One of the two actions around the target, or if that is not allowed the allowed one of the nearest cost."""
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        target = controller.target(step.context)
        costs = controller.relative_costs(step.context)
        low, high = self._around(target, step.context)
        below, above = costs.item(low), costs.item(high)
        share = (target - below) / (above - below) if above > below else 1.0
        self._carry += min(max(share, 0.0), 1.0)
        index = low
        if self._carry >= 1.0 - 1e-9:
            self._carry -= 1.0
            index = high
        if not controller.allows(index, step.context):
            distance = np.abs(costs - costs[index])
            index = int(np.argmin(np.where(controller.allowed(step.context), distance, np.inf)))
        return controller.actions[index]

    def _around(self, target: float, context: int) -> tuple[int, int]:
        """Places of the dearest corner at or below the target and of the next one."""
        corners = self._hull.corners(context)
        for low, high in itertools.pairwise(corners):
            if target < high.cost:
                return low.place, high.place
        return corners[-1].place, corners[-1].place
