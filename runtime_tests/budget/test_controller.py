"""The controller's promise: whatever picks the actions, what was asked for is held from 64 decode steps on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.made_configs import made_config
from helpers.plans import PICKS, Pick, Picked, anything, dearest
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import BytesCost, Line
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import UsageError
from sol_rt.generate.native.plan import Plan

TOLERANCE = 0.02


def measured(config: SolConfig, random: np.random.Generator) -> MeasuredCost:
    """A device where savings are ragged: some actions cost more than dense, none is free."""
    lines: dict[str, dict[float, Line]] = {}
    for key, variant in config.variants.items():
        fixed = variant.weight_bytes / 1e7 * float(random.uniform(0.7, 1.3))
        lines[key] = {
            1.0: Line(fixed, 1e-3, 0.0),
            0.5: Line(fixed + float(random.uniform(0, 2)), 1e-3, 4e-3),
            0.1: Line(fixed + float(random.uniform(0, 2)), 1e-3, 4e-3),
        }
    dense = lines[config.dense.variant][1.0].fixed
    return MeasuredCost(config, CostTable("b" * 64, "device", "now", 0.02 * dense, lines))


def run(picked: Picked, context: int, steps: int) -> float:
    """Largest |achieved - requested| wherever the text may end from 64 steps on."""
    worst = 0.0
    for step in range(steps):
        picked.plan.step(context + step)
        worst = max(worst, picked.error())
    return worst


budgets = st.floats(0.05, 1.0)
contexts = st.one_of(st.integers(0, 200), st.integers(0, 8000))


@settings(max_examples=120, deadline=None)
@given(
    budget=budgets,
    context=contexts,
    steps=st.integers(64, 260),
    pick=st.sampled_from(PICKS),
    weights=st.sampled_from([2e6, 147e6, 4e9]),
    seed=st.integers(0, 1000),
)
def test_budget_holds_with_costs_in_bytes(
    budget: float, context: int, steps: int, pick: Pick, weights: float, seed: int
) -> None:
    picked = Picked(BytesCost(made_config(weight_bytes=weights)), {"budget": budget}, pick, seed)
    worst = run(picked, context, steps)
    if picked.plan.floored:
        assert budget < max(seen.floor for seen in picked.seen)
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
    picked = Picked(measured(made_config(), np.random.default_rng(seed)), {"budget": budget}, pick, seed)
    worst = run(picked, context, steps)
    if not picked.plan.floored:
        assert worst <= TOLERANCE


def test_budget_of_one_is_dense_only() -> None:
    config = made_config(policy_bytes=10**7)
    picked = Picked(BytesCost(config), {"budget": 1.0})
    for step in range(70):
        assert picked.plan.step(100 + step) == (config.dense, BytesCost(config).dense(100 + step), 1.0)
        allowed = picked.seen[-1].allowed
        assert [action for action, good in zip(picked.actions, allowed, strict=True) if good] == [config.dense]
    assert (picked.plan.achieved, picked.plan.requested, picked.plan.floored) == (1.0, 1.0, False)


def test_budget_below_the_floor_is_served_by_the_cheapest_and_said() -> None:
    picked = Picked(BytesCost(made_config()), {"budget": 0.1}, dearest)
    for context in range(500, 600):
        picked.plan.step(context)
        seen = picked.seen[-1]
        assert (seen.costs[seen.allowed] == seen.costs.min()).all()
    assert picked.plan.floored
    assert picked.plan.requested == 0.1
    assert picked.plan.achieved == pytest.approx(picked.seen[50].floor, abs=0.01)


def test_a_budget_in_reach_is_not_floored() -> None:
    picked = Picked(BytesCost(made_config()), {"budget": 0.6}, anything, 1)
    run(picked, 500, 100)
    assert not picked.plan.floored


def test_actions_that_save_nothing_are_not_offered() -> None:
    config = made_config()
    picked = Picked(BytesCost(config), {"budget": 0.9})
    picked.plan.step(10)
    allowed = dict(zip(picked.actions, picked.seen[0].allowed, strict=True))
    # at ten tokens every KV density reads everything
    assert not allowed[Action(0.1, 1.0, 8)]
    assert allowed[config.dense]


def test_target_makes_up_for_what_was_spent() -> None:
    picked = Picked(BytesCost(made_config()), {"budget": 0.6}, dearest)
    for context in (300, 301):
        picked.plan.step(context)
    first, second = picked.seen
    assert first.target == pytest.approx(0.6)
    assert first.costs[first.index] == 1.0
    assert second.target == pytest.approx(0.6 - 0.4 / 8, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(60, 150), pick=st.sampled_from(PICKS), seed=st.integers(0, 1000), context=contexts)
def test_rate_is_held_where_it_can_be(rate: float, pick: Pick, seed: int, context: int) -> None:
    cost = measured(made_config(), np.random.default_rng(seed))
    picked = Picked(cost, {"tokens_per_second": rate}, pick, seed)
    spent = floor = 0.0
    for step in range(100):
        floor = max(floor, min(cost.step(action, context + step) for action in picked.actions))
        spent += picked.plan.step(context + step).cost
    assert picked.plan.floored == (1000 / rate < floor)
    if not picked.plan.floored:
        assert spent / 100 <= 1000 / rate + TOLERANCE * cost.dense(context + 100)
        assert picked.error() <= TOLERANCE


def test_a_slow_rate_stays_dense() -> None:
    picked = Picked(measured(made_config(), np.random.default_rng(0)), {"tokens_per_second": 0.1}, dearest)
    run(picked, 100, 80)
    assert picked.plan.achieved == pytest.approx(1.0)
    assert not picked.plan.floored


def test_a_rate_out_of_reach_is_served_by_the_cheapest_and_said() -> None:
    picked = Picked(measured(made_config(), np.random.default_rng(0)), {"tokens_per_second": 1e4}, dearest)
    run(picked, 100, 80)
    assert picked.plan.achieved == pytest.approx(picked.seen[40].floor, abs=0.01)
    assert picked.plan.floored


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
    dial = {"kv_density": kv_density, "channel_density": channel_density, "bits": bits}
    assume(any(value is not None for value in dial.values()))
    config = made_config(bits=(8, 6, 4), channel_densities=(1.0, 0.75, 0.5))
    picked = Picked(BytesCost(config), dial, pick, seed)
    seen = []
    for step in range(steps):
        action = picked.plan.step(300 + step).action
        seen.append((action.kv_density, action.channel_density, action.bits))
        if len(seen) >= 64:
            means = np.mean(seen, axis=0)
            for mean, target, full in zip(means, dial.values(), (1.0, 1.0, 8.0), strict=True):
                wanted = full if target is None else target
                assert abs(mean - wanted) <= TOLERANCE * full


LOSSES = {"k010-s050-q4": {64: 0.5}, "k100-s100-q4": {64: 0.01}}
BAD_DIALS: list[tuple[dict[str, Any], str]] = [
    ({"budget": -0.1}, "^--budget: got -0.1"),
    ({"budget": 1.0000001}, "^--budget: got"),
    ({"budget": float("nan")}, "^--budget: got nan"),
    ({"budget": float("inf")}, "^--budget: got inf"),
    ({"max_loss": -1e-7}, "^--max-loss: got"),
    ({"max_loss": 10.5}, "^--max-loss: got 10.5"),
    ({"max_loss": float("inf")}, "^--max-loss: got inf"),
    ({"max_loss": 0.01, "budget": 0.5}, "^--budget and --max-loss contradict each other"),
    ({"max_loss": 0.01, "bits": 6.0}, "^--bits and --max-loss contradict each other"),
    ({"budget": 0.5, "kv_density": 0.5}, "^--budget and --kv-density contradict each other"),
    ({"tokens_per_second": 5.0, "budget": 0.5, "kv_density": 0.5}, "contradict each other: give one of them"),
    ({"tokens_per_second": 5.0}, "^--tokens-per-second: no times measured on this device; run `sol-rt profile` first"),
    ({"tokens_per_second": 0.0}, "^--tokens-per-second: got 0"),
    ({"tokens_per_second": float("inf")}, "^--tokens-per-second: got inf"),
    ({"schedule": "dense", "budget": 0.5}, "^schedule dense: fixes the action"),
    ({"schedule": "fixed:k100-s100-q4", "max_loss": 0.5}, "^schedule fixed:k100-s100-q4: fixes the action"),
    ({"schedule": "fixed:k100-s100-q3"}, "no variant s100-q3 in this bundle; it has s100-q8, s100-q4"),
    ({"schedule": "fixed:k100-s100"}, "k100-s100"),
    ({"schedule": "fixed:k000-s100-q4"}, "k000-s100-q4"),
    ({"schedule": "uniform", "max_loss": 0.1}, "^--max-loss: the schedule uniform keeps no loss"),
    ({"schedule": "hull", "kv_density": 0.5}, "^--schedule hull: .*use uniform for targets on the axes"),
    ({"schedule": "sol", "budget": 0.5}, "^--schedule sol: this bundle has no policy"),
    ({"schedule": "greedy"}, "^--schedule: got 'greedy', expected one of sol, hull, uniform, entropy, random"),
    ({"kv_density": 1.2}, "^--kv-density: got 1.2, expected 0.1 to 1"),
    ({"kv_density": 0.0}, "^--kv-density: got 0"),
    ({"channel_density": 1 / 3}, "^--channel-density: got 0.33"),
    ({"bits": 9}, "^--bits: got 9"),
    ({"bits": float("nan")}, "^--bits: got nan"),
]


@pytest.mark.parametrize(("dial", "words"), BAD_DIALS, ids=str)
def test_dials_that_cannot_be_held_are_refused(dial: dict[str, Any], words: str) -> None:
    cost = BytesCost(made_config(losses=LOSSES))
    with pytest.raises(UsageError, match=words):
        Plan(cost, Dial(**dial))


@pytest.mark.parametrize("dial", [{"max_loss": 0.1}, {"schedule": "hull", "budget": 0.5}])
def test_a_loss_needs_measured_losses(dial: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no losses of this bundle's actions were measured"):
        Plan(BytesCost(made_config()), Dial(**dial))


def test_axis_targets_that_no_mix_has() -> None:
    # the only action with fewer bits also prunes
    cost = BytesCost(made_config())
    actions = [Action.parse("k100-s100-q8"), Action.parse("k100-s050-q4")]
    for dial, told in (({"bits": 6.0}, "^--bits: no mix"), ({"kv_density": 1.0, "bits": 6.0}, "^--kv-density/--bits")):
        with pytest.raises(UsageError, match=told):
            Picked(cost, dial, actions=actions)
    Picked(cost, {"bits": 6.0, "channel_density": 0.75}, actions=actions)


def test_the_dense_action_must_be_there() -> None:
    config = made_config()
    others = [entry.action for entry in config.actions if entry.action != config.dense]
    with pytest.raises(UsageError, match=config.dense.tag):
        Picked(BytesCost(config), {"budget": 0.5}, actions=others)


def test_a_schedule_s_error_reaches_the_caller() -> None:
    class Failing:
        name = "failing"

        def __init__(self, controller: Any) -> None: ...

        def choose(self, step: Any) -> Action:
            raise KeyError("mine")

    plan = Plan(BytesCost(made_config()), Dial(0.5, Failing))
    with pytest.raises(KeyError, match="mine"):
        plan.step(100)


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
@given(budget=st.floats(0.05, 0.99), context=contexts, pick=st.sampled_from(PICKS), seed=st.integers(0, 1000))
def test_the_controller_does_what_the_documentation_says(budget: float, context: int, pick: Pick, seed: int) -> None:
    config = made_config()
    cost = BytesCost(config)
    picked = Picked(cost, {"budget": budget}, pick, seed)
    documented = Documented(budget, picked.actions.index(config.dense))
    for step in range(150):
        costs = np.array([cost.step(action, context + step) for action in picked.actions])
        dense = cost.dense(context + step)
        picked.plan.step(context + step)
        seen = picked.seen[-1]
        assert seen.allowed.tolist() == documented.allowed(costs, dense).tolist()
        assert seen.target == pytest.approx(documented.target(costs, dense), rel=1e-9)
        documented.record(seen.index, costs, dense)
