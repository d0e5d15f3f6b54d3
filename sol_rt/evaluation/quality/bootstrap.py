"""Confidence intervals by the paired bootstrap: it draws windows with replacement, the same windows for all schedules.

Every quantity, including a schedule's cost, is computed again on each draw. An interval of a difference at matched cost
therefore includes the uncertainty of the matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLED = ("windows", "blocks")
_LEVEL = 0.95
_APART = 0.01  # two points of a curve give a slope only if their relative costs differ by this much


@dataclass(frozen=True)
class Resampling:
    """Settings of the bootstrap: its unit (`windows` or `blocks`), its number of draws, and its seed."""

    unit: str = "windows"
    draws: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval from the bootstrap's percentiles; the ends are None if there was only one unit."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Sample:
    """Sums of one schedule over each resampled unit, float64 [units]. A unit is a window or a block of a window."""

    tokens: Floats
    nll: Floats
    kl: Floats
    agreed: Floats
    spent: Floats
    full: Floats


class Bootstrap:
    """Draws units with replacement.

    Args:
        units: number of units; every sample lists them in the same order.
        draws: number of draws.
        seed: seed of the draws.
    """

    def __init__(self, units: int, draws: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        drawn = random.multinomial(units, np.full(units, 1 / units), size=draws)
        # row 0 counts every unit once and gives the value; the other rows give the interval
        self._counts = np.concatenate([np.ones((1, units)), drawn])
        self._single = units == 1

    def mean(self, sums: Floats, over: Floats) -> Floats:
        """sum of `sums` / sum of `over`, both [units], for the sample itself and for every draw: [1 + draws]."""
        return np.asarray((self._counts @ sums) / (self._counts @ over))

    def figure(self, values: Floats) -> Figure:
        """Value and interval of a quantity that `mean` computed, [1 + draws]."""
        value = float(values[0])
        if self._single:
            return Figure(value, None, None)
        tail = (1 - _LEVEL) / 2
        low, high = np.quantile(values[1:], [tail, 1 - tail]).tolist()
        return Figure(value, low, high)


@dataclass(frozen=True)
class CurvePoint:
    """A schedule's relative cost (dense = 1) and loss in nats per token at one budget, [1 + draws] each."""

    cost: Floats
    nll: Floats


def at_cost(curve: Sequence[CurvePoint], index: int, cost: Floats) -> Floats:
    """Estimates a schedule's loss at another cost than it had, [1 + draws].

    The estimate follows the line from point `index` of the curve to the nearest other point on the side of `cost`. If
    that side has none, it takes the other side. If no other point is far enough away, the result is the loss of point
    `index`.

    Args:
        curve: the schedule's points, one per budget.
        index: index of the point to start from.
        cost: wanted relative cost, [1 + draws].
    """
    here = curve[index]
    wanted = cost[0] - here.cost[0]
    distances = [float(point.cost[0] - here.cost[0]) for point in curve]
    others = [other for other, distance in enumerate(distances) if abs(distance) >= _APART]
    if not others:
        return here.nll
    there = curve[min(others, key=lambda other: (distances[other] * wanted < 0, abs(distances[other])))]
    slope = (there.nll - here.nll) / (there.cost - here.cost)
    return np.asarray(here.nll + slope * (cost - here.cost))
