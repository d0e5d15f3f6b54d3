"""The lower hull of a bundle's actions where they run: which actions to mix at a budget, and which budget a loss takes.

The points are (relative cost, expected loss) of the measured actions. Two actions in turn reach every point on the line
between them, so the lower convex hull of the points is the best that fixed mixes can reach. It depends on the context,
because costs and losses do, and on the device, because costs do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.budget.frontier import falling_hull
from sol_rt.bundle.actions import Action

_BLOCK = 64  # contexts that share one hull: costs and losses change little over them


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
    """The lower hull of actions, by context.

    Args:
        actions: what may be mixed, the dense action among them.
        cost: the cost model of the device.
        losses: gives the expected added loss of A actions at a context in nats per token, float64 [A]; NaN leaves an
            action out of the hull. `ActionLosses.table` is the bundle's.

    Attributes:
        actions: as given.
    """

    def __init__(
        self, actions: Sequence[Action], cost: CostModel, losses: Callable[[Sequence[Action], int], np.ndarray]
    ) -> None:
        self.actions = tuple(actions)
        self._dense, self._losses, self._costs = cost.dense_action, losses, cost.table(self.actions)
        self._corners: dict[int, list[Corner]] = {}

    def corners(self, context: int) -> list[Corner]:
        """The corners at a context, from the cheapest action to dense; costs rise.

        Between the action of least loss and dense nothing is gained. Dense ends the list all the same, so that every
        budget up to 1 can be spent.
        """
        block = context // _BLOCK
        if block not in self._corners:
            self._corners[block] = self._compute(block * _BLOCK)
        return self._corners[block]

    def loss_at(self, cost: float, context: int) -> float:
        """Expected loss of the best mix of this relative cost, nats per token."""
        corners = self.corners(context)
        return float(np.interp(cost, [corner.cost for corner in corners], [corner.loss for corner in corners]))

    def cost_at(self, loss: float, context: int) -> float:
        """Relative cost of the cheapest mix that loses at most `loss` nats per token; dense's if none does."""
        corners = self.corners(context)
        if corners[0].loss <= loss:
            return corners[0].cost
        for cheap, dear in itertools.pairwise(corners):
            if dear.loss <= loss:
                share = (cheap.loss - loss) / (cheap.loss - dear.loss)
                return cheap.cost + share * (dear.cost - cheap.cost)
        return corners[-1].cost

    def _compute(self, context: int) -> list[Corner]:
        costs = self._costs(np.array([context]))[0]
        losses = self._losses(self.actions, context)
        dense = self.actions.index(self._dense)
        end = (1.0, float(losses[dense]))
        places: dict[tuple[float, float], int] = {end: dense}
        for index, point in enumerate(zip((costs / costs[dense]).tolist(), losses.tolist(), strict=True)):
            if point[0] < 1.0 and not math.isnan(point[1]):
                places.setdefault(point, index)
        found = [Corner(places[point], *point) for point in falling_hull(places)]
        return found if found[-1].cost == end[0] else [*found, Corner(places[end], *end)]
