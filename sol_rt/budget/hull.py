"""The lower hull of a bundle's actions where they run: which actions to mix at a budget, and which budget a loss takes.

The points are (relative cost, expected loss) of the measured actions. Two actions in turn reach every point on the line
between them, so the lower convex hull of the points is the best that fixed mixes can reach. It depends on the context,
because costs and losses do, and on the device, because costs do. The native core computes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from ctypes import byref, c_double, c_size_t, c_void_p
from typing import NamedTuple

import numpy as np

from sol_rt.budget.cost.model import CostModel
from sol_rt.bundle.actions import Action
from sol_rt.native.library import c_strings, core


class Corner(NamedTuple):
    """A corner of the hull.

    Attributes:
        place: place of the action in the hull's actions.
        cost: relative cost, in dense steps.
        loss: expected added loss over dense, nats per token.
    """

    place: int
    cost: float
    loss: float


class Hull:
    """The lower hull of actions, by context. Any number of threads may use it.

    Args:
        actions: what may be mixed, each once, the dense action among them. Those without a measured loss are left out.
        cost: the cost model of the device, whose config has the losses.

    Attributes:
        actions: as given.
        cost_model: name of the cost model.
    """

    def __init__(self, actions: Sequence[Action], cost: CostModel) -> None:
        self.actions, self.cost_model = tuple(actions), cost.name
        self._handle = c_void_p()
        tags = c_strings(action.tag for action in self.actions)
        core().sol_hull_create(cost.handle, tags, len(self.actions), byref(self._handle))
        weakref.finalize(self, core().sol_hull_release, self._handle).atexit = False

    def corners(self, context: int) -> list[Corner]:
        """The corners at a context, from the cheapest action to dense; costs rise.

        Between the action of least loss and dense nothing is gained. Dense ends the list all the same, so that every
        budget up to 1 can be spent.
        """
        room = len(self.actions)
        places, count = (c_size_t * room)(), c_size_t()
        costs, losses = (c_double * room)(), (c_double * room)()
        core().sol_hull_corners(self._handle, context, places, costs, losses, byref(count))
        found = zip(places[: count.value], costs[: count.value], losses[: count.value], strict=True)
        return [Corner(*corner) for corner in found]

    def cost_at(self, loss: float, context: int) -> float:
        """Relative cost of the cheapest mix that loses at most `loss` nats per token; dense's if none does."""
        cost = c_double()
        core().sol_hull_cost_at(self._handle, loss, context, byref(cost))
        return cost.value


def measured_hull(cost: CostModel) -> Hull | None:
    """The lower hull of a bundle's actions at these costs; None if the export measured no losses."""
    return Hull(cost.schedule_actions("hull"), cost) if cost.config.losses_measured else None


def lower_hull(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the lower convex hull of (cost, loss) points, in ascending order of cost.

    A schedule that takes two actions in turn reaches every point between them, so the hull is the best that fixed mixes
    can reach.
    """
    return _corners(points, falling=False)


def falling_hull(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the lower hull of (cost, loss) points from the cheapest to the one of least loss.

    What costs more than that one is left out.
    """
    return _corners(points, falling=True)


def _corners(points: Iterable[tuple[float, float]], *, falling: bool) -> list[tuple[float, float]]:
    columns = np.array(list(points), np.float64).reshape(-1, 2).T.copy()
    count = c_size_t(columns.shape[1])
    costs, losses = columns
    core().sol_lower_hull(costs.ctypes.data, losses.ctypes.data, byref(count), falling)
    return list(zip(costs[: count.value].tolist(), losses[: count.value].tolist(), strict=True))
