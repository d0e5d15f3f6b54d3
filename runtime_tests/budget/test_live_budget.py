"""A budget or a rate that changes between tokens: the promise holds, schedules go on, and errors are typed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_controller import PICKS, TOLERANCE, Pick, actions_of, calibrated
from test_schedules import DISTRIBUTION, HIDDEN, ScriptedPolicy

from helpers.made_configs import made_config
from helpers.places import TINY
from sol_rt.budget.controller.base import AxisTargets, BaseController
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.budget.cost.calibration_table import CalibratedCost
from sol_rt.budget.dial import make_controller
from sol_rt.budget.schedules import PolicyInput
from sol_rt.budget.schedules.policy import SolSchedule
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.trace import read_trace

PROMPT = [44, 261, 290, 300, 14, 273, 261, 274]


@pytest.fixture(scope="module")
def model() -> SolModel:
    bundle = Bundle.open(TINY)
    return SolModel.from_pretrained(bundle, provider="cpu", cost=BytesCost(bundle.config), measure_costs=False)


changes = st.dictionaries(st.integers(0, 260), st.one_of(st.floats(0, 1), st.just(1.0)), max_size=40)


def run(controller: Controller, wanted: dict[int, float], pick: Pick, context: int, steps: int, seed: int) -> None:
    """Checks the promise after each step, for the parts in which every budget was over the floor."""
    random = np.random.default_rng(seed)
    floored_since_change = False
    for step in range(steps):
        if step in wanted:
            controller.set_budget(wanted[step])
            floored_since_change = False
        allowance = controller.allowance(context)
        floored_since_change = floored_since_change or allowance < controller.floor(context)
        allowed = controller.allowed(context)
        assert [controller.allows(index, context) for index in range(len(allowed))] == allowed.tolist()
        index = pick(allowed, controller.relative_costs(context), random, step)
        controller.record(controller.actions[index], context)
        context += 1
        if controller.steps >= 64 and not floored_since_change:
            assert abs(controller.achieved - controller.requested) <= TOLERANCE


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    first=st.floats(0, 1),
    wanted=changes,
    context=st.one_of(st.integers(0, 200), st.integers(0, 8000)),
    pick=st.sampled_from(PICKS),
    policy=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_promise_holds_whatever_the_changes(
    first: float, wanted: dict[int, float], context: int, pick: Pick, policy: bool, seed: int
) -> None:
    config = made_config(policy_bytes=3_000_000)
    run(Controller(actions_of(config), BytesCost(config), first, policy_cost=policy), wanted, pick, context, 260, seed)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(first=st.floats(0, 1), wanted=changes, pick=st.sampled_from(PICKS), seed=st.integers(0, 1000))
def test_the_promise_holds_with_measured_costs(first: float, wanted: dict[int, float], pick: Pick, seed: int) -> None:
    config = made_config()
    cost = calibrated(config, np.random.default_rng(seed))
    run(Controller(actions_of(config), cost, first, policy_cost=True), wanted, pick, 100, 260, seed)


def test_past_allowances_stay_when_the_budget_changes() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.5)
    for context in range(100, 200):
        if context == 150:
            controller.set_budget(0.9)
            assert (controller.budget, controller.requested) == (0.9, pytest.approx(0.5))
        controller.record(controller.actions[0], context)
    assert controller.requested == pytest.approx(0.7, abs=0.01)


def test_a_floor_is_not_made_up_for() -> None:
    config = made_config()
    controller = Controller(actions_of(config), BytesCost(config), 0.0)
    costs = controller.relative_costs(500)
    cheapest = controller.actions[int(costs.argmin())]
    for context in range(100, 400):
        controller.record(cheapest, context)
    assert controller.floored
    controller.set_budget(0.9)
    assert controller.target(400) == pytest.approx(0.9)
    assert controller.requested == pytest.approx(controller.achieved)


def test_steps_at_a_budget_of_one_do_not_pay_for_the_policy() -> None:
    config = made_config(policy_bytes=3_000_000)
    cost = BytesCost(config)
    controller = Controller(actions_of(config), cost, 0.6, policy_cost=True)
    dense = controller.dense
    assert controller.record(dense, 100).cost == cost.dense(100) + cost.policy()
    controller.set_budget(1.0)
    assert controller.dense_only
    assert controller.record(dense, 101).cost == cost.dense(101)
    controller.set_budget(0.6)
    assert not controller.dense_only
    assert controller.record(dense, 102).cost == cost.dense(102) + cost.policy()


def rated(config: SolConfig) -> CalibratedCost:
    return calibrated(config, np.random.default_rng(0))


def test_rate_and_budget_take_over_from_each_other() -> None:
    config = made_config()
    cost = rated(config)
    rate = 1000 / (0.7 * cost.dense(100))
    controller = Controller(actions_of(config), cost, tokens_per_second=rate)
    assert (controller.budget, controller.tokens_per_second) == (None, pytest.approx(rate))
    controller.set_budget(0.8)
    assert (controller.budget, controller.tokens_per_second) == (0.8, None)
    assert controller.allowance(100) == pytest.approx(0.8)
    controller.set_rate(rate)
    assert (controller.budget, controller.tokens_per_second) == (None, pytest.approx(rate))
    assert controller.allowance(100) == pytest.approx(0.7)
    assert not controller.dense_only


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True])
def test_a_bad_budget_changes_nothing(model: SolModel, value: object) -> None:
    stream = model.stream(PROMPT, budget=0.7, max_new_tokens=4)
    next(stream)
    with pytest.raises(UsageError, match="--budget: got"):
        stream.budget = value  # type: ignore[assignment]
    assert stream.budget == 0.7
    assert len(list(stream)) == 3


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "7", None])
def test_a_bad_rate_changes_nothing(value: object) -> None:
    config = made_config()
    controller = Controller(actions_of(config), rated(config), 0.7)
    with pytest.raises(UsageError, match="--tokens-per-second: got"):
        controller.set_rate(value)  # type: ignore[arg-type]
    assert controller.budget == 0.7


@pytest.mark.parametrize(
    ("dial", "told"),
    [
        ({"schedule": "fixed:k100-s100-q4"}, "fixed:k100-s100-q4 fixes them"),
        ({"schedule": "dense"}, "dense fixes them"),
        ({"bits": 6}, "this run holds --bits instead"),
    ],
)
def test_runs_that_hold_no_budget_refuse_one(model: SolModel, dial: dict[str, object], told: str) -> None:
    stream = model.stream(PROMPT, max_new_tokens=3, **dial)
    next(stream)
    with pytest.raises(UsageError, match=told):
        stream.budget = 0.5
    with pytest.raises(UsageError, match=told):
        stream.tokens_per_second = 10
    assert (stream.budget, stream.tokens_per_second) == (None, None)
    assert len(list(stream)) == 2


def test_a_rate_needs_measured_costs(model: SolModel) -> None:
    stream = model.stream(PROMPT, budget=0.7, max_new_tokens=3)
    with pytest.raises(UsageError, match="run `sol-rt calibrate` first"):
        stream.tokens_per_second = 10
    stream.close()


@pytest.mark.parametrize("schedule", ["hull", "sol", "uniform", "entropy", "random"])
def test_every_schedule_goes_on_with_the_new_budget(model: SolModel, schedule: str) -> None:
    stream = model.stream(PROMPT, schedule=schedule, budget=1.0, max_new_tokens=250, eos_token_id=[], seed=3)
    found = []
    for count, generated in enumerate(stream, 1):
        found.append(generated)
        if count in (40, 120, 180):
            stream.budget = {40: 0.75, 120: 1.0, 180: 0.7}[count]
    dense = model.bundle.config.dense
    parts = [
        [token.action for token in found[first:last]] for first, last in ((1, 40), (40, 120), (120, 180), (180, 250))
    ]
    assert set(parts[0]) == set(parts[2]) == {dense}
    assert len(set(parts[1])) > 1 or dense not in parts[1]
    assert len(set(parts[3])) > 1 or dense not in parts[3]
    result = stream.result
    assert result is not None
    assert result.schedule == schedule
    assert abs(result.achieved_budget - result.requested_budget) <= TOLERANCE


@pytest.mark.parametrize("start", [{"max_loss": 0.05}, {}])
def test_a_budget_ends_the_hold_on_a_loss(model: SolModel, start: dict[str, object]) -> None:
    stream = model.stream(PROMPT, max_new_tokens=200, eos_token_id=[], **start)
    next(stream)
    assert stream.budget is None
    stream.budget = 0.9
    list(stream)
    assert stream.result is not None
    assert stream.result.achieved_budget == pytest.approx(0.9, abs=TOLERANCE)


def test_the_policy_begins_anew_after_dense_steps() -> None:
    config = made_config(policy_bytes=3_000_000)
    assert config.policy is not None
    policy = ScriptedPolicy(config.policy, np.linspace(0, 1, len(config.policy.actions)).astype(np.float32))
    controller = Controller(config.policy.actions, BytesCost(config), 0.7, policy_cost=True)
    schedule = SolSchedule(controller, policy)
    for step in range(80):
        if step in (21, 41, 70):
            controller.set_budget({21: 1.0, 41: 0.6, 70: 0.9}[step])
        asked = len(policy.asked)
        action = schedule.choose(PolicyInput(300 + step, 7, HIDDEN, DISTRIBUTION, step))
        assert len(policy.asked) - asked == (step < 21 or step >= 41)
        assert action == controller.dense or not controller.dense_only
        controller.record(action, 300 + step)
    steps = [position for _, _, position in policy.asked]
    assert steps == [*range(16), *range(5), *range(16), *range(16), *range(7)]
    scalars, previous, _ = policy.asked[21]
    assert previous == -1
    assert (scalars["previous_cost"], scalars["recent_spend"], scalars["spend_deviation"]) == (1, 1, 0)
    assert [asked[0]["budget"] for asked in policy.asked] == [0.7] * 21 + [0.6] * 29 + [0.9] * 10


def test_a_run_that_began_dense_asks_its_policy(model: SolModel) -> None:
    stream = model.stream(PROMPT, schedule="sol", budget=1.0, max_new_tokens=60, eos_token_id=[])
    dense = model.bundle.config.dense
    assert {next(stream).action for _ in range(22)} == {dense}
    stream.budget = 0.8
    assert {token.action for token in stream} != {dense}


def test_a_replay_refuses_a_budget_and_repeats_changed_ones(model: SolModel, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    stream = model.stream(PROMPT, budget=0.9, max_new_tokens=40, trace=path)
    for count, _ in enumerate(stream, 1):
        if count == 20:
            stream.budget = 0.6
    trace = read_trace(path)
    replay = model.stream(replay=trace)
    with pytest.raises(UsageError, match="a replay runs the trace's actions"):
        replay.budget = 0.5
    again = list(replay)
    assert replay.result is not None
    assert replay.result.first_difference is None
    assert [token.action.tag for token in again[1:]] == [record.action for record in trace.records[1:]]


def test_another_thread_may_set_the_budget(model: SolModel) -> None:
    stream = model.stream(PROMPT, budget=0.9, max_new_tokens=120, eos_token_id=[])
    stop, errors = threading.Event(), []

    def turn() -> None:
        try:
            for budget in itertools.cycle((0.6, 1.0, 0.8)):
                if stop.is_set():
                    return
                stream.budget = budget
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        assert len(list(stream)) == 120
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert stream.result is not None
    assert abs(stream.result.achieved_budget - stream.result.requested_budget) <= TOLERANCE


def test_an_axis_controller_refuses(model: SolModel) -> None:
    config = made_config()
    controller: BaseController = make_controller(
        actions_of(config), BytesCost(config), axis_targets=AxisTargets(kv_density=0.5)
    )
    change: Callable[[float], None]
    for change in (controller.set_budget, controller.set_rate):
        with pytest.raises(UsageError, match="start a run with a budget"):
            change(0.5)
    assert (controller.budget, controller.tokens_per_second) == (None, None)
