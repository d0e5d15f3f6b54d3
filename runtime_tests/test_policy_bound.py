"""The oracle of benchmarks/policy_bound.py against every possible choice."""

from __future__ import annotations

import itertools

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policy_bound import hindsight


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 1.0))
@example(seed=190, share=0.0)  # costs that are nearly alike
def test_no_choice_at_the_oracles_cost_loses_less(seed: int, share: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    losses = torch.rand(5, 3, generator=draw, dtype=torch.float64)
    costs = torch.rand(5, 3, generator=draw, dtype=torch.float64)
    cheapest, dearest = float(costs.min(1).values.mean()), float(costs.max(1).values.mean())
    budget = cheapest + share * (dearest - cheapest)
    chosen = hindsight(losses, costs, budget)[:, None]
    cost, loss = float(costs.gather(1, chosen).mean()), float(losses.gather(1, chosen).mean())
    assert cost <= budget + 1e-9
    rows = torch.arange(5)
    for other in map(torch.tensor, itertools.product(range(3), repeat=5)):
        if float(costs[rows, other].mean()) <= cost:
            assert float(losses[rows, other].mean()) >= loss - 1e-9


def test_an_oracle_with_money_to_spare_takes_the_least_loss() -> None:
    losses = torch.tensor([[0.3, 0.1], [0.0, 0.2]])
    costs = torch.tensor([[0.4, 1.0], [0.4, 1.0]])
    assert hindsight(losses, costs, 1.0).tolist() == [1, 0]
    assert hindsight(losses, costs, 0.4).tolist() == [0, 0]
