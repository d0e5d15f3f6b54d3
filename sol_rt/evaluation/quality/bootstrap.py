"""Intervals by the paired bootstrap: windows are drawn with replacement, the same ones for all schedules.

Every quantity is worked out anew on each draw, what a schedule costs included, so an interval of a difference at
matched cost holds the uncertainty of the matching, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLED = ("windows", "blocks")
_LEVEL = 0.95
_APART = 0.01  # relative cost by which two points of a curve have to differ to give a slope


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: `unit` is `windows` or `blocks`."""

    unit: str = "windows"
    draws: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval, percentiles of the bootstrap; without one where there was a single window."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Sample:
    """What one schedule gave, float64 [units]: sums over each unit that is resampled, a window or a block of one."""

    tokens: Floats
    nll: Floats
    kl: Floats
    agreed: Floats
    spent: Floats
    full: Floats


class Bootstrap:
    """Draws of units with replacement.

    Args:
        units: how many there are; the order is the same in every sample.
        draws: how many times they are drawn.
        seed: of the draws.
    """

    def __init__(self, units: int, draws: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        drawn = random.multinomial(units, np.full(units, 1 / units), size=draws)
        # the units as they are come first: they give the value, all others the interval
        self._counts = np.concatenate([np.ones((1, units)), drawn])
        self._single = units == 1

    def mean(self, sums: Floats, over: Floats) -> Floats:
        """sum of `sums` / sum of `over`, both [units], in the sample itself and on every draw: [1 + draws]."""
        return np.asarray((self._counts @ sums) / (self._counts @ over))

    def figure(self, values: Floats) -> Figure:
        """Value and interval of a quantity [1 + draws]."""
        value = float(values[0])
        if self._single:
            return Figure(value, None, None)
        tail = (1 - _LEVEL) / 2
        low, high = np.quantile(values[1:], [tail, 1 - tail]).tolist()
        return Figure(value, low, high)


@dataclass(frozen=True)
class CurvePoint:
    """Cost in dense steps and loss in nats of a schedule at one budget, [1 + draws] each."""

    cost: Floats
    nll: Floats


def at_cost(curve: Sequence[CurvePoint], index: int, cost: Floats) -> Floats:
    """Loss of a schedule at another cost than it had, [1 + draws].

    From point `index` of its curve along the line to the nearest other point on the side of `cost`; where there is
    none, along that to the other side. Its own loss where it has one point only.
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
