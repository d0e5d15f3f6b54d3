"""The policy that turns the dial by load, alone and in a scheduler."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.random_decoder import describe
from helpers.tiny_bundle import with_losing_prompts, write_bundle
from sol_rt.budget.governor import Reading
from sol_rt.errors import UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.results import Generation
from sol_rt.serve.answer_dial import Served
from sol_rt.serve.effort import DEFAULTS, parse_effort, with_effort
from sol_rt.serve.load import BAND, RISE_AFTER, Load, LoadSettings, LoadState, next_state, wanted_budget
from sol_rt.serve.request import EFFORTS, Asked, FieldError, read_completion
from sol_rt.serve.scheduler import Event, Job, Scheduler

UNIT = st.floats(0, 1)
LOADS = st.builds(Load, st.integers(0, 40), st.none() | st.floats(0.01, 500))
SETTINGS = st.builds(
    lambda one, other, latency, queue: LoadSettings(min(one, other), max(one, other), latency, queue),
    UNIT,
    UNIT,
    st.none() | st.floats(0.1, 1000),
    st.none() | st.integers(0, 16),
)
TOLERANCE = 1e-9


@given(LOADS, SETTINGS, UNIT)
def test_more_load_never_allows_more(load: Load, settings: LoadSettings, held: float) -> None:
    budget = wanted_budget(held, load, settings)
    assert settings.lowest <= budget <= settings.highest
    more = [replace(load, waiting=load.waiting + 1)]
    if load.between_ms is not None:
        more.append(replace(load, between_ms=2 * load.between_ms))
    assert all(wanted_budget(held, each, settings) <= budget + TOLERANCE for each in more)


@given(SETTINGS, UNIT, st.floats(0, 300), st.floats(0, 300), st.integers(0, 40))
def test_it_settles_at_what_the_target_allows(
    settings: LoadSettings, start: float, fixed_ms: float, dense_ms: float, waiting: int
) -> None:
    """On a machine where a part of a round's time does not depend on the budget."""
    state, budgets = LoadState(start), []
    for _ in range(40 * RISE_AFTER):
        state = next_state(state, Load(waiting, fixed_ms + dense_ms * state.budget), settings)
        budgets.append(state.budget)
    assert all(settings.lowest <= budget <= settings.highest for budget in budgets)
    held, between_ms = budgets[-1], fixed_ms + dense_ms * budgets[-1]
    assert wanted_budget(held, Load(waiting, between_ms), settings) == pytest.approx(held, abs=BAND + TOLERANCE)
    if settings.target_latency_ms is not None and held > max(settings.lowest, 2 * BAND):
        assert between_ms <= settings.target_latency_ms * held / (held - BAND) + TOLERANCE


@given(LOADS, LOADS, SETTINGS)
def test_loads_in_turn_do_not_move_it_up_and_down(one: Load, other: Load, settings: LoadSettings) -> None:
    state, budgets = LoadState(settings.highest), []
    for turn in range(60):
        state = next_state(state, (one, other)[turn % 2], settings)
        budgets.append(state.budget)
    turns = sum(after > before for before, after in pairwise(budgets))
    assert turns <= 60 / RISE_AFTER or one.between_ms is None or other.between_ms is None


@pytest.mark.parametrize(
    "wrong", [(0.5, 0.4), (-0.1, 1.0), (0.1, 1.1), (0.1, 1.0, 0.0), (0.1, 1.0, float("nan")), (0.1, 1.0, None, -1)]
)
def test_wrong_settings_are_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match="expected"):
        LoadSettings(*wrong)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    folder: Path = tmp_path_factory.mktemp("loaded")
    decoder = replace(describe("llama"), max_context=8192)
    return SolModel.from_pretrained(
        write_bundle(folder / "tiny", decoder=decoder, losses=True), provider="cpu", measure_costs=False
    )


class Run:
    """An answer of a scheduler, and its summary."""

    def __init__(self, scheduler: Scheduler, model: SolModel, asked: Asked, count: int = 40) -> None:
        self.begun, self.ended, self.error = threading.Event(), threading.Event(), None
        self.served: Served | None = None
        stream = model.stream(asked.prompt, max_new_tokens=count, eos_token_id=[], reuse_cache=True, **asked.arguments)
        dial = scheduler.control.dial(stream, asked)

        def tell(event: Event | None) -> None:
            self.begun.set()
            if isinstance(event, Generation):
                self.served = dial.served(event)
            if isinstance(event, (Generation, Exception)) or event is None:
                self.ended.set()

        self.job = Job(stream, stream.prompt, tell, dial, asked.background)
        scheduler.submit(self.job)

    def result(self) -> Served:
        assert self.ended.wait(60)
        assert self.served is not None
        return self.served


