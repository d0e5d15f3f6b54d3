"""Selection of the actions that a policy picks among."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from helpers.made_configs import made_config
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import BytesCost, Line
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.errors import UsageError
from sol_rt.train.rollouts.counterfactuals import hull_actions
from sol_rt.train.rollouts.rollout import RolloutSpec
from sol_rt.train.run.policy_actions import policy_actions

TAGS = [f"k{kv}-s{channels}-q{bits}" for kv in ("100", "050", "010") for channels in ("100", "050") for bits in (8, 4)]
CONTEXTS = (512, 4096)


def _chosen(config: SolConfig, *tags: str) -> list[str]:
    return [action.tag for action in policy_actions(config, BytesCost(config), tags, CONTEXTS)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.001, 2.0), min_size=len(TAGS) - 1, max_size=len(TAGS) - 1))
def test_without_tags_no_mix_of_the_actions_left_out_loses_less(values: list[float]) -> None:
    """By trying all pairs of the bundle's actions at each context, in float64."""
    config = made_config(losses={tag: {512: value} for tag, value in zip(TAGS[1:], values, strict=True)})
    cost = BytesCost(config)
    chosen = policy_actions(config, cost, (), CONTEXTS)
    assert config.dense in chosen

    def least(actions: Sequence[Action], context: int, budget: float) -> float:
        losses, dense = cost.losses(actions, context).tolist(), cost.dense(context)
        points = [(cost.step(each, context) / dense, loss) for each, loss in zip(actions, losses, strict=True)]
        found = [loss for spent, loss in points if spent <= budget]
        for (low, one), (high, other) in itertools.product(points, points):
            if low < budget < high:
                found.append(one + (budget - low) / (high - low) * (other - one))
        return min(found, default=float("inf"))

    every = [entry.action for entry in config.actions]
    for context, budget in itertools.product((544, 4128), (0.5, 0.6, 0.8, 1.0)):  # the middles of the hull's blocks
        assert least(chosen, context, budget) == pytest.approx(least(every, context, budget), abs=1e-3)


def test_tags_name_the_actions_in_the_order_of_the_bundle() -> None:
    config = made_config(losses={tag: {512: 0.1} for tag in TAGS[1:]})
    assert _chosen(config, "k010-s050-q4", "k100-s100-q8") == ["k100-s100-q8", "k010-s050-q4"]


def test_a_bundle_without_losses_gives_all_its_actions() -> None:
    config = made_config()
    assert len(_chosen(config)) == len(config.actions) > 1


def test_costs_by_which_nothing_is_saved_leave_nothing_to_choose() -> None:
    config = made_config(losses={tag: {512: 0.1} for tag in TAGS[1:]})
    lines = {key: {1.0: Line(1.0, 0.0, 0.0, 0.01)} for key in config.variants}
    cost = MeasuredCost(config, CostTable("b", "d", "now", 0.0, lines))
    with pytest.raises(UsageError, match="no action saves anything over dense"):
        policy_actions(config, cost, (), CONTEXTS)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.45, 0.95), st.integers(400, 4000))
def test_a_run_of_hull_keeps_its_budget(budget: float, start: int) -> None:
    config = made_config(losses={tag: {512: 0.01 * place} for place, tag in enumerate(TAGS[1:], 1)})
    cost = BytesCost(config)
    actions = policy_actions(config, cost, (), CONTEXTS)
    taken = hull_actions(RolloutSpec(actions, cost, KNOWN_SCALARS), budget, range(start, start + 256))
    assert len(taken) == 256
    spent = [cost.step(actions[place], start + at) / cost.dense(start + at) for at, place in enumerate(taken)]
    assert np.mean(spent) == pytest.approx(budget, abs=0.02)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (("k100-s100-q8", "k090-s100-q8"), ["k090-s100-q8", "expected actions of the bundle", "k010-s050-q4"]),
        (("k010-s050-q4",), ["policy.actions", "k100-s100-q8, dense"]),
    ],
)
def test_other_tags_and_a_set_without_dense_are_refused(tags: tuple[str, ...], words: list[str]) -> None:
    config = made_config(losses={tag: {512: 0.1} for tag in TAGS[1:]})
    with pytest.raises(UsageError) as error:
        _chosen(config, *tags)
    assert all(word in str(error.value) for word in words)
