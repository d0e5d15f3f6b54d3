"""The lower hull of a bundle's actions where they run: which actions to mix at a budget, and which budget a loss takes.

The points are (relative cost, expected loss) of the measured actions. Two actions in turn reach every point on the line
between them, so the lower convex hull of the points is the best that fixed mixes can reach. It depends on the context,
because costs and losses do, and on the device, because costs do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.bundle.actions import Action

_BLOCK = 64  # contexts that share the members of the hull and their losses


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


class _Block(NamedTuple):
    """The contexts `first` … `first + _BLOCK - 1`: place and loss of each corner, and relative costs, float64
    [_BLOCK, A].
    """

    first: int
    members: list[tuple[int, float]]
    relative: np.ndarray


class Hull:
    """The lower hull of actions, by context.

    Args:
        actions: what may be mixed, the dense action among them.
        cost: the cost model of the device.
        losses: gives the expected added loss of A actions at a context in nats per token, float64 [A]; NaN leaves an
            action out of the hull. `ActionLosses.table` is the bundle's.

    Attributes:
        actions: as given.
        cost_model: name of the cost model.
    """

    def __init__(
        self, actions: Sequence[Action], cost: CostModel, losses: Callable[[Sequence[Action], int], np.ndarray]
    ) -> None:
        self.actions, self.cost_model = tuple(actions), cost.name
        self._dense, self._losses, self._costs = cost.dense_action, losses, cost.table(self.actions)
        self._block = _Block(-1, [], np.empty((0, len(self.actions))))
        self._last: tuple[int, list[Corner]] = (-1, [])

    def corners(self, context: int) -> list[Corner]:
        """The corners at a context, from the cheapest action to dense; costs rise.

        Between the action of least loss and dense nothing is gained. Dense ends the list all the same, so that every
        budget up to 1 can be spent.
        """
        # several threads may be in here: each attribute is read once and replaced as a whole
        known, corners = self._last
        if known != context:
            first, block = context // _BLOCK * _BLOCK, self._block
            if first != block.first:
                block = self._block = self._computed(first)
            row = block.relative[context - first].tolist()
            corners = [Corner(place, row[place], loss) for place, loss in block.members]
            self._last = context, corners
        return corners

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

    def loss_at(self, cost: float, context: int) -> float:
        """Expected loss of the mix of this relative cost, nats per token; the cheapest corner's below its cost."""
        corners = self.corners(context)
        for cheap, dear in itertools.pairwise(corners):
            if cost < dear.cost:
                share = max((cost - cheap.cost) / (dear.cost - cheap.cost), 0.0) if dear.cost > cheap.cost else 0.0
                return cheap.loss + share * (dear.loss - cheap.loss)
        return corners[-1].loss

    def _computed(self, first: int) -> _Block:
        """Finds the members of the hull in the middle of the block from `first` on, and the costs over the block."""
        dense = self.actions.index(self._dense)
        costs = self._costs(np.arange(first, first + _BLOCK))
        relative = costs / costs[:, dense : dense + 1]
        losses = self._losses(self.actions, first + _BLOCK // 2).tolist()
        end = (1.0, losses[dense])
        places: dict[tuple[float, float], int] = {end: dense}
        for place, point in enumerate(zip(relative[_BLOCK // 2].tolist(), losses, strict=True)):
            if point[0] < 1.0 and not math.isnan(point[1]):
                places.setdefault(point, place)
        points = falling_hull(places)
        members = [(places[point], point[1]) for point in points]
        if points[-1] != end:
            members.append((dense, end[1]))
        return _Block(first, members, relative)


def lower_hull(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the lower convex hull of (cost, loss) points, in ascending order of cost.

    A schedule that takes two actions in turn reaches every point between them, so the hull is the best that fixed mixes
    can reach.
    """
    corners: list[tuple[float, float]] = []
    for point in sorted(points):
        if corners and point[0] == corners[-1][0]:
            continue  # the lower of two at one cost came first
        while len(corners) > 1 and _turn(corners[-2], corners[-1], point) <= 0:
            corners.pop()
        corners.append(point)
    return corners


def falling_hull(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the lower hull of (cost, loss) points from the cheapest to the one of least loss.

    What costs more than that one is left out.
    """
    corners = lower_hull(points)
    best = min(range(len(corners)), key=lambda index: corners[index][1])
    return corners[: best + 1]


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Positive if the way from a over b to c turns left."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
