"""Range of budgets at which the gain of a policy in training is beyond the error."""

from __future__ import annotations

import math

import pytest

from sol_rt.train.holdout import Comparison, Score, compare, wins


def compared(budget: float, gain: float, error: float, least: float = 1.0) -> Comparison:
    losses = {"sol": 0.1, "uniform": 0.1, "static": 0.1 + gain}
    return Comparison(budget, losses, {}, {"static": gain}, {"static": error}, {"static": least})


def test_the_longest_range_of_budgets_counts() -> None:
    gains = [(0.3, 0.05), (0.55, 0.06), (0.35, 0.0), (0.45, 0.03), (0.4, 0.04), (0.5, 0.019)]  # in any order
    found = wins([compared(budget, gain, 0.01) for budget, gain in gains])
    assert found == (0.4, 0.45, pytest.approx(0.01))


def test_a_gain_within_two_errors_is_no_win() -> None:
    sure = compared(0.5, 0.05, 0.01)
    assert wins([compared(0.4, 0.0201, 0.01), sure]) == (0.4, 0.5, pytest.approx(0.0001))
    assert wins([compared(0.4, 0.02, 0.01), sure]) is None
    assert wins([compared(0.4, 0.02, math.inf), sure]) is None
    assert wins([compared(0.4, 0.05, 0.01, least=-0.001), sure]) is None  # it loses more at one length of window
    assert wins([]) is None


def test_the_least_gain_is_that_of_one_length_of_window() -> None:
    def window(gain: float) -> dict[str, Score]:
        return {"sol": Score(0.1, 0.4), "static": Score(0.1 + gain, 0.4), "uniform": Score(0.1, 0.4)}

    found = compare([window(gain) for gain in (0.3, 0.1, -0.02, 0.0)], [0, 0, 1, 1], 0.4, [(0.3, 0.2), (1.0, 0.0)])
    assert found.gain["static"] == pytest.approx(0.095)
    assert found.least == {"uniform": 0.0, "static": pytest.approx(-0.01 - 2 * 0.01)}
    alone = compare([window(0.1), window(0.2), window(0.1)], [0, 0, 1], 0.4, [(0.3, 0.2), (1.0, 0.0)])
    assert alone.least["static"] == -math.inf
