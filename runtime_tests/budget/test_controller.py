"""The controller's promise: whatever picks the actions, what was asked for is held from 64 decode steps on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.made_configs import made_config
from sol_rt.budget.controller.base import AxisTargets, BaseController
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import BytesCost, CostModel, Line
from sol_rt.budget.cost.calibration_table import CalibratedCost, CalibrationTable
from sol_rt.budget.dial import make_controller
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import UsageError

TOLERANCE = 0.02
Pick = Callable[[np.ndarray, np.ndarray, np.random.Generator, int], int]
"""(allowed, relative costs, random, step) -> index of an allowed action."""


def cheapest(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(np.argmin(np.where(allowed, costs, np.inf)))


def dearest(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(np.argmax(np.where(allowed, costs, -np.inf)))


def anything(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(random.choice(np.flatnonzero(allowed)))


def swinging(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    """Long stretches of one extreme, then of the other: the worst to be in front of an end."""
    return (cheapest if step // 37 % 2 else dearest)(allowed, costs, random, step)


def waves(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    """Eight steps of one extreme, then eight of the other."""
    return (dearest if step % 16 > 7 else cheapest)(allowed, costs, random, step)


def one_action(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(np.flatnonzero(allowed)[0])


PICKS = (cheapest, dearest, anything, swinging, waves, one_action)


def calibrated(config: SolConfig, random: np.random.Generator) -> CalibratedCost:
    """A device where savings are ragged: some actions cost more than dense, none is free."""
    lines: dict[str, dict[int, Line]] = {}
    for key, variant in config.variants.items():
        fixed = variant.weight_bytes / 1e7 * float(random.uniform(0.7, 1.3))
        lines[key] = {
            1.0: Line(fixed, 1e-3, 0.0),
            0.5: Line(fixed + float(random.uniform(0, 2)), 1e-3, 4e-3),
            0.1: Line(fixed + float(random.uniform(0, 2)), 1e-3, 4e-3),
        }
    dense = lines[config.dense.variant][1.0].fixed
    table = CalibrationTable("b" * 64, "device", "now", 0.02 * dense, lines)
    return CalibratedCost(config, table)


def run(controller: BaseController, pick: Pick, context: int, steps: int, seed: int) -> float:
    """Largest |achieved - requested| wherever the text may end from 64 steps on."""
    random = np.random.default_rng(seed)
    worst = 0.0
    for step in range(steps):
        allowed = controller.allowed(context)
        assert allowed.any()
        assert [controller.allows(index, context) for index in range(len(allowed))] == allowed.tolist()
        index = pick(allowed, controller.relative_costs(context), random, step)
        assert allowed[index]
        controller.record(controller.actions[index], context)
        context += 1
        worst = max(worst, error(controller))
    return worst


def error(controller: BaseController) -> float:
    assert controller.requested is not None
    return abs(controller.achieved - controller.requested) if controller.steps >= 64 else 0.0


def actions_of(config: SolConfig) -> list[Action]:
    return [entry.action for entry in config.actions]


budgets = st.floats(0.05, 1.0)
contexts = st.one_of(st.integers(0, 200), st.integers(0, 8000))


@settings(max_examples=120, deadline=None)
@given(
    budget=budgets,
    context=contexts,
    steps=st.integers(64, 260),
    pick=st.sampled_from(PICKS),
    policy=st.booleans(),
    weights=st.sampled_from([2e6, 147e6, 4e9]),
    seed=st.integers(0, 1000),
)
def test_budget_holds_with_costs_in_bytes(
    budget: float, context: int, steps: int, pick: Pick, policy: bool, weights: float, seed: int
) -> None:
    config = made_config(weight_bytes=weights, policy_bytes=int(0.02 * weights))
    cost = BytesCost(config)
    controller = Controller(actions_of(config), cost, budget, policy_cost=policy)
    worst = run(controller, pick, context, steps, seed)
    if controller.floored:
        assert budget < max(controller.floor(at) for at in range(context, context + steps))
        return
    assert worst <= TOLERANCE


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(
    budget=budgets,
    context=contexts,
    steps=st.integers(64, 260),
    pick=st.sampled_from(PICKS),
    seed=st.integers(0, 1000),
)
def test_budget_holds_with_measured_costs(budget: float, context: int, steps: int, pick: Pick, seed: int) -> None:
    config = made_config()
    cost = calibrated(config, np.random.default_rng(seed))
    controller = Controller(actions_of(config), cost, budget, policy_cost=True)
    worst = run(controller, pick, context, steps, seed)
    if not controller.floored:
        assert worst <= TOLERANCE


def test_budget_of_one_is_dense_only() -> None:
    config = made_config(policy_bytes=10**7)
    controller = Controller(actions_of(config), BytesCost(config), 1.0, policy_cost=True)
    assert controller.dense_only
    for step in range(70):
        allowed = controller.allowed(100 + step)
        assert [action for action, good in zip(controller.actions, allowed, strict=True) if good] == [config.dense]
        assert controller.record(config.dense, 100 + step).relative == 1.0
    assert (controller.achieved, controller.requested, controller.floored) == (1.0, 1.0, False)


def test_budget_below_the_floor_is_served_by_the_cheapest_and_said() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.1)
    for context in range(500, 600):
        allowed = controller.allowed(context)
        costs = controller.relative_costs(context)
        assert (costs[allowed] == costs.min()).all()
        controller.record(controller.actions[dearest(allowed, costs, np.random.default_rng(0), 0)], context)
    assert controller.floored
    assert controller.requested == 0.1
    assert controller.achieved == pytest.approx(controller.floor(550), abs=0.01)


def test_a_budget_in_reach_is_not_floored() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.6)
    run(controller, anything, 500, 100, 1)
    assert not controller.floored


def test_actions_that_save_nothing_are_not_offered() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.9)
    allowed = dict(zip(controller.actions, controller.allowed(10), strict=True))
    # at ten tokens every KV density reads everything
    assert not allowed[Action(0.1, 1.0, 8)]
    assert allowed[config.dense]


def test_target_makes_up_for_what_was_spent() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.6)
    assert controller.target(300) == pytest.approx(0.6)
    controller.record(config.dense, 300)
    assert controller.target(301) == pytest.approx(0.6 - 0.4 / 8, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(60, 150), pick=st.sampled_from(PICKS), seed=st.integers(0, 1000), context=contexts)
def test_rate_is_held_where_it_can_be(rate: float, pick: Pick, seed: int, context: int) -> None:
    config = made_config()
    cost = calibrated(config, np.random.default_rng(seed))
    controller = Controller(actions_of(config), cost, tokens_per_second=rate)
    random = np.random.default_rng(seed)
    spent = floor = 0.0
    for step in range(100):
        floor = max(floor, min(cost.step(action, context) for action in controller.actions))
        allowed = controller.allowed(context)
        index = pick(allowed, controller.relative_costs(context), random, step)
        spent += controller.record(controller.actions[index], context).cost
        context += 1
    assert controller.floored == (1000 / rate < floor)
    if not controller.floored:
        assert spent / 100 <= 1000 / rate + TOLERANCE * cost.dense(context)
        assert controller.requested is not None
        assert abs(controller.achieved - controller.requested) <= TOLERANCE


def test_a_slow_rate_stays_dense() -> None:
    config = made_config()
    cost = calibrated(config, np.random.default_rng(0))
    controller = Controller(actions_of(config), cost, tokens_per_second=0.1)
    run(controller, dearest, 100, 80, 0)
    assert controller.achieved == pytest.approx(1.0)
    assert not controller.floored


def test_a_rate_out_of_reach_is_served_by_the_cheapest_and_said() -> None:
    config = made_config()
    cost = calibrated(config, np.random.default_rng(0))
    controller = Controller(actions_of(config), cost, tokens_per_second=1e4)
    run(controller, dearest, 100, 80, 0)
    assert controller.achieved == pytest.approx(controller.floor(140), abs=0.01)
    assert controller.floored


def test_rate_needs_measured_costs() -> None:
    config = made_config()
    with pytest.raises(UsageError, match="sol-rt calibrate"):
        Controller(actions_of(config), BytesCost(config), tokens_per_second=10)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    kv_density=st.one_of(st.none(), st.floats(0.1, 1.0)),
    channel_density=st.one_of(st.none(), st.floats(0.5, 1.0)),
    bits=st.one_of(st.none(), st.floats(4, 8)),
    pick=st.sampled_from(PICKS),
    seed=st.integers(0, 1000),
    steps=st.integers(64, 200),
)
def test_axis_targets_hold(
    kv_density: float | None, channel_density: float | None, bits: float | None, pick: Pick, seed: int, steps: int
) -> None:
    targets = AxisTargets(kv_density, channel_density, bits)
    assume(targets.any())
    config = made_config(bits=(8, 6, 4), channel_densities=(1.0, 0.75, 0.5))
    controller = make_controller(actions_of(config), BytesCost(config), axis_targets=targets)
    random = np.random.default_rng(seed)
    seen = []
    for step in range(steps):
        allowed = controller.allowed(300 + step)
        assert [controller.allows(index, 300 + step) for index in range(len(allowed))] == allowed.tolist()
        action = controller.actions[pick(allowed, controller.relative_costs(300 + step), random, step)]
        controller.record(action, 300 + step)
        seen.append((action.kv_density, action.channel_density, action.bits))
        if len(seen) >= 64:
            means = np.mean(seen, axis=0)
            for mean, target, full in zip(means, (kv_density, channel_density, bits), (1.0, 1.0, 8.0), strict=True):
                wanted = full if target is None else target
                assert abs(mean - wanted) <= TOLERANCE * full
    assert controller.requested is None


@pytest.mark.parametrize("budget", [-0.1, 1.01, float("nan"), float("inf"), None, "0.5"])
def test_budget_out_of_range(budget: object) -> None:
    config = made_config()
    with pytest.raises(UsageError, match="--budget"):
        Controller(actions_of(config), BytesCost(config), budget)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "name"),
    [
        (AxisTargets(kv_density=1.2), "--kv-density"),
        (AxisTargets(kv_density=0.0), "--kv-density"),
        (AxisTargets(channel_density=0.3), "--channel-density"),
        (AxisTargets(bits=9), "--bits"),
        (AxisTargets(bits=float("nan")), "--bits"),
    ],
)
def test_axis_target_out_of_range(targets: AxisTargets, name: str) -> None:
    config = made_config()
    with pytest.raises(UsageError, match=name):
        make_controller(actions_of(config), BytesCost(config), axis_targets=targets)


def test_axis_targets_that_no_mix_has() -> None:
    # the only action with fewer bits also prunes
    config = made_config(actions=("k100-s100-q8", "k100-s050-q4"))
    with pytest.raises(UsageError, match=r"^--bits: no mix"):
        make_controller(actions_of(config), BytesCost(config), axis_targets=AxisTargets(bits=6))
    with pytest.raises(UsageError, match=r"^--kv-density/--bits: no mix"):
        make_controller(actions_of(config), BytesCost(config), axis_targets=AxisTargets(kv_density=1, bits=6))
    make_controller(actions_of(config), BytesCost(config), axis_targets=AxisTargets(bits=6, channel_density=0.75))


def test_contradictory_requests() -> None:
    config = made_config()
    cost: CostModel = calibrated(config, np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"^--budget and --kv-density contradict"):
        make_controller(actions_of(config), cost, 0.5, axis_targets=AxisTargets(kv_density=0.5))
    with pytest.raises(UsageError, match="contradict"):
        Controller(actions_of(config), cost, 0.5, tokens_per_second=10)
    with pytest.raises(UsageError, match="contradict"):
        make_controller(actions_of(config), cost, axis_targets=AxisTargets(kv_density=0.5), tokens_per_second=10)
    with pytest.raises(UsageError, match="tokens-per-second"):
        Controller(actions_of(config), cost, tokens_per_second=0)


def test_the_dense_action_must_be_there() -> None:
    config = made_config()
    others = [action for action in actions_of(config) if action != config.dense]
    with pytest.raises(UsageError, match=config.dense.tag):
        Controller(others, BytesCost(config), 0.5)


class Documented:
    """The account and the limits of docs/reference/decode-loop.md, sections 2 and 3, for a budget, line by line."""

    def __init__(self, budget: float, dense: int) -> None:
        self.budget, self.dense = budget, dense
        self.n = 0
        self.spent = self.given = self.full = 0.0

    def record(self, action: int, costs: np.ndarray, dense: float) -> None:
        self.n += 1
        self.spent += costs[action]
        self.given += self.budget * dense
        self.full += dense

    def allowed(self, costs: np.ndarray, dense: float) -> np.ndarray:
        allowance = self.budget * dense
        if allowance < costs.min():
            return np.asarray(costs == costs.min())
        window = (self.full + dense) / (self.n + 1) * (1.25 + 0.0075 * max(0, self.n + 1 - 64))
        after = self.spent - self.given + costs - allowance
        excess = np.maximum(np.abs(after) - window, 0)
        excess[(costs >= costs[self.dense]) & (np.arange(len(costs)) != self.dense)] = np.inf
        return np.asarray(excess == excess.min())

    def target(self, costs: np.ndarray, dense: float) -> float:
        wanted = self.budget * dense - (self.spent - self.given) / 8
        return float(np.clip(wanted, costs.min(), costs.max())) / dense


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    budget=st.floats(0.05, 0.99),
    context=contexts,
    pick=st.sampled_from(PICKS),
    policy=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_controller_does_what_the_documentation_says(
    budget: float, context: int, pick: Pick, policy: bool, seed: int
) -> None:
    config = made_config(policy_bytes=3 * 10**6)
    cost, actions = BytesCost(config), actions_of(config)
    controller = Controller(actions, cost, budget, policy_cost=policy)
    documented = Documented(budget, actions.index(config.dense))
    random = np.random.default_rng(seed)
    for step in range(150):
        costs = np.array([cost.step(action, context) for action in actions]) + policy * cost.policy()
        dense = cost.dense(context)
        allowed = controller.allowed(context)
        assert allowed.tolist() == documented.allowed(costs, dense).tolist()
        assert controller.target(context) == pytest.approx(documented.target(costs, dense), rel=1e-9)
        index = pick(allowed, controller.relative_costs(context), random, step)
        controller.record(actions[index], context)
        documented.record(index, costs, dense)
        context += 1
