"""`hull`: the two neighbouring actions of the measured lower hull in turn. It needs no policy."""

from __future__ import annotations

import itertools

from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.budget.hull import Hull
from sol_rt.budget.losses import ActionLosses
from sol_rt.budget.schedules.schedule import PolicyInput, schedule_actions
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig


class ErrorDiffusion:
    """Error diffusion between two actions: their mean cost over the steps is the wanted one."""

    def __init__(self) -> None:
        self._carry = 0.5  # what is owed to the dearer action, in steps

    def take_dearer(self, wanted: float, low: float, high: float) -> bool:
        """Decides on the next step, and books it. True if the step takes the dearer action.

        Args:
            wanted: mean cost of a step, in the unit of `low` and `high`.
            low, high: costs of the cheaper and of the dearer action at this step.
        """
        share = (wanted - low) / (high - low) if high > low else 1.0
        self._carry += min(max(share, 0.0), 1.0)
        if self._carry < 1.0 - 1e-9:
            return False
        self._carry -= 1.0
        return True


class HullSchedule:
    """Takes one of the two actions of the hull around the step's allowance, whatever the text.

    The two are dealt out so that their mean cost is the allowance. No fixed mix of the actions loses less
    by the losses that the export measured. The schedule does not make up for deviations itself: a cheaper action than
    these two would lose more than the dearer ones before it gained.

    Args:
        controller: a fresh controller, whose actions are the hull's.
        hull: the hull of these actions.
    """

    name = "hull"

    def __init__(self, controller: Controller, hull: Hull) -> None:
        self._controller, self._hull = controller, hull
        self._turns = ErrorDiffusion()

    def choose(self, step: PolicyInput) -> Action:
        """One of the two actions around the allowance, or if that is not allowed the nearest in cost that is."""
        return self.at(step.context)

    def at(self, context: int) -> Action:
        """Does what `choose` does, which reads nothing but the number of tokens in the cache."""
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        costs, allowance = controller.relative_costs(context), controller.allowance(context)
        low, high = self._around(allowance, context)
        dearer = self._turns.take_dearer(allowance, costs.item(low), costs.item(high))
        return controller.actions[controller.nearest_allowed(high if dearer else low, context)]

    def _around(self, cost: float, context: int) -> tuple[int, int]:
        """Places of the two neighbouring corners of the hull around a relative cost."""
        corners = self._hull.corners(context)
        for low, high in itertools.pairwise(corners):
            if cost < high.cost:
                return low.place, high.place
        return corners[-1].place, corners[-1].place


def measured_hull(config: SolConfig, cost: CostModel) -> Hull | None:
    """The lower hull of a bundle's actions at these costs; None if the export measured no losses."""
    if not config.losses_measured:
        return None
    return Hull(schedule_actions(config, "hull"), cost, ActionLosses(config).table)
