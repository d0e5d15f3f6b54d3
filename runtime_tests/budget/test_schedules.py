"""Schedules: each holds its budget, and each is what it says it is."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import philox
from helpers.made_configs import made_config
from helpers.plans import ScriptedPolicy, follow
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import BytesCost, Line
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.errors import NumericError, UsageError
from sol_rt.evaluation.quality.oracle import hindsight
from sol_rt.generate.native.plan import Plan

LOGITS = np.linspace(-3, 3, 50, dtype=np.float32)
AXES = ("kv_density", "channel_density", "bits")


def made(
    name: str,
    budget: float | None = None,
    config: SolConfig | None = None,
    policy: ScriptedPolicy | None = None,
    **dial: Any,
) -> Plan:
    return Plan(BytesCost(config or made_config()), Dial(budget, name, **dial), policy=policy)


def relative(config: SolConfig, action: Action, context: int) -> float:
    """Cost of an action in dense steps; a policy of a byte costs nothing to speak of."""
    cost = BytesCost(config)
    return (cost.step(action, context) + cost.policy()) / cost.dense(context)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["uniform", "entropy", "random", "sol"]),
    budget=st.floats(0.4, 1.0),
    seed=st.integers(0, 99),
)
def test_every_schedule_holds_its_budget(name: str, budget: float, seed: int) -> None:
    config = made_config(policy_bytes=1000)
    logits = np.random.default_rng(seed).normal(size=len(config.actions)).astype(np.float32)
    plan = made(name, budget, config, ScriptedPolicy(config, logits), seed=seed)
    follow(plan, 70, logits=LOGITS)
    assert plan.achieved == pytest.approx(budget, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(budget=st.floats(0.45, 0.99), place=st.integers(0, 11), timed=st.booleans(), seed=st.integers(0, 99))
def test_no_policy_breaks_the_budget(budget: float, place: int, timed: bool, seed: int) -> None:
    """One that always wants the same action, and whose run costs a 50th of a dense step."""
    config = made_config(policy_bytes=3 * 10**6)
    cost: Any = BytesCost(config)
    if timed:
        lines = {key: {1.0: Line(variant.weight_bytes / 1e7, 1e-3, 1e-3)} for key, variant in config.variants.items()}
        cost = MeasuredCost(config, CostTable("b", "d", "now", 0.3, lines))
    logits = np.zeros(12, np.float32)
    logits[place] = 1e4
    plan = Plan(cost, Dial(budget, "sol", seed=seed), policy=ScriptedPolicy(config, logits))
    for step in range(150):
        plan.step(300 + step, 7)
        assert plan.steps < 64 or plan.floored or abs(plan.achieved - budget) <= 0.02


@pytest.mark.parametrize("name", ["uniform", "entropy", "random", "sol", "dense"])
def test_full_budget_is_dense(name: str) -> None:
    config = made_config(policy_bytes=1000)
    policy = ScriptedPolicy(config, np.zeros(len(config.actions), np.float32))
    assert set(follow(made(name, 1.0, config, policy), 20, logits=LOGITS)) == {config.dense}
    assert not policy.asked


def test_constant_schedules() -> None:
    config = made_config()
    assert set(follow(made("dense"), 5)) == {config.dense}
    # any KV density will do, the variant must be there
    assert set(follow(made("fixed:k037-s050-q4"), 5)) == {Action(0.37, 0.5, 4)}
    with pytest.raises(UsageError, match="s060-q4"):
        made("fixed:k037-s060-q4")
    with pytest.raises(UsageError, match="k030-s050-q4"):
        made("fixed:fast")


def test_default_schedule() -> None:
    def default(config: SolConfig, budget: float | None = None, *, axis_targets: bool = False) -> str:
        return BytesCost(config).default_schedule(budget, axis_targets=axis_targets)

    assert default(made_config()) == "uniform"
    assert default(made_config(policy_bytes=1)) == "sol"
    losses = {"k100-s100-q4": {512: 0.01}}
    assert default(made_config(losses=losses)) == "hull"
    assert default(made_config(losses=losses), axis_targets=True) == "uniform"
    assert default(made_config(policy_bytes=1, losses=losses)) == "hull"
    assert default(made_config(policy_bytes=1, losses=losses, gain_over_hull=0.01)) == "sol"

    # a policy that wins at some budgets is the default there
    config = made_config(policy_bytes=1, losses=losses, gain_over_hull=0.01, gain_budgets=(0.35, 0.5))
    chosen = {budget: default(config, budget) for budget in (0.34, 0.35, 0.5, 0.51, 1.0, None)}
    assert chosen == {0.34: "hull", 0.35: "sol", 0.5: "sol", 0.51: "hull", 1.0: "hull", None: "hull"}
    assert default(config, axis_targets=True) == "uniform"
    assert default(replace(config, actions=made_config().actions), 0.9) == "sol"  # nothing to compare it with


def test_by_the_clock_a_policy_is_the_default_where_hull_loses_as_much() -> None:
    losses = {"k100-s100-q4": {512: 0.1}, "k100-s050-q4": {512: 0.4}}
    config = made_config((1.0,), (1.0, 0.5), (8, 4), policy_bytes=1, losses=losses, gain_over_hull=0.01)
    milliseconds = {"s100-q8": 10.0, "s100-q4": 7.0, "s050-q4": 6.0, "s050-q8": 9.9}

    def timed(config: SolConfig, policy_ms: float, milliseconds: dict[str, float] = milliseconds) -> MeasuredCost:
        lines = {key: {1.0: Line(taken, 0.0, 0.0)} for key, taken in milliseconds.items()}
        return MeasuredCost(config, CostTable("b", "d", "now", policy_ms, lines))

    read = BytesCost(config)
    dense, full, pruned = (read.step(Action.parse(tag), 512) for tag in ("k100-s100-q8", *losses))
    policy = config.policy
    assert policy is not None
    middles = (pruned + full) / 2 / dense, (full + dense) / 2 / dense  # where hull loses 0.25 and 0.05
    config = replace(config, policy=replace(policy, gain_budgets=middles))
    clock, read = timed(config, 0.0), BytesCost(config)
    assert read.policy_budgets() == middles
    assert clock.policy_budgets() == pytest.approx((0.65, 0.85))
    assert [cost.default_schedule(0.75) for cost in (read, clock)] == ["sol", "sol"]
    for ends, moved in (((0.0, middles[1]), (0.0, 0.85)), ((middles[0], 1.0), (0.65, 1.0))):
        outer = replace(config, policy=replace(policy, gain_budgets=ends))
        assert timed(outer, 0.0).policy_budgets() == pytest.approx(moved)
    # at 0.65 `hull` loses 0.03 nats more by each hundredth of the dense step's time that it goes without
    assert timed(config, 0.033).policy_budgets() == clock.policy_budgets()
    assert timed(config, 0.034).policy_budgets() is None
    above = replace(config, policy=replace(policy, gain_budgets=middles, gain_over_hull=1.0))
    assert timed(above, 0.49).policy_budgets() == clock.policy_budgets()
    assert timed(above, 0.51).policy_budgets() is None  # less than the cheapest action would be left
    slow = timed(config, 0.0, dict.fromkeys(milliseconds, 10.0))
    assert slow.policy_budgets() is None
    assert [slow.default_schedule(budget) for budget in (0.5, 1.0, None)] == ["hull"] * 3
    assert [clock.default_schedule(budget) for budget in (0.64, 0.66, 0.84, 0.86)] == ["hull", "sol", "sol", "hull"]


@pytest.mark.parametrize("budget", [0.45, 0.7])
def test_entropy_spends_where_the_model_was_in_doubt(budget: float) -> None:
    plan = made("entropy", budget)
    random = np.random.default_rng(0)
    spent: dict[bool, list[float]] = {False: [], True: []}
    for step in range(300):
        unsure_now = bool(random.random() < 0.5)
        taken = plan.step(300 + step, 7, logits=LOGITS / 4 if unsure_now else 8 * LOGITS)
        spent[unsure_now].append(taken.relative_cost)
    assert np.mean(spent[True]) > np.mean(spent[False]) + 0.05
    assert plan.achieved == pytest.approx(budget, abs=0.005)


def test_entropy_is_uniform_where_doubt_stays_the_same() -> None:
    assert follow(made("entropy", 0.6), 100, logits=LOGITS) == follow(made("uniform", 0.6), 100)


def test_entropy_needs_logits_and_finite_ones() -> None:
    with pytest.raises(UsageError, match="the schedule entropy needs logits"):
        made("entropy", 0.6).step(300, 7)
    with pytest.raises(NumericError, match="not finite"):
        made("entropy", 0.6).step(300, 7, logits=np.full(50, np.nan))
    for logits in (np.zeros(0), np.zeros(7)):
        with pytest.raises(UsageError, match=f"token 7 of {len(logits)} logits"):
            made("uniform", 0.6).step(300, 7, logits=logits)


def test_uniform_stays_on_neighbouring_settings() -> None:
    config = made_config(kv_densities=(1.0,), channel_densities=(1.0, 0.75, 0.5, 0.25), bits=(8,))
    plan = made("uniform", 0.8, config)
    chosen = follow(plan, 100)
    # 0.8 of the weights lies between 75% and 50% of the channels
    assert {action.channel_density for action in chosen[20:]} == {0.75, 0.5}
    assert plan.achieved == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("context", [100, 2000, 7000])
def test_uniform_turns_down_bits_then_kv_density_then_channel_density(context: int) -> None:
    """No axis goes down before the one ahead of it is at its lowest setting, whatever saves most at the context."""
    config = made_config(
        kv_densities=(1.0, 0.5, 0.1), channel_densities=(1.0, 0.75, 0.5), bits=(8, 6, 4), weight_bytes=70e6
    )
    ends = [Action(1.0, 1.0, 4), Action(0.1, 1.0, 4), Action(0.1, 0.5, 4)]
    corners = [relative(config, action, context) for action in (config.dense, *ends)]
    means = []
    for high, low in itertools.pairwise(corners):
        taken = follow(made("uniform", (high + low) / 2, config), 200, context)[20:]
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
    actions = follow(made("uniform", 0.8), 200)
    assert {(action.kv_density, action.channel_density) for action in actions} == {(1.0, 1.0)}


def test_uniform_without_some_combinations() -> None:
    config = made_config(actions=("k100-s100-q8", "k100-s050-q8", "k010-s050-q4"))
    del config.variants["s100-q4"]
    actions = BytesCost(config).schedule_actions("uniform")
    assert Action(0.1, 1.0, 4) not in actions
    assert Action(0.1, 0.5, 8) in actions
    plan = made("uniform", 0.6, config)
    assert set(follow(plan, 80)) <= set(actions)
    assert plan.achieved == pytest.approx(0.6, abs=0.02)


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
    assert {action.variant for action in BytesCost(config).schedule_actions(name)} <= set(config.variants)
    floor = max(relative(config, Action(0.1, 0.4, 4), at) for at in (context, context + 70))
    budget = min(floor + 0.05 + share * (0.95 - floor), 1.0)
    policy = ScriptedPolicy(config, np.random.default_rng(seed).normal(size=len(tags)).astype(np.float32))
    plan = made(name, budget, config, policy, seed=seed)
    follow(plan, 70, context, LOGITS)
    assert plan.achieved == pytest.approx(budget, abs=0.02)


def test_uniform_of_chosen_actions_mixes_neighbours() -> None:
    """Between two bits it deals out those two, though density levels are there for the narrowest alone."""
    config = made_config(channel_densities=(1.0, 0.75, 0.4), bits=(8, 6, 4), actions=CHOSEN.split(), weight_bytes=70e6)
    for key in set(config.variants) - {Action.parse(tag).variant for tag in CHOSEN.split()}:
        del config.variants[key]
    plan = made("uniform", 0.85, config)
    chosen = follow(plan, 100)
    assert {action.tag for action in chosen[10:]} == {"k100-s100-q8", "k100-s100-q6"}
    assert plan.achieved == pytest.approx(0.85, abs=0.005)


@pytest.mark.parametrize("name", ["uniform", "random", "sol"])
def test_axis_targets(name: str) -> None:
    config = made_config(policy_bytes=1)
    policy = ScriptedPolicy(config, np.arange(len(config.actions), dtype=np.float32))
    chosen = follow(made(name, None, config, policy, seed=1, kv_density=0.4, bits=5), 90)
    assert np.mean([action.kv_density for action in chosen]) == pytest.approx(0.4, abs=0.02)
    assert np.mean([action.bits for action in chosen]) == pytest.approx(5, abs=0.16)
    assert np.mean([action.channel_density for action in chosen]) == pytest.approx(1.0, abs=0.02)


def test_random_is_seeded() -> None:
    runs = [follow(made("random", 0.5, seed=seed), 60) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]
    assert len(Counter(runs[0])) > 5


@settings(max_examples=60, deadline=None)
@given(budget=st.floats(0.35, 0.99), seed=st.integers(0, 2**63 - 1), context=st.integers(200, 8000))
def test_random_draws_what_the_documentation_says(budget: float, seed: int, context: int) -> None:
    """docs/reference/decode-loop.md section 4 and 5, for a first step, in which every useful action is allowed."""
    config = made_config()
    actions = [entry.action for entry in config.actions]
    costs = np.array([relative(config, action, context) for action in actions])
    places = np.flatnonzero((costs < 1) | np.array([action == config.dense for action in actions]))
    target = min(max(budget, costs.min()), costs.max())
    low, high = -500.0, 500.0
    for _ in range(40):
        rate = (low + high) / 2
        shares = np.exp(-rate * costs[places] + (rate * costs[places]).min())
        low, high = (rate, high) if shares @ costs[places] / shares.sum() > target else (low, rate)
    word = philox.words(seed, philox.SCHEDULE, context, np.zeros(1, np.uint64))[0, :1]
    number = float(philox.uniform(word)[0])
    sums = list(itertools.accumulate(shares))
    taken = actions.index(made("random", budget, config, seed=seed).step(context).action)
    expected = next(place for place, total in enumerate(sums) if total > number * sums[-1] - 1e-9)
    assert taken in {places[expected], places[min(expected + 1, len(places) - 1)]}
    if sums[expected] > number * sums[-1] + 1e-9:  # not at an edge
        assert taken == places[expected]


def test_sol_follows_the_policy_where_the_budget_allows() -> None:
    config = made_config(policy_bytes=1)
    actions = [entry.action for entry in config.actions]
    liked = int(np.argmin([abs(relative(config, action, 300) - 0.6) for action in actions]))
    logits = np.zeros(len(actions), np.float32)
    logits[liked] = 9
    counts = Counter(follow(made("sol", 0.6, config, ScriptedPolicy(config, logits)), 100))
    assert counts[actions[liked]] > 80


@settings(max_examples=20, deadline=None)
@given(budget=st.floats(0.5, 0.7), scale=st.floats(0.01, 100), seed=st.integers(0, 2**32))
def test_sol_gains_nearly_what_hindsight_gains_at_its_cost(budget: float, scale: float, seed: int) -> None:
    """Whatever the scale of the logits, up to what the likeliest actions cost: a dear one goes where it gains most."""
    config, steps = made_config((1.0,), (1.0, 0.5), (8, 4), policy_bytes=1), 400
    actions = [entry.action for entry in config.actions]
    logits = np.random.default_rng(seed).standard_normal((steps, len(actions)))
    costs = np.array([relative(config, action, 300) for action in actions])
    policy = ScriptedPolicy(config, np.zeros(len(actions), np.float32))
    plan, chosen = made("sol", budget, config, policy), []
    for row in logits:
        policy.logits = (scale * row).astype(np.float32)
        chosen.append(actions.index(plan.step(300, 7).action))
    rows = np.arange(steps)
    spent = float(costs[chosen].mean())
    best = hindsight(-logits, np.broadcast_to(costs, logits.shape), spent)
    gained, possible = (float(logits[rows, places].mean()) for places in (chosen, best))
    worst = float(logits.min(1).mean())
    assert spent == pytest.approx(budget, abs=0.02)
    assert gained - worst > 0.95 * (possible - worst)


def test_sol_spreads_a_spender_by_multiplier() -> None:
    """A policy that always likes dense best is brought to the budget by the multiplier, seldom by the limit."""
    config, random = made_config(policy_bytes=1), np.random.default_rng(0)
    actions = [entry.action for entry in config.actions]
    liking = np.array([5 * relative(config, action, 300) for action in actions], np.float32)
    policy = ScriptedPolicy(config, liking)
    plan, spent = made("sol", 0.6, config, policy), []
    for step in range(300):
        policy.logits = liking + 0.02 * random.standard_normal(len(liking), np.float32)  # no two steps are quite alike
        spent.append(plan.step(300 + step, 7).relative_cost)
    before = np.cumsum(np.array(spent) - 0.6)[99:-1]  # what was spent over the budget before each step
    window = 1.25 + 0.0075 * (np.arange(101, 301) - 64)  # docs/reference/decode-loop.md section 2
    least, most = min(spent) - 0.6, 1.0 - 0.6
    assert np.sum((before + most > window) | (before + least < -window)) < 20  # steps at which an action was forbidden
    assert plan.achieved == pytest.approx(0.6, abs=0.02)


def test_sol_tells_the_policy_how_things_stand() -> None:
    config = made_config(policy_bytes=1)
    actions = [entry.action for entry in config.actions]
    policy = ScriptedPolicy(config, np.random.default_rng(0).normal(size=len(actions)).astype(np.float32))
    chosen = follow(made("sol", 0.6, config, policy), 40, 512, LOGITS)
    probabilities = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum()
    scalars, previous, step = policy.asked[0]
    assert (previous, step) == (-1, 0)
    assert scalars["entropy"] == pytest.approx(-(probabilities * np.log(probabilities)).sum(), rel=1e-5)
    assert scalars["top_probability"] == pytest.approx(probabilities.max(), rel=1e-5)
    assert scalars["surprise"] == pytest.approx(-np.log(probabilities[7]), rel=1e-5)
    assert scalars["log_context"] == 5.0
    assert scalars["margin"] == pytest.approx(probabilities[-1] - probabilities[-2], rel=1e-4)
    assert (scalars["budget"], scalars["spend_deviation"], scalars["step_fraction"]) == (np.float32(0.6), 0.0, 0.0)
    assert (scalars["previous_cost"], scalars["recent_spend"]) == (1.0, 1.0)
    scalars, previous, step = policy.asked[5]
    assert (step, scalars["step_fraction"]) == (5, 5 / 16)
    assert actions[previous] == chosen[4]
    spent = [relative(config, action, 512 + i) for i, action in enumerate(chosen)]
    assert scalars["spend_deviation"] == pytest.approx(np.mean(spent[:5]) - 0.6, rel=1e-5, abs=1e-6)
    assert scalars["previous_cost"] == pytest.approx(spent[4])
    assert scalars["recent_spend"] == pytest.approx((sum(spent[:5]) + 11) / 16)
    # a new episode begins with step 16
    assert policy.asked[16][1:] == (-1, 0)
    assert policy.asked[16][0]["spend_deviation"] == 0.0
    # but the run goes on
    assert policy.asked[20][0]["recent_spend"] == pytest.approx(np.mean(spent[4:20]))
    assert set(scalars) == set(KNOWN_SCALARS)
    assert (len(policy.asked), policy.fresh) == (40, 1)


def test_without_logits_all_tokens_are_alike_to_a_policy() -> None:
    config = made_config(policy_bytes=1)
    policy = ScriptedPolicy(config, np.zeros(len(config.actions), np.float32))
    made("sol", 0.6, config, policy).step(300, 7)
    scalars = policy.asked[0][0]
    assert scalars["entropy"] == pytest.approx(np.log(config.model.vocab_size), rel=1e-5)
    assert scalars["margin"] == 0.0


def test_a_policy_s_error_and_its_infinite_logits_reach_the_caller() -> None:
    config = made_config(policy_bytes=1)

    def failing(asked: Any) -> np.ndarray:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Plan(BytesCost(config), Dial(0.6, "sol"), policy=failing).step(300)
    with pytest.raises(NumericError, match="non-finite logits at step 0"):
        made("sol", 0.6, config, ScriptedPolicy(config, np.full(len(config.actions), np.inf, np.float32))).step(300)


def test_sol_with_a_policy_that_does_not_know_dense() -> None:
    config = made_config(policy_bytes=1, policy_actions=("k100-s050-q8", "k010-s050-q4"))
    assert BytesCost(config).schedule_actions("sol") == (Action(1.0, 0.5, 8), Action(0.1, 0.5, 4), config.dense)
    plan = made("sol", 0.9, config, ScriptedPolicy(config, np.array([1.0, 0.0], np.float32)))
    follow(plan, 80)
    assert plan.achieved == pytest.approx(0.9, abs=0.02)
