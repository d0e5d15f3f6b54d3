"""Where a policy in training wins: the row of budgets at which its gain is beyond the error."""

from __future__ import annotations

import math

import pytest

from sol_rt.train.holdout import Comparison, wins


def compared(budget: float, gain: float, error: float) -> Comparison:
    losses = {"sol": 0.1, "uniform": 0.1, "static": 0.1 + gain}
    return Comparison(budget, losses, {}, {"static": gain, "uniform": 0.0}, {"static": error, "uniform": 0.0})


def test_the_longest_row_of_budgets_counts() -> None:
    gains = [(0.3, 0.05), (0.35, 0.0), (0.4, 0.04), (0.45, 0.03), (0.5, 0.019), (0.55, 0.06)]
    found = wins([compared(budget, gain, 0.01) for budget, gain in gains])
    assert found == (0.4, 0.45, pytest.approx(0.01))


def test_a_gain_within_two_errors_is_none() -> None:
    assert wins([compared(0.4, 0.02, 0.01)]) is None
    assert wins([compared(0.4, 0.02, math.inf)]) is None
    assert wins([]) is None
    assert wins([compared(0.4, 0.0201, 0.01)]) == (0.4, 0.4, pytest.approx(0.0001))
