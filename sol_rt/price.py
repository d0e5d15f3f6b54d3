"""What a policy's choice pays for cost: the price at which its choices come to the target (docs/decode-loop.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MEMORY = 64
"""Steps that the price goes by."""
_EPSILON = 1e-9


class Price:
    """The price of a dense step, in the policy's logits, that the next choice pays.

    Two actions can be mixed to the target with the largest mean logit over the last steps: the ends of an edge of the
    hull of (cost, mean logit). The dearer of them has to get a certain share of the steps; the price is where those of
    the last steps that would gain most by it turn to it. So it needs no time to settle, whatever the scale of the
    logits, and the dear action goes to the steps that gain.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._logits = np.empty((MEMORY, 0))

    def at(self, logits: np.ndarray, costs: np.ndarray, target: float) -> float:
        """The price for a step, whose logits [A] count from now on. `costs` [A] and `target` are relative."""
        if not self._steps:
            self._logits = np.empty((MEMORY, len(logits)))
        self._logits[self._steps % MEMORY] = logits
        self._steps += 1
        last = self._logits[: self._steps]
        cost = costs.tolist()
        low, high = edge_at(cost, last.mean(0).tolist(), target)
        width = cost[high] - cost[low]
        if width <= 0:
            return 0.0
        share = min(max((target - cost[low]) / width, 0.0), 1.0)
        gains = sorted(((last[:, high] - last[:, low]) / width).tolist())
        return between(gains, round((1 - share) * len(gains)))


def edge_at(costs: Sequence[float], values: Sequence[float], target: float) -> tuple[int, int]:
    """The ends, cheaper one first, of the edge at cost `target` of the upper hull of the points (cost, value); of the
    nearest edge beyond its ends, the same point twice where all costs are equal."""
    least, most = min(costs), max(costs)
    reach = _EPSILON * (most - least)
    target = min(max(target, least + reach), most - reach)
    best, ends = -math.inf, (0, 0)
    for low, (low_cost, low_value) in enumerate(zip(costs, values, strict=True)):
        if low_cost > target:
            continue
        for high, (high_cost, high_value) in enumerate(zip(costs, values, strict=True)):
            if high_cost > target:
                share = (target - low_cost) / (high_cost - low_cost)
                value = (1 - share) * low_value + share * high_value
                if value > best:
                    best, ends = value, (low, high)
    return ends


def between(ascending: Sequence[float], count: int) -> float:
    """A number with `count` of the numbers below it and the others above, midway; just beyond them at the ends."""
    beyond = _EPSILON + abs(ascending[0] if count == 0 else ascending[-1]) * _EPSILON
    if count == 0:
        return ascending[0] - beyond
    if count == len(ascending):
        return ascending[-1] + beyond
    return (ascending[count - 1] + ascending[count]) / 2
