"""The axes of an action set, and the path along which `uniform` turns them down.

A path leads from the lowest settings (position 0) to dense (position 1). Each point of it stands for a mix of actions,
whose mean settings are the point's.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from sol_rt.bundle.actions import Action

_KV_DENSITY, _CHANNEL_DENSITY, _BITS = range(3)  # the axes
GRID = 160
"""Parts into which the path is cut: its mixes are computed at GRID + 1 points."""


class Axes:
    """The three axes of an action set of A actions.

    Attributes:
        levels: the settings that occur on each axis - KV density, channel density and bits - in ascending order.
        scale: float64 [3], the highest level of each axis.
        settings: float64 [A, 3], the settings of each action as shares of `scale`.
    """

    def __init__(self, actions: Sequence[Action]) -> None:
        axes = ([a.kv_density for a in actions], [a.channel_density for a in actions], [a.bits for a in actions])
        self.levels = [sorted({float(value) for value in values}) for values in axes]
        self.scale = np.array([levels[-1] for levels in self.levels])
        self.settings = np.array([(a.kv_density, a.channel_density, a.bits) for a in actions], np.float64) / self.scale
        self._found: dict[tuple[float, float, float], int] = {}
        self._path = self._corners()

    def positions(self, u: float) -> list[float]:
        """The settings at share `u` of the path, one for each axis, [3]."""
        path = self._path
        at = u * (len(path) - 1)
        below = min(int(at), len(path) - 2)
        corners = zip(path[below], path[below + 1], strict=True)
        return [start + (at - below) * (end - start) for start, end in corners]

    def around(self, axis: int, position: float) -> tuple[float, float, float]:
        """The two levels around `position` and the share of the higher one, so that their mean is `position`."""
        levels = self.levels[axis]
        above = min(bisect_left(levels, position), len(levels) - 1)
        low, high = levels[max(above - 1, 0)], levels[above]
        return low, high, 1.0 if high == low else min(max((position - low) / (high - low), 0.0), 1.0)

    def nearest(self, settings: tuple[float, float, float]) -> int:
        """Index of the action nearest to these settings. Few settings occur, so each is looked up once and kept."""
        index = self._found.get(settings)
        if index is None:
            index = int(np.argmin(np.abs(self.settings - np.array(settings) / self.scale).sum(axis=1)))
            self._found[settings] = index
        return index

    @functools.cached_property
    def mixes(self) -> np.ndarray:
        """Share of each action at the points of the path, float64 [GRID + 1, A]."""
        return np.stack([self._mix(self.positions(index / GRID)) for index in range(GRID + 1)])

    def _corners(self) -> list[list[float]]:
        """Corners of the path, [4, 3], from the lowest settings to dense. One axis changes between two corners."""
        corner = self.scale.tolist()
        corners = [corner]
        for axis in (_BITS, _KV_DENSITY, _CHANNEL_DENSITY):
            corner = corner.copy()
            corner[axis] = self.levels[axis][0]
            corners.append(corner)
        return corners[::-1]

    def _mix(self, positions: Sequence[float]) -> np.ndarray:
        """Share of each action, float64 [A], if each axis takes the two levels around its position independently."""
        mix = np.zeros(len(self.settings))
        around = [self.around(axis, position) for axis, position in enumerate(positions)]
        for ups in itertools.product((False, True), repeat=3):
            share = math.prod(s if up else 1 - s for up, (_, _, s) in zip(ups, around, strict=True))
            kv_density, channel_density, bits = (
                high if up else low for up, (low, high, _) in zip(ups, around, strict=True)
            )
            if share > 0:
                mix[self.nearest((kv_density, channel_density, bits))] += share
        return mix


@functools.lru_cache(maxsize=8)
def axes_of(actions: tuple[Action, ...]) -> Axes:
    """The axes of an action set. They are kept between generations: their mixes take milliseconds to compute."""
    return Axes(actions)