def asked(headers: dict[str, str] | None = None, **fields: Any) -> Asked:
    return read_completion({"prompt": [4, 5], "max_tokens": 40, **fields}, headers or {}, "tiny")


def test_load_lowers_all_but_the_priority(model: SolModel) -> None:
    """A target of a microsecond is never met."""
    scheduler = Scheduler(model, sessions=3, load=LoadSettings(0.4, 1.0, target_latency_ms=1e-3))
    try:
        runs = [
            Run(scheduler, model, each, 4000)
            for each in (asked(budget=1), asked(budget=1, service_tier="priority"), asked(budget=0.3))
        ]
        lowered, kept, below = (run.result() for run in runs)
    finally:
        scheduler.close()
    assert (lowered.reason, kept.reason, below.reason) == ("load", "asked", "asked")
    assert lowered.achieved_budget < 0.7 < kept.achieved_budget == 1.0
    assert lowered.told["asked"] == {"budget": 1}
    assert below.requested_budget == pytest.approx(0.3)


def test_the_queue_lowers_budgets_and_its_end_raises_them(model: SolModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of a millisecond and more, so that the answer lasts."""
    scheduler = Scheduler(model, sessions=1, load=LoadSettings(0.4, 1.0, target_queue=0))
    monkeypatch.setattr(scheduler.control, "took", lambda token, seconds: time.sleep(1e-3))
    try:
        first = Run(scheduler, model, asked(), 6000)
        assert first.begun.wait(60)
        waiting = Run(scheduler, model, asked())
        while first.job.dial.budget > 0.4:
            assert not first.ended.wait(0.01)
        waiting.job.cancelled = True
        while first.job.dial.budget < first.job.dial.ceiling:
            assert not first.ended.wait(0.01)
        first.job.cancelled = True
        assert first.result().reason == "load"
        assert waiting.ended.wait(60)
    finally:
        scheduler.close()


def test_where_load_lets_go_a_prompt_s_loss_counts_once(tmp_path: Path) -> None:
    """The steps come back to the budget that the core holds them to where load never moved them."""
    bundle = with_losing_prompts(
        write_bundle(tmp_path / "tiny", decoder=replace(describe("llama"), max_context=8192), losses=True), q4=0.002
    )
    model = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    prompt = [3 + n % 80 for n in range(600)]
    alone = model.generate(prompt, max_new_tokens=8, eos_token_id=[])
    assert (alone.prefill, alone.expected_loss) == ("s100-q4", pytest.approx(0.005, abs=1e-3))
    scheduler = Scheduler(model, sessions=1, load=LoadSettings(0.1))
    try:
        run = Run(scheduler, model, asked({"x-sol-budget-max": "0.2"}, prompt=prompt), 6000)
        assert run.begun.wait(60)
        run.job.dial.most = 1.0 - 1e-9
        while run.job.dial.budget == 0.2:
            assert not run.ended.wait(0.01)
        assert run.job.dial.budget == pytest.approx(alone.requested_budget, abs=0.005)
        run.job.cancelled = True
        assert run.ended.wait(60)
    finally:
        scheduler.close()


@pytest.mark.parametrize(
    ("fields", "most", "budget"),
    [
        ({}, "0.5", 0.5),
        ({"budget": 0.3}, "0.5", 0.3),
        ({"budget": 1}, "0.2", 0.4),  # the operator's minimum
        ({"budget": 1, "service_tier": "priority"}, "0.5", 1.0),
        ({"schedule": "dense"}, "0.5", 1.0),
    ],
)
def test_a_proxy_lowers_budgets(model: SolModel, fields: dict[str, Any], most: str, budget: float) -> None:
    scheduler = Scheduler(model, sessions=1, load=LoadSettings(0.4))
    try:
        served = Run(scheduler, model, asked({"x-sol-budget-max": most}, **fields)).result()
    finally:
        scheduler.close()
    assert served.requested_budget == pytest.approx(budget)
    assert (served.reason == "load") == (budget in (0.5, 0.4))


@pytest.mark.parametrize("most", ["1.1", "-0.1", "nan", "low"])
def test_a_wrong_bound_of_a_proxy_is_refused(most: str) -> None:
    with pytest.raises(FieldError, match="budget_max: got"):
        asked({"x-sol-budget-max": most})


def test_the_governor_lowers_all(model: SolModel) -> None:
    """An empty battery, whatever the priority."""
    scheduler = Scheduler(model, sessions=1, load=LoadSettings(0.4), sensors=lambda: Reading(battery=0.02))
    try:
        served = Run(scheduler, model, asked(budget=1, service_tier="priority")).result()
    finally:
        scheduler.close()
    assert served.reason == "governor"
    assert served.achieved_budget < 1.0


def test_a_sensor_that_fails_keeps_the_last_reading(model: SolModel) -> None:
    readings = iter([OSError("no battery"), Reading(battery=0.02), OSError("no battery")])

    def read() -> Reading:
        reading = next(readings)
        if isinstance(reading, OSError):
            raise reading
        return reading

    scheduler, reasons = Scheduler(model, sessions=1, load=LoadSettings(0.4), sensors=read), []
    try:
        for _ in range(3):
            scheduler.control._governed_at = 0.0
            reasons.append(Run(scheduler, model, asked(budget=1), 3).result().reason)
    finally:
        scheduler.close()
    assert reasons == ["asked", "governor", "governor"]


@pytest.mark.parametrize("schedule", ["dense", "fixed:k030-s100-q4"])
@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"load": LoadSettings(0.3, 0.5)}, {}),
        ({"load": LoadSettings(0.4, 1.0, target_queue=0)}, {}),
        ({"sensors": lambda: Reading(battery=1.0)}, {}),
        ({}, {"deadline_ms": 60_000}),
    ],
)
def test_a_schedule_that_no_budget_moves_is_refused_where_budgets_move(
    model: SolModel, schedule: str, settings: dict[str, Any], fields: dict[str, Any]
) -> None:
    scheduler = Scheduler(model, sessions=1, **settings)
    try:
        with pytest.raises(FieldError, match="schedule: this server moves budgets"):
            Run(scheduler, model, asked(schedule=schedule, **fields))
        Run(scheduler, model, asked(schedule="uniform", budget=0.5, **fields)).result()
    finally:
        scheduler.close()


def test_the_operator_s_bound_holds_for_all(model: SolModel) -> None:
    scheduler = Scheduler(model, sessions=1, load=LoadSettings(0.3, 0.5))
    try:
        served = Run(scheduler, model, asked(budget=1, service_tier="priority")).result()
    finally:
        scheduler.close()
    assert served.requested_budget == pytest.approx(0.5)


def test_a_moved_dial_is_what_the_client_asks_for(model: SolModel) -> None:
    scheduler = Scheduler(model, sessions=1, load=LoadSettings(0.1, 1.0, target_latency_ms=1e9))
    try:
        run = Run(scheduler, model, asked(budget=1), 6000)
        run.job.dial.ask(0.5)
        served = run.result()
    finally:
        scheduler.close()
    assert (served.told["asked"], served.reason) == ({"budget": 0.5}, "asked")
    assert served.achieved_budget < 0.95


def test_a_level_of_effort_is_a_budget() -> None:
    own = dict(map(parse_effort, ["low=0.4", "high=0.9"]))
    assert own == {"low": 0.4, "high": 0.9}
    low = with_effort(asked(reasoning_effort="low"), own, 0.5)
    assert (low.arguments["budget"], low.by_effort) == (0.4, True)
    explicit = with_effort(asked(reasoning_effort="low", max_loss=0.1), own, 0.5)
    assert "budget" not in explicit.arguments
    assert not explicit.by_effort
    assert with_effort(asked(reasoning_effort="minimal"), own, 0.7).arguments["budget"] == 0.7
    none = with_effort(asked(reasoning_effort="none"), own, 0.7)
    assert ("budget" in none.arguments, none.ignored) == (False, ("reasoning_effort",))
    assert "budget" not in with_effort(asked(reasoning_effort="medium"), own, 0.7).arguments
    assert tuple(DEFAULTS) == EFFORTS


def test_an_effort_is_the_reason(model: SolModel) -> None:
    scheduler = Scheduler(model, sessions=1)
    try:
        served = Run(scheduler, model, with_effort(asked(reasoning_effort="low"), {}, 0.1)).result()
    finally:
        scheduler.close()
    assert served.told == {"asked": {"budget": 0.8}, "reason": "effort"}


@pytest.mark.parametrize("text", ["low", "low=", "odd=0.4", "low=2", "low=nan", "low=0.4:256"])
def test_wrong_levels_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_effort(text)


@pytest.mark.parametrize("fields", [{"reasoning_effort": "huge"}, {"service_tier": "gold"}, {"service_tier": 1}])
def test_unknown_words_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match="expected"):
        asked(**fields)
