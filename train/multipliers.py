"""Lagrange multipliers by budget: what a dense step's cost has to be worth, in nats, for a budget to be met on average.

Training charges every action its multiplier times its cost. A low budget needs a high multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

_POINTS = 13
_LEAST, _MOST = 1e-4, 100.0  # nats per dense step
_HALVINGS = 40
_FIRST = 0.2  # before anything is known


class Multipliers:
    """Multipliers at evenly spaced budgets from `low` to `high`. Between two, their logarithm is interpolated.

    Attributes:
        budgets: float64 [P], shares of the dense cost.
        logarithms: float64 [P], of the multipliers in nats per dense step. They are part of a training's state.
    """

    def __init__(self, low: float, high: float) -> None:
        self.budgets = np.linspace(low, high, _POINTS if high > low else 1)
        self.logarithms = np.full(len(self.budgets), math.log(_FIRST))

    def at(self, budget: float) -> float:
        """The multiplier of a budget, in nats per dense step."""
        return float(np.exp(np.interp(budget, self.budgets, self.logarithms)))

    def fit(self, mean_cost: Callable[[float], float]) -> None:
        """Sets every multiplier so that `mean_cost(multiplier)` is its budget, by bisection.

        `mean_cost` falls as the multiplier rises. Where no multiplier meets a budget, the nearer end of their range is
        taken.
        """
        for index, budget in enumerate(self.budgets.tolist()):
            low, high = math.log(_LEAST), math.log(_MOST)
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                if mean_cost(math.exp(middle)) > budget:
                    low = middle
                else:
                    high = middle
            self.logarithms[index] = high

    def follow(self, budgets: Sequence[float], means: Sequence[float], rate: float) -> None:
        """Raises the multipliers near budgets that episodes overspent, and lowers those near budgets they underspent.

        The two points around a budget move, in logarithms, by rate * (mean cost - budget) / budget, weighted by how
        near they are. A point that several episodes move takes the mean.

        Args:
            budgets: of each episode.
            means: mean relative cost of each episode.
            rate: step size.
        """
        moves, weights = np.zeros_like(self.logarithms), np.zeros_like(self.logarithms)
        for budget, mean in zip(budgets, means, strict=True):
            place = float(np.interp(budget, self.budgets, np.arange(len(self.budgets))))
            below = min(int(place), len(self.budgets) - 1)
            for point, weight in ((below, 1 - (place - below)), (below + 1, place - below)):
                if weight > 0:
                    moves[point] += weight * rate * (mean - budget) / budget
                    weights[point] += weight
        self.logarithms += np.where(weights > 0, moves / np.maximum(weights, 1.0), 0.0)
        np.clip(self.logarithms, math.log(_LEAST), math.log(_MOST), out=self.logarithms)
