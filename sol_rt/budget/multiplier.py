"""The Lagrange multiplier: what the policy's logits are charged for a dense step's cost, so that the budget is held.

docs/reference/decode-loop.md has the same computation as pseudo-code.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

import numpy as np

from sol_rt.budget.hull import lower_hull

MEMORY = 64
"""Number of last steps from which the multiplier is computed."""
_EPSILON = 1e-9

Edge = tuple[float, float]
"""An edge of a step's hull: minus its slope (logits for each dense step of cost), and its width (dense steps)."""


class Multiplier:
    """Computes the multiplier for each step, in logits for each dense step of cost.

    Draw a step's actions as points (cost, logit). Under a multiplier, the best action is the corner of their upper hull
    at which the edges begin to rise less steeply than the multiplier. At the multiplier sought, the last MEMORY steps
    cost the target on average. To find it, take all their edges, the steepest first, until the cost that the target
    leaves over the cheapest actions is spent. The result needs no time to settle, does not depend on the scale of the
    logits, and spends cost on the steps that gain most by it.
    """

    def __init__(self) -> None:
        self._cheapest: deque[float] = deque()  # of each of these steps
        self._steps: deque[list[Edge]] = deque()
        self._edges: list[Edge] = []  # of all these steps, the steepest first

    def at(self, logits: np.ndarray, costs: np.ndarray, target: float) -> float:
        """The multiplier for a step; the step counts among the last ones from now on.

        Args:
            logits: the policy's logits, float64 [A].
            costs: costs of the same actions in dense steps, float64 [A].
            target: cost that the step should aim for, in dense steps.
        """
        if len(self._steps) == MEMORY:
            self._cheapest.popleft()
            for edge in self._steps.popleft():
                del self._edges[bisect_left(self._edges, edge)]
        least, edges = upper_hull(costs.tolist(), logits.tolist())
        self._cheapest.append(least)
        self._steps.append(edges)
        for edge in edges:
            insort(self._edges, edge)
        if not self._edges:
            return 0.0
        remaining = sum(map(float(target).__sub__, self._cheapest))
        taken = 0
        for _, width in self._edges:
            if width / 2 > remaining:
                break
            remaining -= width
            taken += 1
        beside = self._edges[max(taken - 1, 0) : taken + 1]
        return -between([slope for slope, _ in beside], min(taken, 1))


def upper_hull(costs: Sequence[float], values: Sequence[float]) -> tuple[float, list[Edge]]:
    """The least cost, and the edges of the upper hull of the points (cost, value), from the cheapest point on."""
    corners = lower_hull((cost, -value) for cost, value in zip(costs, values, strict=True))
    return corners[0][0], [
        ((high[1] - low[1]) / (high[0] - low[0]), high[0] - low[0]) for low, high in itertools.pairwise(corners)
    ]


def between(ascending: Sequence[float], count: int) -> float:
    """A number with `count` of the ascending numbers below it and the others above it.

    It lies midway between two of them, or just beyond the first or the last.
    """
    beyond = _EPSILON + abs(ascending[0] if count == 0 else ascending[-1]) * _EPSILON
    if count == 0:
        return ascending[0] - beyond
    if count == len(ascending):
        return ascending[-1] + beyond
    return (ascending[count - 1] + ascending[count]) / 2
