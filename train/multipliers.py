"""What a dense step's cost is worth in nats, by budget: the Lagrange multipliers that make budgets met on average."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

_POINTS = 13
_LEAST, _MOST = 1e-4, 100.0
_HALVINGS = 40
_FIRST = 0.2  # where nothing is known yet


class Multipliers:
    """Prices at evenly spaced budgets from `low` to `high`, their logarithms linear between.

    Attributes:
        budgets: float64 [P].
        logarithms: float64 [P], of the multipliers; state of a training.
    """

    def __init__(self, low: float, high: float) -> None:
        self.budgets = np.linspace(low, high, _POINTS if high > low else 1)
        self.logarithms = np.full(len(self.budgets), math.log(_FIRST))

    def at(self, budget: float) -> float:
        """Nats a dense step."""
        return float(np.exp(np.interp(budget, self.budgets, self.logarithms)))

    def fit(self, mean_cost: Callable[[float], float]) -> None:
        """Sets every multiplier where `mean_cost(multiplier)`, which falls as the multiplier rises, is the budget;
        where no multiplier does it, the nearest end."""
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
        """Raises the multipliers near budgets that episodes overspent, lowers those near the others.

        A logarithm moves by rate * (mean cost - budget) / budget, shared between the two points around the budget;
        points that several episodes touch take the mean.
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
