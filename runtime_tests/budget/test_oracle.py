"""The choice in hindsight against every possible choice."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sol_rt.evaluation.quality.oracle import hindsight


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 1.0))
@example(seed=190, share=0.0)
def test_no_choice_at_the_oracles_cost_loses_less(seed: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    losses, costs = draw.random((5, 3)), draw.random((5, 3))
    cheapest, dearest = float(costs.min(1).mean()), float(costs.max(1).mean())
    budget = cheapest + share * (dearest - cheapest)
    rows = np.arange(5)
    chosen = hindsight(losses, costs, budget)
    cost, loss = float(costs[rows, chosen].mean()), float(losses[rows, chosen].mean())
    assert cost <= budget + 1e-9
    for other in map(list, itertools.product(range(3), repeat=5)):
        if float(costs[rows, other].mean()) <= cost:
            assert float(losses[rows, other].mean()) >= loss - 1e-9


def test_an_oracle_with_money_to_spare_takes_the_least_loss() -> None:
    losses = np.array([[0.3, 0.1], [0.0, 0.2]])
    costs = np.array([[0.4, 1.0], [0.4, 1.0]])
    assert hindsight(losses, costs, 1.0).tolist() == [1, 0]
    assert hindsight(losses, costs, 0.4).tolist() == [0, 0]
