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
from helpers.cost_tables import table_for
from helpers.made_configs import made_config, with_losses
from helpers.plans import ScriptedPolicy, follow
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import BytesCost, Line
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.errors import NumericError, UsageError
from sol_rt.generate.native.plan import Asked, Plan

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


class RandomPolicy(ScriptedPolicy):
    """Returns other logits at every step."""

    def __init__(self, config: SolConfig, seed: int) -> None:
        assert config.policy is not None
        super().__init__(config, np.zeros(len(config.policy.actions), np.float32))
        self._random = np.random.default_rng(seed)

    def __call__(self, asked: Asked) -> np.ndarray:
        super().__call__(asked)
        return self._random.standard_normal(len(self.logits)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["uniform", "entropy", "random", "sol"]),
    budget=st.floats(0.4, 1.0),
    seed=st.integers(0, 99),
)
def test_every_schedule_holds_its_budget(name: str, budget: float, seed: int) -> None:
    config = with_losses(made_config(policy_bytes=1000))
    plan = made(name, budget, config, RandomPolicy(config, seed), seed=seed)
    follow(plan, 70, logits=LOGITS)
    assert plan.achieved == pytest.approx(budget, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(budget=st.floats(0.45, 0.99), place=st.integers(0, 11), timed=st.booleans(), seed=st.integers(0, 99))
def test_no_policy_breaks_the_budget(budget: float, place: int, timed: bool, seed: int) -> None:
    """One that wants an action ever more, or for long spells, and whose run costs a 50th of a dense step."""
    config = with_losses(made_config(policy_bytes=3 * 10**6))
    cost: Any = BytesCost(config)
    if timed:
        lines = {key: {1.0: Line(variant.weight_bytes / 1e7, 1e-3, 1e-3)} for key, variant in config.variants.items()}
        cost = MeasuredCost(config, CostTable("b", "d", "now", 0.3, lines))
    policy = ScriptedPolicy(config, np.zeros(12, np.float32))
    plan = Plan(cost, Dial(budget, "sol"), policy=policy)
    for step in range(150):
        policy.logits[place] = step if seed % 2 else np.sin(step * seed / 99)
        plan.step(300 + step, 7)
        assert plan.steps < 64 or plan.floored or abs(plan.achieved - budget) <= 0.02


@pytest.mark.parametrize("name", ["uniform", "entropy", "random", "sol", "dense"])
def test_full_budget_is_dense(name: str) -> None:
    config = with_losses(made_config(policy_bytes=1000))
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
    def default(config: SolConfig, *, axis_targets: bool = False) -> str:
        return BytesCost(config).default_schedule(axis_targets=axis_targets)

    bare, told = made_config(), made_config(policy_bytes=1)
    assert [default(config) for config in (bare, told)] == ["uniform"] * 2  # without losses there is no hull
    assert [default(with_losses(config)) for config in (bare, told)] == ["hull", "sol"]
    assert [default(with_losses(config), axis_targets=True) for config in (bare, told)] == ["uniform"] * 2


@pytest.mark.parametrize(("share", "schedule"), [(0.029, "sol"), (0.031, "hull"), (0.1, "hull")])
def test_sol_is_not_the_default_where_its_policy_takes_long(share: float, schedule: str) -> None:
    """The share is of a dense step at 512 tokens; the table's times depend on the context."""
    config = with_losses(made_config(policy_bytes=1))
    dense = MeasuredCost(config, table_for(config)).dense(512)
    cost = MeasuredCost(config, table_for(config, policy_ms=share * dense))
    assert cost.default_schedule() == schedule
    assert cost.default_schedule(axis_targets=True) == "uniform"
    policy = ScriptedPolicy(config, np.zeros(len(config.actions), np.float32))
    follow(Plan(cost, Dial(0.7), policy=policy), 64)
    assert bool(policy.asked) == (schedule == "sol")
    follow(Plan(cost, Dial(0.7, "sol"), policy=policy), 64)
    assert policy.asked
    told = f"schedule sol: a run of the policy takes {100 * share:.0f}% of a dense step's time; hull, the default here,"
    assert cost.schedule_note("sol").startswith(told) == (schedule == "hull")
    assert [cost.schedule_note(name) for name in ("hull", "uniform", "")] == [""] * 3
    assert bool(cost.schedule_note("sol")) == (schedule == "hull")


def test_a_policy_without_measured_times_is_the_default() -> None:
    config = with_losses(made_config(policy_bytes=10**8))
    assert BytesCost(config).policy() > 0.5 * BytesCost(config).dense(512)
    assert BytesCost(config).default_schedule() == "sol"
    assert BytesCost(config).schedule_note("sol") == ""


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
    config = with_losses(config)
    for key in set(config.variants) - {Action.parse(tag).variant for tag in tags}:
        del config.variants[key]
    assert {action.variant for action in BytesCost(config).schedule_actions(name)} <= set(config.variants)
    floor = max(relative(config, Action(0.1, 0.4, 4), at) for at in (context, context + 70))
    budget = min(floor + 0.05 + share * (0.95 - floor), 1.0)
    plan = made(name, budget, config, RandomPolicy(config, seed), seed=seed)
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


@pytest.mark.parametrize("name", ["uniform", "random"])
def test_axis_targets(name: str) -> None:
    chosen = follow(made(name, seed=1, kv_density=0.4, bits=5), 90)
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


@settings(max_examples=40, deadline=None)
@given(
    budget=st.floats(0.3, 1.0),
    context=st.integers(16, 7000),
    steps=st.integers(1, 200),
    scale=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_sol_is_hull_where_the_policy_sees_no_difference_between_steps(
    budget: float, context: int, steps: int, scale: float, seed: int
) -> None:
    """Equal logits, or a step's own number on top of actions' constant ones: action for action."""
    config, random = with_losses(made_config(policy_bytes=0)), np.random.default_rng(seed)
    constant = (scale * random.integers(-9, 9, len(config.actions))).astype(np.float32)
    policy = ScriptedPolicy(config, constant)
    hull, sol = made("hull", budget, config), made("sol", budget, config, policy)
    for step in range(steps):
        policy.logits = constant + np.float32(random.integers(-9, 9))
        assert sol.step(context + step, 7).action == hull.step(context + step, 7).action
    assert sol.achieved == hull.achieved


@pytest.mark.parametrize("dial", [{"max_loss": 0.02}, {"tokens_per_second": 130.0}])
def test_sol_holds_a_loss_and_a_rate_as_hull_does(dial: dict[str, float]) -> None:
    config = with_losses(made_config(policy_bytes=0))
    lines = {key: {1.0: Line(variant.weight_bytes / 1.5e7, 1e-3, 1e-3)} for key, variant in config.variants.items()}
    cost = MeasuredCost(config, CostTable("b", "d", "now", 0.0, lines))
    policy = ScriptedPolicy(config, np.ones(len(config.actions), np.float32))
    hull, sol = (Plan(cost, Dial(schedule=name, **dial), policy=policy) for name in ("hull", "sol"))
    assert follow(hull, 150) == follow(sol, 150)
    assert len(policy.asked) > 100


@settings(max_examples=20, deadline=None)
@given(budget=st.floats(0.6, 0.9), scale=st.floats(0.01, 100), seed=st.integers(0, 2**32))
def test_sol_gives_the_dear_action_to_the_steps_that_it_helps_most(budget: float, scale: float, seed: int) -> None:
    """Whatever the scale of the logits: most of what the best choice of as many steps in hindsight gains."""
    config, steps = with_losses(made_config((1.0,), (1.0,), (8, 4), policy_bytes=0)), 400
    random, policy = np.random.default_rng(seed), ScriptedPolicy(config, np.zeros(2, np.float32))
    plan, advantages, chosen = made("sol", budget, config, policy), [], []
    for step in range(steps):
        advantages.append(float(random.standard_normal()))
        policy.logits = np.array([scale * advantages[-1], 0], np.float32)
        chosen.append(plan.step(300 + step, 7).action == config.dense)
    assert plan.achieved == pytest.approx(budget, abs=0.01)
    gains, spent = np.array(advantages), np.array(chosen)
    assert gains[spent].sum() > 0.7 * np.sort(gains)[-int(spent.sum()) :].sum()


def test_sol_follows_the_order_of_logits_alone() -> None:
    config = with_losses(made_config((1.0,), (1.0,), (8, 4), policy_bytes=0))
    advantages = np.random.default_rng(1).standard_normal(150)
    runs = []
    for moved in (advantages, np.exp(3 * advantages), -advantages):
        policy = ScriptedPolicy(config, np.zeros(2, np.float32))
        plan, chosen = made("sol", 0.75, config, policy), []
        for step, advantage in enumerate(moved):
            policy.logits = np.array([advantage, 0], np.float32)
            chosen.append(plan.step(300 + step, 7).action)
        runs.append(chosen)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("spell", [10, 40, 80])
@pytest.mark.parametrize("budget", [0.5, 0.6, 0.8])
def test_sol_takes_as_many_dear_steps_as_hull(budget: float, spell: int) -> None:
    """Up to four, and no third action, also where the controller refuses what the policy wants for a spell."""
    config, cheap = made_config(policy_bytes=0), Action(0.1, 0.5, 4)
    entries = [replace(entry, loss=0.1 if entry.action == cheap else 1.0) for entry in config.actions]
    config = replace(config, actions=tuple(entries))
    policy = ScriptedPolicy(config, np.zeros(len(entries), np.float32))
    hull, sol = made("hull", budget, config), made("sol", budget, config, policy)
    ahead, furthest = 0, 0
    for step in range(300):
        policy.logits[0] = step if step // spell % 2 == 0 else -step
        mine, other = (plan.step(300 + step, 7).action for plan in (sol, hull))
        assert {mine, other} <= {cheap, config.dense}
        ahead += (mine == config.dense) - (other == config.dense)
        furthest = max(furthest, abs(ahead))
        assert abs(ahead) <= 4
    assert furthest >= 2


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_row_of_one_action_is_longer_than_hull_s_by_12_steps_at_most(share: float) -> None:
    """Also where the policy likes either action ever less."""
    config = with_losses(made_config((1.0,), (1.0,), (8, 6), policy_bytes=0))
    cheap = relative(config, Action(1.0, 1.0, 6), 300)
    for sign in (1, -1):
        policy = ScriptedPolicy(config, np.zeros(2, np.float32))
        plan, taken = made("sol", cheap + share * (1 - cheap), config, policy), []
        for step in range(200):
            policy.logits[0] = sign * step
            taken.append(plan.step(300, 7).action)
        rows = [(action, len(list(row))) for action, row in itertools.groupby(taken)]
        assert max(length for action, length in rows if action != config.dense) <= 1 / share + 13
        assert max(length for action, length in rows if action == config.dense) <= 1 / (1 - share) + 13


def test_sol_owes_a_cost_where_its_two_actions_change() -> None:
    """The policy wants the dear one of two that differ little, and the cheap one of two that differ much."""
    tags = ("k100-s100-q8", "k010-s100-q4", "k010-s050-q4")
    config = with_losses(made_config(policy_bytes=0, actions=tags))
    policy = ScriptedPolicy(config, np.zeros(3, np.float32))
    _, middle, cheap = (relative(config, Action.parse(tag), 500) for tag in tags)
    budgets = (cheap + middle) / 2, (1 + middle) / 2
    plan, spent = made("sol", budgets[0], config, policy), 0.0
    for step in range(600):
        if step % 20 == 0:
            plan.set_budget(budgets[step // 20 % 2])
        policy.logits[1] = step
        spent += plan.step(300 + step % 2, 7).relative_cost - budgets[step // 20 % 2]
        assert abs(spent) < 5 * (1 - middle)


def test_sol_asks_where_two_actions_share_the_steps() -> None:
    """With the policy's run a budget just over an action's own cost is one between it and a cheaper one."""
    config = with_losses(made_config((1.0,), (1.0, 0.5), (8, 4), policy_bytes=3 * 10**6))
    cost, policy = BytesCost(config), RandomPolicy(config, 0)
    full, pruned = Action(1.0, 1.0, 4), Action(1.0, 0.5, 4)
    taken = follow(made("sol", (cost.step(full, 300) + cost.policy() / 2) / cost.dense(300), config, policy), 60)
    assert set(taken) == {full, pruned}
    assert len(policy.asked) == 60
    assert set(follow(made("sol", 0.1, config, RandomPolicy(config, 0)), 60)) == {pruned}
    policy.asked.clear()
    follow(made("sol", 0.1, config, policy), 60)
    assert not policy.asked


def test_between_kv_densities_sol_is_hull_and_asks_nobody() -> None:
    config = with_losses(made_config((1.0, 0.3), (1.0,), (8,), policy_bytes=3 * 10**6))
    policy, cost = RandomPolicy(config, 0), BytesCost(config)
    cheap = cost.step(Action(0.3, 1.0, 8), 2000) / cost.dense(2000)
    plans = [made(name, (1 + cheap) / 2, config, policy if name == "sol" else None) for name in ("sol", "hull")]
    steps = [[plan.step(2000 + number, 7) for number in range(60)] for plan in plans]
    assert [(step.action, step.cost) for step in steps[0]] == [(step.action, step.cost) for step in steps[1]]
    assert len({step.action for step in steps[0]}) == 2
    assert not policy.asked


@pytest.mark.parametrize(
    ("config", "dial", "message"),
    [
        (made_config(policy_bytes=1), {"budget": 0.6}, "sol: no losses of this bundle's actions were measured"),
        (with_losses(made_config(policy_bytes=1)), {"bits": 5}, "sol: holds a budget, a rate or a loss; use uniform"),
        (with_losses(made_config()), {"budget": 0.6}, "sol: this bundle has no policy; use hull"),
        (with_losses(made_config(policy_bytes=1)), {"tokens_per_second": 9}, "no times measured on this device"),
    ],
)
def test_sol_refuses_what_hull_refuses(config: SolConfig, dial: dict[str, float], message: str) -> None:
    policy = ScriptedPolicy(config, np.zeros(12, np.float32)) if config.policy else None
    with pytest.raises(UsageError, match=message):
        Plan(BytesCost(config), Dial(schedule="sol", **dial), policy=policy)


def test_sol_tells_the_policy_how_things_stand() -> None:
    config = with_losses(made_config(policy_bytes=1))
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
    config = with_losses(made_config(policy_bytes=1))
    policy = ScriptedPolicy(config, np.zeros(len(config.actions), np.float32))
    made("sol", 0.6, config, policy).step(300, 7)
    scalars = policy.asked[0][0]
    assert scalars["entropy"] == pytest.approx(np.log(config.model.vocab_size), rel=1e-5)
    assert scalars["margin"] == 0.0


def test_a_policy_s_error_and_its_infinite_logits_reach_the_caller() -> None:
    config = with_losses(made_config(policy_bytes=1))

    def failing(asked: Any) -> np.ndarray:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Plan(BytesCost(config), Dial(0.6, "sol"), policy=failing).step(300)
    with pytest.raises(NumericError, match="non-finite logits at step 0"):
        made("sol", 0.6, config, ScriptedPolicy(config, np.full(len(config.actions), np.inf, np.float32))).step(300)


def test_sol_is_hull_between_actions_of_which_the_policy_does_not_know_one() -> None:
    known = "k100-s100-q4", "k100-s050-q4"
    config = with_losses(made_config((1.0,), (1.0, 0.5), (8, 4), policy_bytes=0, policy_actions=known))
    costs = [relative(config, Action(1.0, 1.0, bits), 300) for bits in (8, 4)]
    for budget, knows in ((sum(costs) / 2, False), (costs[1] - 0.1, True)):
        policy = RandomPolicy(config, 0)
        hull, sol = (follow(made(name, budget, config, policy), 80) for name in ("hull", "sol"))
        assert (hull == sol) is not knows
        assert bool(policy.asked) is knows
