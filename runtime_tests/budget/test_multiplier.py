"""The multiplier that `sol` pays: what the last steps' choices cost at it, and that no other choices gain more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sol_rt.budget.multiplier import MEMORY, Multiplier, between, upper_hull

LOGITS = st.floats(-5, 5, width=32)
COSTS = st.lists(st.integers(20, 100), min_size=2, max_size=6, unique=True).map(lambda each: np.array(each) / 100)


@settings(max_examples=60, deadline=None)
@given(COSTS, st.integers(1, 150), st.floats(0.1, 1.1), st.floats(0.01, 100), st.integers(0, 2**32))
def test_the_last_steps_choices_cost_the_target(
    costs: np.ndarray, steps: int, target: float, scale: float, seed: int
) -> None:
    """But for half an edge, whatever the scale; the nearest that there is where no choices cost so little or much."""
    logits = scale * np.random.default_rng(seed).standard_normal((steps, len(costs)))
    multiplier = Multiplier()
    for row in logits:
        found = multiplier.at(row, costs, target)
    last = logits[-MEMORY:]
    cost = costs[(last - found * costs).argmax(1)].sum()
    wanted = len(last) * min(max(target, costs.min()), costs.max())
    assert cost == pytest.approx(wanted, abs=np.ptp(costs) / 2 + 1e-6)


@given(arrays(np.float64, (3, 3), elements=LOGITS), st.floats(0.2, 1.0))
def test_no_other_choices_of_that_cost_gain_more(logits: np.ndarray, target: float) -> None:
    costs, multiplier = np.array([0.2, 0.5, 1.0]), Multiplier()
    for row in logits:
        found = multiplier.at(row, costs, target)
    chosen = (logits - found * costs).argmax(1)
    cost, gain = costs[chosen].sum(), logits[range(3), chosen].sum()
    for other in itertools.product(range(3), repeat=3):
        if (costs[list(other)].sum() - cost) * np.sign(found) <= 1e-9:
            assert logits[range(3), other].sum() <= gain + 1e-6


def test_costs_may_change_from_step_to_step() -> None:
    """As contexts grow: each step's choice is counted at its own costs."""
    random, multiplier, rows = np.random.default_rng(1), Multiplier(), []
    for step in range(100):
        costs = np.array([0.3, 0.6, 1.0]) + 0.001 * step * np.array([1, 0.5, 0])
        rows.append((random.standard_normal(3), costs))
        found = multiplier.at(*rows[-1], 0.55)
    cost = np.mean([costs[(logits - found * costs).argmax()] for logits, costs in rows[-MEMORY:]])
    assert cost == pytest.approx(0.55, abs=0.35 / MEMORY)


def test_equal_costs_have_no_multiplier() -> None:
    assert Multiplier().at(np.array([1.0, 2.0]), np.array([0.5, 0.5]), 0.7) == 0.0


def test_edges_of_a_hull() -> None:
    least, edges = upper_hull([1.0, 0.25, 0.5, 0.75], [3.0, 0.0, 2.0, 2.0])
    assert (least, edges) == (0.25, [(-8.0, 0.25), (-2.0, 0.5)])  # the last lies below the line


@given(st.lists(LOGITS, min_size=1, max_size=20, unique=True), st.data())
def test_between_has_the_requested_count_below(numbers: list[float], data: st.DataObject) -> None:
    ascending = sorted(numbers)
    count = data.draw(st.integers(0, len(ascending)))
    assert sum(number < between(ascending, count) for number in ascending) == count
