"""The controller's promise: whatever picks the actions, what was asked for is held from 64 decode steps on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.made_configs import made_config
from sol_rt.budget.controller import AxisTargets, Controller
from sol_rt.budget.cost import BytesCost, CalibratedCost, CalibrationTable, CostModel, Line, RefreshLine
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
    """Long stretches of one extreme, then of the other: the worst to be in front of a refresh or an end."""
    return (cheapest if step // 37 % 2 else dearest)(allowed, costs, random, step)


def before_refresh(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    """Spends right before the lump of a refresh and saves right after it."""
    return (dearest if step % 16 > 7 else cheapest)(allowed, costs, random, step)


def one_action(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(np.flatnonzero(allowed)[0])


PICKS = (cheapest, dearest, anything, swinging, before_refresh, one_action)


def calibrated(config: SolConfig, random: np.random.Generator, refresh_steps: float) -> CalibratedCost:
    """A device where savings are ragged: some actions cost more than dense, none is free."""
    lines: dict[str, dict[int, Line]] = {}
    for key, variant in config.variants.items():
        fixed = variant.weight_bytes / 1e7 * float(random.uniform(0.7, 1.3))
        lines[key] = {
            100: Line(fixed, 1e-3, 0.0),
            50: Line(fixed + float(random.uniform(0, 2)), 1e-3, 4e-3),
            10: Line(fixed + float(random.uniform(0, 2)), 1e-3, 4e-3),
        }
    dense = lines[config.dense.variant][100].fixed
    refresh = RefreshLine(refresh_steps * dense * 0.5, refresh_steps * dense * 0.5 / 16, 1e-5)
    table = CalibrationTable("b" * 64, "device", "now", 0.02 * dense, refresh, lines)
    return CalibratedCost(config, table)


def run(controller: Controller, pick: Pick, context: int, steps: int, seed: int) -> float:
    """Largest |achieved - requested| wherever the text may end from 64 steps on, before and after refreshes."""
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
        tokens = controller.refresh_due(context)
        if tokens:
            controller.record_refresh(context - tokens, tokens)
            worst = max(worst, error(controller))
    return worst


def error(controller: Controller) -> float:
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
    refresh=st.booleans(),
    policy=st.booleans(),
    weights=st.sampled_from([2e6, 147e6, 4e9]),
    seed=st.integers(0, 1000),
)
def test_budget_holds_with_costs_in_bytes(
    budget: float, context: int, steps: int, pick: Pick, refresh: bool, policy: bool, weights: float, seed: int
) -> None:
    config = made_config(weight_bytes=weights, policy_bytes=int(0.02 * weights))
    cost = BytesCost(config)
    controller = Controller(actions_of(config), cost, budget, policy_cost=policy, refresh_every=16 if refresh else None)
    worst = run(controller, pick, context, steps, seed)
    if controller.floored:
        assert budget < max(controller.floor(at) for at in range(context, context + steps))
        return
    assert worst <= TOLERANCE


@settings(max_examples=120, deadline=None)
@given(
    budget=budgets,
    context=contexts,
    steps=st.integers(64, 260),
    pick=st.sampled_from(PICKS),
    refresh_steps=st.sampled_from([None, 0.3, 1.0, 4.0]),
    seed=st.integers(0, 1000),
)
def test_budget_holds_with_measured_costs(
    budget: float, context: int, steps: int, pick: Pick, refresh_steps: float | None, seed: int
) -> None:
    config = made_config()
    cost = calibrated(config, np.random.default_rng(seed), refresh_steps or 0.0)
    every = None if refresh_steps is None else 16
    controller = Controller(actions_of(config), cost, budget, policy_cost=True, refresh_every=every)
    worst = run(controller, pick, context, steps, seed)
    if not controller.floored:
        assert worst <= TOLERANCE


@settings(max_examples=40, deadline=None)
@given(pick=st.sampled_from(PICKS), budget=st.floats(0.5, 0.99), context=contexts, seed=st.integers(0, 1000))
def test_an_affordable_refresh_is_never_late(pick: Pick, budget: float, context: int, seed: int) -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), budget, refresh_every=16)
    # the lump of one dense step takes a sixteenth of the budget; what is left must pay for the steps
    assume(all(budget - 1.1 / 16 > controller.floor(at) for at in (context, context + 199)))
    random = np.random.default_rng(seed)
    due = []
    for step in range(199):
        allowed = controller.allowed(context)
        controller.record(controller.actions[pick(allowed, controller.relative_costs(context), random, step)], context)
        context += 1
        tokens = controller.refresh_due(context)
        if tokens:
            assert tokens == 16
            controller.record_refresh(context - tokens, tokens)
            due.append(step + 1)
    gaps = np.diff([0, *due])
    # a stretch that was dense throughout needs no repair and is passed over
    assert (gaps % 16 == 0).all()


def test_budget_of_one_is_dense_only() -> None:
    config = made_config(policy_bytes=10**7)
    controller = Controller(actions_of(config), BytesCost(config), 1.0, policy_cost=True, refresh_every=16)
    assert controller.dense_only
    for step in range(70):
        allowed = controller.allowed(100 + step)
        assert [action for action, good in zip(controller.actions, allowed, strict=True) if good] == [config.dense]
        assert controller.record(config.dense, 100 + step).relative == 1.0
        assert controller.refresh_due(101 + step) == 0
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
    assert controller.served_budget == pytest.approx(controller.achieved)
    assert controller.achieved == pytest.approx(controller.floor(550), abs=0.01)


def test_a_budget_in_reach_is_not_floored() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.6)
    run(controller, anything, 500, 100, 1)
    assert not controller.floored
    assert controller.served_budget == pytest.approx(0.6)


def test_actions_that_save_nothing_are_not_offered() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.9)
    allowed = dict(zip(controller.actions, controller.allowed(10), strict=True))
    # at ten tokens every keep reads everything
    assert not allowed[Action(10, 100, 8)]
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
    cost = calibrated(config, np.random.default_rng(seed), 0.0)
    controller = Controller(actions_of(config), cost, tokens_per_second=rate)
    random = np.random.default_rng(seed)
    spent = 0.0
    for step in range(100):
        allowed = controller.allowed(context)
        index = pick(allowed, controller.relative_costs(context), random, step)
        spent += controller.record(controller.actions[index], context).cost
        context += 1
    if not controller.floored:
        assert spent / 100 <= 1000 / rate + TOLERANCE * cost.dense(context)
        assert controller.requested is not None
        assert abs(controller.achieved - controller.requested) <= TOLERANCE


def test_a_slow_rate_stays_dense() -> None:
    config = made_config()
    cost = calibrated(config, np.random.default_rng(0), 0.0)
    controller = Controller(actions_of(config), cost, tokens_per_second=0.1)
    run(controller, dearest, 100, 80, 0)
    assert controller.achieved == pytest.approx(1.0)


def test_rate_needs_measured_costs() -> None:
    config = made_config()
    with pytest.raises(UsageError, match="sol-rt calibrate"):
        Controller(actions_of(config), BytesCost(config), tokens_per_second=10)


@settings(max_examples=60, deadline=None)
@given(
    keep=st.one_of(st.none(), st.floats(0.1, 1.0)),
    prune=st.one_of(st.none(), st.floats(0.5, 1.0)),
    bits=st.one_of(st.none(), st.floats(4, 8)),
    pick=st.sampled_from(PICKS),
    seed=st.integers(0, 1000),
    steps=st.integers(64, 200),
)
def test_axis_targets_hold(
    keep: float | None, prune: float | None, bits: float | None, pick: Pick, seed: int, steps: int
) -> None:
    targets = AxisTargets(keep, prune, bits)
    assume(targets.any())
    config = made_config(bits=(8, 6, 4), prunes=(100, 75, 50))
    controller = Controller(actions_of(config), BytesCost(config), axis_targets=targets, refresh_every=16)
    random = np.random.default_rng(seed)
    seen = []
    for step in range(steps):
        allowed = controller.allowed(300 + step)
        assert [controller.allows(index, 300 + step) for index in range(len(allowed))] == allowed.tolist()
        action = controller.actions[pick(allowed, controller.relative_costs(300 + step), random, step)]
        controller.record(action, 300 + step)
        seen.append((action.keep / 100, action.prune / 100, action.bits))
        if len(seen) >= 64:
            means = np.mean(seen, axis=0)
            for mean, target, full in zip(means, (keep, prune, bits), (1.0, 1.0, 8.0), strict=True):
                wanted = full if target is None else target
                assert abs(mean - wanted) <= TOLERANCE * full
    assert controller.axis_means.bits == pytest.approx(means[2])
    assert (controller.requested, controller.served_budget) == (None, None)
    assert controller.refresh_due(1000) in (0, 16)


@pytest.mark.parametrize("budget", [-0.1, 1.01, float("nan"), float("inf"), None, "0.5"])
def test_budget_out_of_range(budget: object) -> None:
    config = made_config()
    with pytest.raises(UsageError, match="--budget"):
        Controller(actions_of(config), BytesCost(config), budget)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "name"),
    [
        (AxisTargets(keep=1.2), "--keep"),
        (AxisTargets(keep=0.0), "--keep"),
        (AxisTargets(prune=0.3), "--prune"),
        (AxisTargets(bits=9), "--bits"),
        (AxisTargets(bits=float("nan")), "--bits"),
    ],
)
def test_axis_target_out_of_range(targets: AxisTargets, name: str) -> None:
    config = made_config()
    with pytest.raises(UsageError, match=name):
        Controller(actions_of(config), BytesCost(config), axis_targets=targets)


def test_axis_targets_that_no_mix_has() -> None:
    # the only action with fewer bits also prunes
    config = made_config(actions=("k100-s100-q8", "k100-s050-q4"))
    with pytest.raises(UsageError, match="no mix"):
        Controller(actions_of(config), BytesCost(config), axis_targets=AxisTargets(bits=6))
    Controller(actions_of(config), BytesCost(config), axis_targets=AxisTargets(bits=6, prune=0.75))


def test_contradictory_requests() -> None:
    config = made_config()
    cost: CostModel = calibrated(config, np.random.default_rng(0), 0.0)
    with pytest.raises(UsageError, match="contradict"):
        Controller(actions_of(config), cost, 0.5, axis_targets=AxisTargets(keep=0.5))
    with pytest.raises(UsageError, match="contradict"):
        Controller(actions_of(config), cost, 0.5, tokens_per_second=10)
    with pytest.raises(UsageError, match="contradict"):
        Controller(actions_of(config), cost, axis_targets=AxisTargets(keep=0.5), tokens_per_second=10)
    with pytest.raises(UsageError, match="tokens-per-second"):
        Controller(actions_of(config), cost, tokens_per_second=0)


def test_the_dense_action_must_be_there() -> None:
    config = made_config()
    others = [action for action in actions_of(config) if action != config.dense]
    with pytest.raises(UsageError, match=config.dense.tag):
        Controller(others, BytesCost(config), 0.5)


def test_dense_steps_need_no_refresh() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.99, refresh_every=16)
    for context in range(100, 120):
        controller.record(config.dense, context)
        assert controller.refresh_due(context + 1) == 0
