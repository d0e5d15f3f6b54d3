"""A budget or a rate that changes between tokens: the promise holds, schedules go on, and errors are typed."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_controller import TOLERANCE, measured

from helpers.made_configs import made_config, with_losses
from helpers.places import TINY
from helpers.plans import PICKS, Pick, Picked, ScriptedPolicy, cheapest, dearest
from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import Dial
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.plan import Plan
from sol_rt.generate.trace import read_trace

PROMPT = [44, 261, 290, 300, 14, 273, 261, 274]


@pytest.fixture(scope="module")
def model() -> SolModel:
    bundle = Bundle.open(TINY)
    return SolModel.from_pretrained(bundle, provider="cpu", cost=BytesCost(bundle.config), measure_costs=False)


changes = st.dictionaries(st.integers(0, 260), st.one_of(st.floats(0, 1), st.just(1.0)), max_size=40)


def run(picked: Picked, wanted: dict[int, float], context: int, steps: int) -> None:
    """Checks the promise after each step, for the parts in which every budget was over the floor."""
    floored_since_change = False
    for step in range(steps):
        if step in wanted:
            picked.plan.set_budget(wanted[step])
            floored_since_change = False
        picked.plan.step(context + step)
        seen = picked.seen[-1]
        floored_since_change = floored_since_change or seen.allowance < seen.floor
        if not floored_since_change:
            assert picked.error() <= TOLERANCE


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    first=st.floats(0, 1),
    wanted=changes,
    context=st.one_of(st.integers(0, 200), st.integers(0, 8000)),
    pick=st.sampled_from(PICKS),
    seed=st.integers(0, 1000),
)
def test_the_promise_holds_whatever_the_changes(
    first: float, wanted: dict[int, float], context: int, pick: Pick, seed: int
) -> None:
    run(Picked(BytesCost(made_config()), {"budget": first}, pick, seed), wanted, context, 260)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(first=st.floats(0, 1), wanted=changes, pick=st.sampled_from(PICKS), seed=st.integers(0, 1000))
def test_the_promise_holds_with_measured_costs(first: float, wanted: dict[int, float], pick: Pick, seed: int) -> None:
    run(Picked(measured(made_config(), np.random.default_rng(seed)), {"budget": first}, pick, seed), wanted, 100, 260)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["sol", "uniform", "entropy", "random"]),
    wanted=st.dictionaries(st.integers(0, 260), st.one_of(st.floats(0.6, 1), st.just(1.0)), max_size=40),
    seed=st.integers(0, 1000),
)
def test_the_promise_holds_under_the_core_s_schedules(name: str, wanted: dict[int, float], seed: int) -> None:
    config, random = with_losses(made_config(policy_bytes=3_000_000)), np.random.default_rng(seed)
    policy = ScriptedPolicy(config, np.zeros(len(config.actions), np.float32))
    plan = Plan(BytesCost(config), Dial(0.6, name, seed=seed), policy=policy)
    for step in range(260):
        if step in wanted:
            plan.set_budget(wanted[step])
        policy.logits = random.standard_normal(len(config.actions), np.float32)
        plan.step(300 + step, 7, logits=8 * random.standard_normal(50))
        assert not plan.floored
        assert plan.steps < 64 or abs(plan.achieved - plan.requested) <= TOLERANCE


def test_past_allowances_stay_when_the_budget_changes() -> None:
    picked = Picked(BytesCost(made_config()), {"budget": 0.5})
    for context in range(100, 200):
        if context == 150:
            picked.plan.set_budget(0.9)
        picked.plan.step(context)
    assert (picked.seen[49].budget, picked.seen[50].budget) == (0.5, 0.9)
    assert picked.plan.requested == pytest.approx(0.7, abs=0.01)


def test_a_floor_is_not_made_up_for() -> None:
    picked = Picked(BytesCost(made_config()), {"budget": 0.0}, cheapest)
    for context in range(100, 400):
        picked.plan.step(context)
    assert picked.plan.floored
    picked.plan.set_budget(0.9)
    picked.plan.step(400)
    assert picked.seen[-1].target == pytest.approx(0.9)
    assert picked.plan.requested == pytest.approx(picked.plan.achieved, abs=0.01)


def test_steps_at_a_budget_of_one_do_not_pay_for_the_policy() -> None:
    config = with_losses(made_config(policy_bytes=3_000_000))
    cost = BytesCost(config)
    plan = Plan(cost, Dial(0.9, "sol"), policy=ScriptedPolicy(config, np.zeros(len(config.actions), np.float32)))
    taken = plan.step(100)
    assert taken.cost == cost.step(taken.action, 100) + cost.policy()
    assert taken.relative_cost == taken.cost / cost.dense(100)
    plan.set_budget(1.0)
    assert plan.step(101).cost == cost.dense(101)
    plan.set_budget(0.9)
    taken = plan.step(102)
    assert taken.cost == cost.step(taken.action, 102) + cost.policy()


def test_rate_and_budget_take_over_from_each_other() -> None:
    cost = measured(made_config(), np.random.default_rng(0))
    rate = 1000 / (0.7 * cost.dense(100))
    picked = Picked(cost, {"tokens_per_second": rate}, dearest)
    picked.plan.step(100)
    picked.plan.set_budget(0.8)
    picked.plan.step(100)
    picked.plan.set_tokens_per_second(rate)
    picked.plan.step(100)
    assert [seen.budget for seen in picked.seen] == [None, 0.8, None]
    assert [seen.allowance for seen in picked.seen] == pytest.approx([0.7, 0.8, 0.7])


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_bad_rate_changes_nothing(value: float) -> None:
    picked = Picked(measured(made_config(), np.random.default_rng(0)), {"budget": 0.7})
    with pytest.raises(UsageError, match="--tokens-per-second: got"):
        picked.plan.set_tokens_per_second(value)
    picked.plan.step(100)
    assert picked.seen[0].budget == 0.7


@pytest.mark.parametrize("value", ["7", None, True])
def test_a_rate_that_is_no_number_is_refused(model: SolModel, value: object) -> None:
    stream = model.stream(PROMPT, budget=0.7, max_new_tokens=2)
    with pytest.raises(UsageError, match="--tokens-per-second: got"):
        stream.tokens_per_second = value  # type: ignore[assignment]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True])
def test_a_bad_budget_changes_nothing(model: SolModel, value: object) -> None:
    stream = model.stream(PROMPT, budget=0.7, max_new_tokens=4)
    next(stream)
    with pytest.raises(UsageError, match="--budget: got"):
        stream.budget = value  # type: ignore[assignment]
    assert stream.budget == 0.7
    assert len(list(stream)) == 3


@pytest.mark.parametrize(
    ("dial", "told"),
    [
        ({"schedule": "fixed:k100-s100-q4"}, "schedule fixed:k100-s100-q4 fixes the action"),
        ({"schedule": "dense"}, "schedule dense fixes the action"),
        ({"bits": 6}, "holds targets on the axes"),
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


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_a_fixed_run_refuses_a_budget_before_and_after(model: SolModel, tokens: int) -> None:
    stream = model.stream(PROMPT, max_new_tokens=3, schedule="dense")
    for _ in range(tokens):
        next(stream)
    if tokens == 0:
        model.stream(PROMPT, budget=0.7)  # is the newest
    with pytest.raises(UsageError, match="fixes the action"):
        stream.budget = 0.5


def test_a_budget_that_is_set_before_the_first_token_holds(model: SolModel) -> None:
    stream = model.stream(PROMPT, budget=1.0, max_new_tokens=24, eos_token_id=[])
    stream.budget = 0.6
    model.generate(PROMPT, max_new_tokens=2)
    list(stream)
    assert stream.result is not None
    assert stream.result.requested_budget == pytest.approx(0.6)


def test_a_rate_needs_measured_costs(model: SolModel) -> None:
    stream = model.stream(PROMPT, budget=0.7, max_new_tokens=3)
    with pytest.raises(UsageError, match="run `sol-rt profile` first"):
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
    config = with_losses(made_config(policy_bytes=3_000_000))
    policy = ScriptedPolicy(config, np.linspace(0, 1, len(config.actions)).astype(np.float32))
    plan = Plan(BytesCost(config), Dial(0.7, "sol"), policy=policy)
    for step in range(80):
        if step in (21, 41, 70):
            plan.set_budget({21: 1.0, 41: 0.6, 70: 0.9}[step])
        asked = len(policy.asked)
        action = plan.step(300 + step, 7).action
        assert len(policy.asked) - asked == (step < 21 or step >= 41)
        assert action == config.dense or not 21 <= step < 41
    steps = [position for _, _, position in policy.asked]
    assert steps == [*range(16), *range(5), *range(16), *range(16), *range(7)]
    scalars, previous, _ = policy.asked[21]
    assert previous == -1
    assert (scalars["previous_cost"], scalars["recent_spend"], scalars["spend_deviation"]) == (1, 1, 0)
    budgets = [asked[0]["budget"] for asked in policy.asked]
    assert budgets == pytest.approx([0.7] * 21 + [0.6] * 29 + [0.9] * 10)


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
    with pytest.raises(UsageError, match="a replay repeats the trace's actions"):
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
            for budget in itertools.cycle((0.7, 1.0, 0.8)):
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


def test_targets_on_the_axes_refuse_a_budget_and_a_rate() -> None:
    picked = Picked(BytesCost(made_config()), {"kv_density": 0.5})
    for change in (picked.plan.set_budget, picked.plan.set_tokens_per_second):
        with pytest.raises(UsageError, match="start a run with a budget"):
            change(0.5)
    picked.plan.step(100)
    assert picked.seen[0].budget is None
