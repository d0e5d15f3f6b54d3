"""What a policy's choice pays for cost: the multiplier at which its choices come to the target
(docs/decode-loop.md)."""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

import numpy as np

from sol_rt.budget.frontier import lower_hull

MEMORY = 64
"""Steps that the multiplier goes by."""
_EPSILON = 1e-9

Edge = tuple[float, float]
"""Of a step's hull: minus what a dense step's cost gains there, in logits, and how much of it the edge spans."""


class Multiplier:
    """The multiplier of a dense step, in the policy's logits, that the next choice pays.

    At a multiplier, a step takes the action at the corner of the upper hull of its points (cost, logit) where the edges
    begin to gain less than the multiplier. So the multiplier at which the last steps come to the target on average is
    found by taking all their edges, those that gain most first, until what the target leaves over the cheapest actions
    is spent. It needs no time to settle, whatever the scale of the logits, and cost goes to the steps that gain most by
    it.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[float, list[Edge]]] = deque()
        self._edges: list[Edge] = []  # of all these steps, those that gain most first

    def at(self, logits: np.ndarray, costs: np.ndarray, target: float) -> float:
        """The multiplier for a step, whose logits [A] count from now on. `costs` [A] and `target` are relative."""
        if len(self._steps) == MEMORY:
            for edge in self._steps.popleft()[1]:
                del self._edges[bisect_left(self._edges, edge)]
        least, edges = hull(costs.tolist(), logits.tolist())
        self._steps.append((least, edges))
        for edge in edges:
            insort(self._edges, edge)
        if not self._edges:
            return 0.0
        remaining = sum(target - cheapest for cheapest, _ in self._steps)
        taken = 0
        for _, width in self._edges:
            if width / 2 > remaining:
                break
            remaining -= width
            taken += 1
        return -between([slope for slope, _ in self._edges], taken)


def hull(costs: Sequence[float], values: Sequence[float]) -> tuple[float, list[Edge]]:
    """The least cost, and the edges of the upper hull of the points (cost, value) from there on."""
    corners = lower_hull((cost, -value) for cost, value in zip(costs, values, strict=True))
    return corners[0][0], [
        ((high[1] - low[1]) / (high[0] - low[0]), high[0] - low[0]) for low, high in itertools.pairwise(corners)
    ]


def between(ascending: Sequence[float], count: int) -> float:
    """A number with `count` of the numbers below it and the others above, midway; just beyond them at the ends."""
    beyond = _EPSILON + abs(ascending[0] if count == 0 else ascending[-1]) * _EPSILON
    if count == 0:
        return ascending[0] - beyond
    if count == len(ascending):
        return ascending[-1] + beyond
    return (ascending[count - 1] + ascending[count]) / 2
