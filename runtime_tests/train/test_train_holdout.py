"""Comparison of a policy in training: the schedules' steps, and the gains with their errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.cost_tables import table_for  # noqa: E402
from helpers.made_configs import made_config  # noqa: E402
from sol_rt.budget.cost.cost_table import MeasuredCost  # noqa: E402
from sol_rt.budget.cost.model import BytesCost, CostModel  # noqa: E402
from sol_rt.budget.hull import lower_hull  # noqa: E402
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS  # noqa: E402
from sol_rt.train.config import PolicyConfig  # noqa: E402
from sol_rt.train.holdout import (  # noqa: E402
    SCHEDULES,
    Score,
    Steps,
    all_steps,
    compare,
    planning_cost,
)
from sol_rt.train.policy_network import new_network  # noqa: E402
from sol_rt.train.rollouts.rollout import RolloutSpec  # noqa: E402

HIDDEN, CONTEXT = 6, 544
OF_DISTRIBUTION = ("entropy", "top_probability", "surprise", "margin")


def spec_of(*, timed: bool = False) -> RolloutSpec:
    config = made_config(policy_bytes=10**6)
    cost: CostModel = MeasuredCost(config, table_for(config)) if timed else BytesCost(config)
    return RolloutSpec(tuple(entry.action for entry in config.actions), cost, KNOWN_SCALARS)


def losses_of(spec: RolloutSpec, dense: float = 0.05) -> list[float]:
    """Every action's, in nats; after cheap steps the dense action has one, too."""
    drawn = (dense + np.random.default_rng(1).uniform(0.01, 1, len(spec.actions))).tolist()
    drawn[spec.actions.index(spec.cost.dense_action)] = dense
    return [float(each) for each in drawn]


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_holds_the_budget_and_no_policy_is_paid_for(name: str, timed: bool) -> None:
    spec = spec_of(timed=timed)
    network = new_network(PolicyConfig(), 0, HIDDEN, len(KNOWN_SCALARS), len(spec.actions))
    cost = planning_cost(spec, losses_of(spec), KNOWN_SCALARS, network.shape)
    assert cost.policy() == 0.0
    embed: Any = lambda tokens: torch.ones(len(tokens), HIDDEN)  # noqa: E731
    steps = dict(all_steps(network, embed, spec, KNOWN_SCALARS, 0.7, cost))[name]
    spent = []
    for at in range(150):
        place = steps.choose(CONTEXT + at, 7, torch.zeros(1, HIDDEN), torch.rand(len(KNOWN_SCALARS)))
        spent.append(spec.cost.step(spec.actions[place], CONTEXT + at) / spec.cost.dense(CONTEXT + at))
    assert np.mean(spent) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("dense", [0.0, 0.3])
def test_the_static_mix_is_of_the_hull_of_the_given_losses(dense: float) -> None:
    spec = spec_of()
    losses = losses_of(spec, dense)
    steps = Steps(spec.actions, planning_cost(spec, losses, KNOWN_SCALARS), "hull", 0.6)
    costs = [spec.cost.step(action, CONTEXT) / spec.cost.dense(CONTEXT) for action in spec.actions]
    corners = lower_hull(zip(costs, losses, strict=True))
    pair = [max(cost for cost, _ in corners if cost <= 0.6), min(cost for cost, _ in corners if cost > 0.6)]
    unread = torch.zeros(1, HIDDEN), torch.zeros(len(KNOWN_SCALARS))
    taken = {steps.choose(CONTEXT, 7, *unread) for _ in range(30)}
    assert sorted(costs[place] for place in taken) == pytest.approx(pair)


def test_the_network_sees_what_was_measured_and_what_was_spent() -> None:
    """Of the last distribution a window has the scalars alone; the others are of the plan."""
    spec = spec_of()
    network = new_network(replace(PolicyConfig(), horizon=8), 0, HIDDEN, len(KNOWN_SCALARS), len(spec.actions))
    cost, seen = planning_cost(spec, losses_of(spec), KNOWN_SCALARS, network.shape), []
    step = network.step

    def noted(*inputs: Any) -> Any:
        seen.append(inputs)
        return step(*inputs)

    network.step = noted
    embed: Any = lambda tokens: tokens[:, None] * torch.ones(HIDDEN)  # noqa: E731
    (_, steps), *_ = all_steps(network, embed, spec, KNOWN_SCALARS, 0.7, cost)
    hidden, scalars = torch.rand(12, 1, HIDDEN), torch.rand(12, len(KNOWN_SCALARS))
    taken = [steps.choose(CONTEXT + at, 5 + at, hidden[at], scalars[at]) for at in range(12)]
    column = {name: index for index, name in enumerate(KNOWN_SCALARS)}
    spent = [
        spec.cost.step(spec.actions[place], CONTEXT + at) / spec.cost.dense(CONTEXT + at)
        for at, place in enumerate(taken)
    ]
    for at, (given, embedding, told, previous, position, state) in enumerate(seen):
        assert torch.equal(given, hidden[at])
        assert float(embedding[0, 0]) == 5 + at
        for name in OF_DISTRIBUTION:
            assert float(told[0, column[name]]) == float(scalars[at, column[name]])
        assert position == at % 8
        assert int(previous) == (taken[at - 1] if position else -1)
        assert float(told[0, column["budget"]]) == pytest.approx(0.7)
        assert float(told[0, column["log_context"]]) == pytest.approx(math.log2((CONTEXT + at) / 16))
        assert float(told[0, column["previous_cost"]]) == pytest.approx(spent[at - 1] if at else 1.0)
        assert state.any() == (at > 0)


def test_the_least_gain_is_that_of_one_length_of_window() -> None:
    def window(gain: float) -> dict[str, Score]:
        return {"sol": Score(0.1, 0.4), "static": Score(0.1 + gain, 0.4), "uniform": Score(0.1, 0.4)}

    found = compare([window(gain) for gain in (0.3, 0.1, -0.02, 0.0)], [0, 0, 1, 1], 0.4, [(0.3, 0.2), (1.0, 0.0)])
    assert found.gain["static"] == pytest.approx(0.095)
    assert found.least == {"uniform": 0.0, "static": pytest.approx(-0.01 - 2 * 0.01)}
    alone = compare([window(0.1), window(0.2), window(0.1)], [0, 0, 1], 0.4, [(0.3, 0.2), (1.0, 0.0)])
    assert alone.least["static"] == -math.inf
