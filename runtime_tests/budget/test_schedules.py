"""Schedules: each holds its budget, and each is what it says it is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.made_configs import made_config
from sol_rt.budget.controller.base import AxisTargets, BaseController
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import BytesCost, Line, LineCost
from sol_rt.budget.dial import make_controller
from sol_rt.budget.schedules import (
    PolicyInput,
    Schedule,
    default_schedule,
    make_schedule,
    policy_budgets,
    schedule_actions,
)
from sol_rt.budget.schedules.random_schedule import tilted
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import PolicySpec, SolConfig
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.engine.distribution import Distribution
from sol_rt.errors import UsageError
from sol_rt.generate.model import SolModel

LOGITS = np.linspace(-3, 3, 50, dtype=np.float32)
DISTRIBUTION = Distribution(LOGITS)
HIDDEN = np.zeros((1, 8), np.float32)
AXES = ("kv_density", "channel_density", "bits")


class ScriptedPolicy:
    """Returns given logits and keeps what it was asked."""

    def __init__(self, spec: PolicySpec, logits: np.ndarray) -> None:
        self.spec = spec
        self.logits = logits
        self.asked: list[tuple[Mapping[str, float], int, int]] = []

    def reset(self) -> None:
        self.asked.clear()

    def decide(
        self, hidden: np.ndarray, token: int, scalars: Mapping[str, float], previous_action: int, step: int
    ) -> np.ndarray:
        self.asked.append((dict(scalars), previous_action, step))
        return self.logits


def follow(schedule: Schedule, controller: BaseController, steps: int, context: int = 300) -> list[Action]:
    chosen = []
    for step in range(steps):
        action = schedule.choose(PolicyInput(context + step, 7, HIDDEN, DISTRIBUTION, step))
        controller.record(action, context + step)
        chosen.append(action)
    return chosen


def made(name: str, budget: float = 1.0, config: SolConfig | None = None, **options: object) -> BaseController:
    config = config or made_config()
    targets = options.get("axis_targets")
    assert targets is None or isinstance(targets, AxisTargets)
    return make_controller(schedule_actions(config, name, targets), BytesCost(config), budget, axis_targets=targets)


def scripted(config: SolConfig, logits: np.ndarray) -> ScriptedPolicy:
    assert config.policy is not None
    return ScriptedPolicy(config.policy, logits)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["uniform", "entropy", "random", "sol"]),
    budget=st.floats(0.4, 1.0),
    seed=st.integers(0, 99),
)
def test_every_schedule_holds_its_budget(name: str, budget: float, seed: int) -> None:
    config = made_config(policy_bytes=1000)
    actions = schedule_actions(config, name)
    controller = Controller(actions, BytesCost(config), budget, policy_cost=name == "sol")
    policy = scripted(config, np.random.default_rng(seed).normal(size=len(actions)).astype(np.float32))
    follow(make_schedule(name, controller, seed=seed, policy=policy), controller, 70)
    assert controller.achieved == pytest.approx(budget, abs=0.02)


@pytest.mark.parametrize("name", ["uniform", "entropy", "random", "sol", "dense"])
def test_full_budget_is_dense(name: str) -> None:
    config = made_config(policy_bytes=1000)
    controller = made(name, 1.0, config)
    policy = scripted(config, np.zeros(len(controller.actions), np.float32))
    assert set(follow(make_schedule(name, controller, policy=policy), controller, 20)) == {config.dense}
    assert not policy.asked


def test_constant_schedules() -> None:
    config = made_config()
    controller = made("dense", 0.5)
    assert set(follow(make_schedule("dense", controller), controller, 5)) == {config.dense}
    # any KV density will do, the variant must be there
    fixed = make_schedule("fixed:k037-s050-q4", controller, variants=list(config.variants))
    assert set(follow(fixed, controller, 5)) == {Action(0.37, 0.5, 4)}
    assert fixed.name == "fixed:k037-s050-q4"
    with pytest.raises(UsageError, match="s060-q4"):
        make_schedule("fixed:k037-s060-q4", controller, variants=list(config.variants))
    with pytest.raises(UsageError, match="k030-s050-q4"):
        make_schedule("fixed:fast", controller)


def test_unknown_schedule_and_missing_policy() -> None:
    with pytest.raises(UsageError, match="uniform"):
        make_schedule("best", made("random"))
    with pytest.raises(UsageError, match="no policy"):
        make_schedule("sol", made("random"))
    with pytest.raises(UsageError, match="no losses"):
        make_schedule("hull", made("random"))


def test_default_schedule() -> None:
    def default(config: SolConfig, budget: float | None = None, axis_targets: AxisTargets | None = None) -> str:
        return default_schedule(config, BytesCost(config), budget, axis_targets)

    assert default(made_config()) == "uniform"
    assert default(made_config(policy_bytes=1)) == "sol"
    losses = {"k100-s100-q4": {512: 0.01}}
    assert default(made_config(losses=losses)) == "hull"
    assert default(made_config(losses=losses), axis_targets=AxisTargets(bits=5)) == "uniform"
    assert default(made_config(policy_bytes=1, losses=losses)) == "hull"
    assert default(made_config(policy_bytes=1, losses=losses, gain_over_hull=0.01)) == "sol"

    # a policy that wins at some budgets is the default there
    config = made_config(policy_bytes=1, losses=losses, gain_over_hull=0.01, gain_budgets=(0.35, 0.5))
    chosen = {budget: default(config, budget) for budget in (0.34, 0.35, 0.5, 0.51, 1.0, None)}
    assert chosen == {0.34: "hull", 0.35: "sol", 0.5: "sol", 0.51: "hull", 1.0: "hull", None: "hull"}
    assert default(config, axis_targets=AxisTargets(bits=5)) == "uniform"
    assert default(replace(config, actions=made_config().actions), 0.9) == "sol"  # nothing to compare it with


def test_by_the_clock_a_policy_is_the_default_where_hull_loses_as_much() -> None:
    losses = {"k100-s100-q4": {512: 0.1}, "k100-s050-q4": {512: 0.4}}
    config = made_config((1.0,), (1.0, 0.5), (8, 4), policy_bytes=1, losses=losses, gain_over_hull=0.01)
    milliseconds = {"k100-s100-q8": 10.0, "k100-s100-q4": 7.0, "k100-s050-q4": 6.0, "k100-s050-q8": 9.9}

    def timed(policy_ms: float, milliseconds: dict[str, float] = milliseconds) -> Any:
        cost: Any = LineCost(config, lambda action: Line(milliseconds[action.tag], 0.0, 0.0), "")
        cost.name, cost.policy = "measured", lambda: policy_ms
        return cost

    clock, read = timed(0.0), BytesCost(config)
    dense, full, pruned = (read.step(Action.parse(tag), 512) for tag in ("k100-s100-q8", *losses))
    assert config.policy is not None
    middles = (pruned + full) / 2 / dense, (full + dense) / 2 / dense  # where hull loses 0.25 and 0.05
    config = replace(config, policy=replace(config.policy, gain_budgets=middles))
    assert policy_budgets(config, read) == middles
    assert policy_budgets(config, clock) == pytest.approx((0.65, 0.85))
    for cost, dominated, name in ((read, {}, "sol"), (clock, {}, "hull"), (read, {config.dense: config.dense}, "hull")):
        model: Any = SimpleNamespace(bundle=SimpleNamespace(config=config), cost=cost, dominated=dominated)
        assert SolModel.default_schedule(model, 0.75) == name  # of the Python engine
    for ends, moved in (((0.0, middles[1]), (0.0, 0.85)), ((middles[0], 1.0), (0.65, 1.0))):
        outer = replace(config, policy=replace(config.policy, gain_budgets=ends))
        assert policy_budgets(outer, clock) == pytest.approx(moved)
    # at 0.65 `hull` loses 0.03 nats more by each hundredth of the dense step's time that it goes without
    assert policy_budgets(config, timed(0.033)) == policy_budgets(config, clock)
    assert policy_budgets(config, timed(0.034)) is None
    above = replace(config, policy=replace(config.policy, gain_over_hull=1.0))
    assert policy_budgets(above, timed(0.49)) == policy_budgets(config, clock)
    assert policy_budgets(above, timed(0.51)) is None  # less than the cheapest action would be left
    slow = timed(0.0, dict.fromkeys(milliseconds, 10.0))
    assert policy_budgets(config, slow) is None
    assert [default_schedule(config, slow, budget) for budget in (0.5, 1.0, None)] == ["hull"] * 3
    assert [default_schedule(config, clock, budget) for budget in (0.64, 0.66, 0.84, 0.86)] == [
        "hull",
        "sol",
        "sol",
        "hull",
    ]


@pytest.mark.parametrize("budget", [0.45, 0.7])
def test_entropy_spends_where_the_model_was_in_doubt(budget: float) -> None:
    config = made_config()
    controller = made("entropy", budget, config)
    schedule = make_schedule("entropy", controller)
    random = np.random.default_rng(0)
    sure, unsure = Distribution(8 * LOGITS), Distribution(LOGITS / 4)
    spent: dict[bool, list[float]] = {False: [], True: []}
    for step in range(300):
        unsure_now = bool(random.random() < 0.5)
        action = schedule.choose(PolicyInput(300 + step, 7, HIDDEN, unsure if unsure_now else sure, step))
        spent[unsure_now].append(controller.record(action, 300 + step).relative)
    assert np.mean(spent[True]) > np.mean(spent[False]) + 0.05
    assert controller.achieved == pytest.approx(budget, abs=0.005)


def test_entropy_is_uniform_where_doubt_stays_the_same() -> None:
    config = made_config()
    one, other = made("entropy", 0.6, config), made("uniform", 0.6, config)
    assert follow(make_schedule("entropy", one), one, 100) == follow(make_schedule("uniform", other), other, 100)


def test_uniform_stays_on_neighbouring_settings() -> None:
    config = made_config(kv_densities=(1.0,), channel_densities=(1.0, 0.75, 0.5, 0.25), bits=(8,))
    controller = made("uniform", 0.8, config)
    chosen = follow(make_schedule("uniform", controller), controller, 100)
    # 0.8 of the weights lies between 75% and 50% of the channels
    assert {action.channel_density for action in chosen[20:]} == {0.75, 0.5}
    assert controller.achieved == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("context", [100, 2000, 7000])
def test_uniform_turns_down_bits_then_kv_density_then_channel_density(context: int) -> None:
    """No axis goes down before the one ahead of it is at its lowest setting, whatever saves most at the context."""
    config = made_config(
        kv_densities=(1.0, 0.5, 0.1), channel_densities=(1.0, 0.75, 0.5), bits=(8, 6, 4), weight_bytes=70e6
    )
    actions, cost = schedule_actions(config, "uniform"), BytesCost(config)
    ends = [Action(1.0, 1.0, 4), Action(0.1, 1.0, 4), Action(0.1, 0.5, 4)]
    corners = [cost.step(action, context) / cost.dense(context) for action in (config.dense, *ends)]
    means = []
    for high, low in itertools.pairwise(corners):
        controller = Controller(actions, cost, (high + low) / 2)
        taken = follow(make_schedule("uniform", controller), controller, 200, context)[20:]
        means.append([float(np.mean([getattr(action, axis) for action in taken])) for axis in AXES])
    in_bits, in_kv, in_channels = means
    assert in_bits[0] == in_bits[1] == 1.0
    assert 4.0 < in_bits[2] < 8.0
    # the controller's limits cost a step in a hundred
    assert in_kv[1:] == pytest.approx([1.0, 4.0], abs=0.1)
    assert 0.1 < in_kv[0] < 1.0
    assert (in_channels[0], in_channels[2]) == pytest.approx((0.1, 4.0), abs=0.1)
    assert 0.5 < in_channels[1] < 1.0


def test_uniform_leaves_pages_and_channels_alone_while_bits_suffice() -> None:
    controller = made("uniform", 0.8)
    actions = follow(make_schedule("uniform", controller), controller, 200)
    assert {(action.kv_density, action.channel_density) for action in actions} == {(1.0, 1.0)}


def test_uniform_without_some_combinations() -> None:
    config = made_config(actions=("k100-s100-q8", "k100-s050-q8", "k010-s050-q4"))
    del config.variants["s100-q4"]
    controller = made("uniform", 0.6, config)
    assert Action(0.1, 1.0, 4) not in controller.actions
    assert Action(0.1, 0.5, 8) in controller.actions
    follow(make_schedule("uniform", controller), controller, 80)
    assert controller.achieved == pytest.approx(0.6, abs=0.02)


CHOSEN = (
    "k100-s100-q8 k100-s100-q6 k050-s100-q6 k100-s100-q4 k025-s100-q4 k100-s075-q4 k010-s075-q4 k100-s040-q4 "
    "k010-s040-q4"
)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["uniform", "entropy", "random", "sol"]),
    share=st.floats(0.0, 1.0),
    context=st.sampled_from([300, 4000]),
    seed=st.integers(0, 99),
)
def test_every_schedule_holds_its_budget_with_chosen_actions(name: str, share: float, context: int, seed: int) -> None:
    """Actions that are no grid: bits without most channel densities, channel densities without most KV densities."""
    tags = CHOSEN.split()
    config = made_config(
        channel_densities=(1.0, 0.75, 0.4), bits=(8, 6, 4), policy_bytes=1000, actions=tags, policy_actions=tags
    )
    for key in set(config.variants) - {Action.parse(tag).variant for tag in tags}:
        del config.variants[key]
    actions, cost = schedule_actions(config, name), BytesCost(config)
    assert {action.variant for action in actions} <= set(config.variants)
    floor = max(cost.step(Action(0.1, 0.4, 4), at) / cost.dense(at) for at in (context, context + 70))
    budget = floor + 0.05 + share * (0.95 - floor)
    controller = Controller(actions, cost, min(budget, 1.0), policy_cost=name == "sol")
    policy = scripted(config, np.random.default_rng(seed).normal(size=len(tags)).astype(np.float32))
    follow(make_schedule(name, controller, seed=seed, policy=policy), controller, 70, context)
    assert controller.achieved == pytest.approx(min(budget, 1.0), abs=0.02)


def test_uniform_of_chosen_actions_mixes_neighbours() -> None:
    """Between two bits it deals out those two, though density levels are there for the narrowest alone."""
    config = made_config(channel_densities=(1.0, 0.75, 0.4), bits=(8, 6, 4), actions=CHOSEN.split(), weight_bytes=70e6)
    for key in set(config.variants) - {Action.parse(tag).variant for tag in CHOSEN.split()}:
        del config.variants[key]
    controller = made("uniform", 0.85, config)
    chosen = follow(make_schedule("uniform", controller), controller, 100)
    assert {action.tag for action in chosen[10:]} == {"k100-s100-q8", "k100-s100-q6"}
    assert controller.achieved == pytest.approx(0.85, abs=0.005)


@pytest.mark.parametrize("name", ["uniform", "random", "sol"])
def test_axis_targets(name: str) -> None:
    config = made_config(policy_bytes=1)
    controller = made(name, 1.0, config, axis_targets=AxisTargets(kv_density=0.4, bits=5))
    policy = scripted(config, np.arange(len(controller.actions), dtype=np.float32))
    chosen = follow(make_schedule(name, controller, seed=1, policy=policy), controller, 90)
    assert np.mean([action.kv_density for action in chosen]) == pytest.approx(0.4, abs=0.02)
    assert np.mean([action.bits for action in chosen]) == pytest.approx(5, abs=0.16)
    assert np.mean([action.channel_density for action in chosen]) == pytest.approx(1.0, abs=0.02)


def test_random_is_seeded() -> None:
    runs = []
    for seed in (3, 3, 4):
        controller = made("random", 0.5)
        runs.append(follow(make_schedule("random", controller, seed=seed), controller, 60))
    assert runs[0] == runs[1] != runs[2]
    assert len(Counter(runs[0])) > 5


@given(st.lists(st.floats(0.05, 1.5), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 5))
def test_tilted_has_the_expected_cost(values: list[float], share: float, extra: int) -> None:
    costs = np.array(values + [values[0]] * extra)
    target = costs.min() + share * (costs.max() - costs.min())
    shares = tilted(costs, target)
    assert shares.sum() == pytest.approx(1)
    assert shares.min() >= 0
    assert shares @ costs == pytest.approx(target, abs=0.02)


def test_sol_follows_the_policy_where_the_budget_allows() -> None:
    config = made_config(policy_bytes=1)
    controller = made("sol", 0.6, config)
    liked = int(np.argmin(np.abs(controller.relative_costs(300) - 0.6)))
    logits = np.zeros(len(controller.actions), np.float32)
    logits[liked] = 9
    counts = Counter(follow(make_schedule("sol", controller, policy=scripted(config, logits)), controller, 100))
    assert counts[controller.actions[liked]] > 80


def test_sol_spreads_a_spender_by_multiplier() -> None:
    """A policy that always likes dense best is brought to the budget by the multiplier, seldom by the limit."""
    config, random = made_config(policy_bytes=1), np.random.default_rng(0)
    controller = made("sol", 0.6, config)
    liking = 5 * controller.relative_costs(300).astype(np.float32)
    policy = scripted(config, liking)
    schedule = make_schedule("sol", controller, policy=policy)
    blocked = 0
    for step in range(300):
        policy.logits = liking + 0.02 * random.standard_normal(len(liking), np.float32)  # no two steps are quite alike
        blocked += step >= 100 and not controller.allowed(300 + step).all()
        controller.record(schedule.choose(PolicyInput(300 + step, 7, HIDDEN, DISTRIBUTION, step)), 300 + step)
    assert blocked < 20
    assert controller.achieved == pytest.approx(0.6, abs=0.02)


def test_sol_tells_the_policy_how_things_stand() -> None:
    config = made_config(policy_bytes=1)
    controller = made("sol", 0.6, config)
    policy = scripted(config, np.random.default_rng(0).normal(size=len(controller.actions)).astype(np.float32))
    chosen = follow(make_schedule("sol", controller, policy=policy), controller, 40, context=512)
    probabilities = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum()
    scalars, previous, step = policy.asked[0]
    assert (previous, step) == (-1, 0)
    assert scalars["entropy"] == pytest.approx(-(probabilities * np.log(probabilities)).sum(), rel=1e-5)
    assert scalars["top_probability"] == pytest.approx(probabilities.max(), rel=1e-5)
    assert scalars["surprise"] == pytest.approx(-np.log(probabilities[7]), rel=1e-5)
    assert scalars["log_context"] == 5.0
    assert scalars["margin"] == pytest.approx(probabilities[-1] - probabilities[-2], rel=1e-4)
    assert (scalars["budget"], scalars["spend_deviation"], scalars["step_fraction"]) == (0.6, 0.0, 0.0)
    assert (scalars["previous_cost"], scalars["recent_spend"]) == (1.0, 1.0)
    scalars, previous, step = policy.asked[5]
    assert (step, scalars["step_fraction"]) == (5, 5 / 16)
    assert controller.actions[previous] == chosen[4]
    spent = [controller.relative_costs(512 + i)[controller.actions.index(chosen[i])] for i in range(40)]
    assert scalars["spend_deviation"] == pytest.approx(np.mean(spent[:5]) - 0.6)
    assert scalars["previous_cost"] == pytest.approx(spent[4])
    assert scalars["recent_spend"] == pytest.approx((sum(spent[:5]) + 11) / 16)
    # a new episode begins with step 16
    assert policy.asked[16][1:] == (-1, 0)
    assert policy.asked[16][0]["spend_deviation"] == 0.0
    # but the run goes on
    assert policy.asked[20][0]["recent_spend"] == pytest.approx(np.mean(spent[4:20]))
    assert set(scalars) == set(KNOWN_SCALARS)
    assert len(policy.asked) == 40


def test_sol_with_a_policy_that_does_not_know_dense() -> None:
    config = made_config(policy_bytes=1, policy_actions=("k100-s050-q8", "k010-s050-q4"))
    actions = schedule_actions(config, "sol")
    assert actions == (Action(1.0, 0.5, 8), Action(0.1, 0.5, 4), config.dense)
    controller = Controller(actions, BytesCost(config), 0.9)
    follow(make_schedule("sol", controller, policy=scripted(config, np.array([1.0, 0.0], np.float32))), controller, 80)
    assert controller.achieved == pytest.approx(0.9, abs=0.02)


def test_sol_needs_the_hidden_state() -> None:
    config = made_config(policy_bytes=1)
    controller = made("sol", 0.6, config)
    schedule = make_schedule("sol", controller, policy=scripted(config, np.zeros(len(controller.actions), np.float32)))
    with pytest.raises(UsageError, match="hidden"):
        schedule.choose(PolicyInput(300, 7, None, DISTRIBUTION, 0))
