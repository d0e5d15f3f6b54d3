"""The price that `sol` pays: the edge of the hull, the share that it leaves to the dearer action."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sol_rt.price import MEMORY, Price, between, edge_at

NUMBERS = st.floats(-20, 20, width=32)


@given(st.lists(st.tuples(st.floats(0.1, 1.0), NUMBERS), min_size=2, max_size=12), st.floats(0.0, 1.2))
def test_no_mix_of_actions_with_the_targets_cost_is_worth_more_than_the_edge(
    points: list[tuple[float, float]], target: float
) -> None:
    costs, values = (np.array(column) for column in zip(*points, strict=True))
    assume(costs.max() - costs.min() > 1e-2)
    target = float(np.clip(target, costs.min() + 1e-6, costs.max() - 1e-6))
    low, high = edge_at(costs.tolist(), values.tolist(), target)
    assert costs[low] <= target < costs[high]
    share = (target - costs[low]) / (costs[high] - costs[low])
    # the dual: what no price, however chosen, brings below
    below, above = -1e5, 1e5
    for _ in range(200):
        left, right = below + (above - below) / 3, above - (above - below) / 3
        bounds = [float((values - price * (costs - target)).max()) for price in (left, right)]
        below, above = (below, right) if bounds[0] <= bounds[1] else (left, above)
    assert (1 - share) * values[low] + share * values[high] == pytest.approx(min(bounds), abs=1e-6)


def test_equal_costs_have_no_price() -> None:
    assert edge_at([0.5, 0.5], [1.0, 2.0], 0.5) == (0, 0)
    assert Price().at(np.array([1.0, 2.0]), np.array([0.5, 0.5]), 0.7) == 0.0


@given(st.lists(NUMBERS, min_size=1, max_size=20, unique=True), st.data())
def test_between_has_as_many_below_as_asked(numbers: list[float], data: st.DataObject) -> None:
    ascending = sorted(numbers)
    count = data.draw(st.integers(0, len(ascending)))
    assert sum(number < between(ascending, count) for number in ascending) == count


@given(arrays(np.float64, (200, 2), elements=st.floats(-5, 5)), st.sampled_from([0.3, 0.45, 0.7]), st.floats(0.01, 100))
def test_the_dear_action_goes_to_the_steps_that_gain_most_by_it(noise: np.ndarray, target: float, scale: float) -> None:
    """Of the last 64 steps, whatever the scale, the share that the target asks for would choose it at the price."""
    costs, price = np.array([0.2, 1.0]), Price()
    logits = scale * (noise + np.arange(200)[:, None] * np.array([0.0, 1e-3]))  # no two steps gain alike for long
    for step in range(len(logits)):
        got = price.at(logits[step], costs, target)
        last = logits[max(0, step + 1 - MEMORY) : step + 1]
        gains = last[:, 1] - last[:, 0]
        taken = np.count_nonzero(gains > got * 0.8)
        wanted = len(last) - round((1 - (target - 0.2) / 0.8) * len(last))
        ties = np.count_nonzero(np.isclose(gains, got * 0.8, atol=1e-9 * scale))
        assert wanted - ties <= taken <= wanted + ties
