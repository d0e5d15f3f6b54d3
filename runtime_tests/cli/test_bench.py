"""Bench: its tests, what a repetition runs and reads, what it leaves in the cache, the figures of a row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.random_decoder import describe
from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.engine.step import StepOutput
from sol_rt.errors import UsageError
from sol_rt.evaluation.speed.bench import Bench, Case, Row, Setup, plan
from sol_rt.generate.stream import Stream

FLOOR = "k030-s050-q4"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for the policy to cost little beside it."""
    decoder = replace(
        describe("llama"),
        hidden_size=128,
        num_layers=4,
        rope_of_layer=(0,) * 4,
        head_dim=32,
        rotary_dim=32,
        intermediate_size=256,
    )
    return write_bundle(tmp_path_factory.mktemp("bench") / "small", decoder=decoder, policy=True, losses=True)


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)


@dataclass(frozen=True)
class Call:
    """One `forward`: tokens in the cache before it, the tokens it appended, the action."""

    start: int
    tokens: tuple[int, ...]
    action: Action


@pytest.fixture
def calls(model: SolModel, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Calls of the engine's `forward`."""
    made: list[Call] = []
    forward = model.engine.forward

    def noted(tokens: Any, action: Action, **settings: Any) -> StepOutput:
        made.append(Call(model.engine.length, tuple(int(token) for token in tokens), action))
        return forward(tokens, action, **settings)

    monkeypatch.setattr(model.engine, "forward", noted)
    model.engine.reset()
    return made


def test_tests_come_in_llama_benchs_order(model: SolModel) -> None:
    planned = plan(model, n_prompt=(64, 0, 8), n_gen=(4,), n_depth=(0, 32), budgets=(1.0, 0.5))
    assert [(test.name, test.schedule, test.budget) for test in planned.tests] == [
        ("pp64", "dense", None),
        ("pp8", "dense", None),
        ("tg4", "sol", 1.0),
        ("tg4", "sol", 0.5),
        ("pp64 @ d32", "dense", None),
        ("pp8 @ d32", "dense", None),
        ("tg4 @ d32", "sol", 1.0),
        ("tg4 @ d32", "sol", 0.5),
    ]
    assert planned.left_out == ()


def test_constant_schedules_have_one_row(model: SolModel) -> None:
    planned = plan(model, n_prompt=(0,), n_gen=(4,), schedules=("uniform", f"fixed:{FLOOR}", "dense"))
    assert [(test.schedule, test.budget) for test in planned.tests] == [
        ("uniform", 1.0),
        ("uniform", 0.6),
        ("uniform", 0.4),
        (f"fixed:{FLOOR}", None),
        ("dense", 1.0),
    ]


def test_tests_beyond_the_context_are_left_out_and_named(model: SolModel) -> None:
    limit = model.engine.max_context
    planned = plan(model, n_prompt=(16, 17), n_gen=(16, 17), n_depth=(limit - 16,), budgets=(1.0, 0.4))
    assert [test.name for test in planned.tests] == [f"pp16 @ d{limit - 16}", *[f"tg16 @ d{limit - 16}"] * 2]
    assert planned.left_out == (f"pp17 @ d{limit - 16}", f"tg17 @ d{limit - 16}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_prompt": (-1,)}, "--n-prompt: got -1"),
        ({"n_gen": (8, -2)}, "--n-gen: got -2"),
        ({"n_depth": (-3,)}, "--n-depth: got -3"),
        ({"n_depth": (10**6,)}, "--n-depth: got 1000000, expected less than"),
        ({"n_prompt": (0,), "n_gen": (0,)}, "no tokens to process"),
        ({"n_prompt": (10**6,), "n_gen": ()}, "exceed the model's context"),
        ({"budgets": (1.5,)}, "--budget: got 1.5"),
        ({"budgets": (0.4, -0.1)}, "--budget: got -0.1"),
        ({"budgets": (float("nan"),)}, "--budget: got nan"),
        ({"schedules": ("best",)}, "'best'"),
        ({"schedules": ("fixed:k100-s100-qmix",)}, "no variant s100-qmix"),
        ({"schedules": ("fixed:q4",)}, "action tag"),
        ({"schedules": ("dense",), "budgets": (0.4,)}, "leave out --budget"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    model: SolModel, calls: list[Call], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan(model, **settings)
    assert calls == []


def test_a_run_needs_a_repetition(model: SolModel) -> None:
    with pytest.raises(UsageError, match="--repetitions"):
        Bench(model).run(Case(0, 4, 0), 0)


@pytest.mark.parametrize("schedule", ["sol", "uniform", "random"])
def test_a_generation_meets_its_budget_and_returns_to_its_depth(model: SolModel, schedule: str) -> None:
    row = Bench(model).run(Case(0, 96, 48, schedule, 0.6), 2)
    assert row.achieved_budget == pytest.approx(0.6, abs=0.02)
    assert sum(row.actions.values()) == 2 * 96
    assert len(row.actions) > 1
    assert len(row.samples_ns) == 2
    assert min(row.samples_ns) > 0
    assert model.engine.length == 48


@pytest.mark.parametrize("depth", [1, 40])
def test_the_depth_is_filled_once_and_only_densely(model: SolModel, calls: list[Call], depth: int) -> None:
    bench = Bench(model)
    for budget in (0.4, 0.6):
        bench.run(Case(0, 8, depth, "uniform", budget), 2)
    bench.run(Case(16, 0, depth), 2)
    dense = model.bundle.config.dense
    assert calls[0].start == 0
    assert len(calls[0].tokens) == depth
    assert {call.action for call in calls if call.start < depth} == {dense}
    # but for the last token, whose distribution every generation starts from, nothing below the depth is run again
    assert {(call.start, len(call.tokens)) for call in calls[1:] if call.start < depth} == {(depth - 1, 1)}
    # a warm-up and two repetitions of the prompt, from the depth
    assert [(call.start, len(call.tokens)) for call in calls if call.start >= depth] == [(depth, 16)] * 3


def test_tests_in_turn_take_turns_every_repetition(model: SolModel, calls: list[Call]) -> None:
    tests = [Case(0, 3, 20, f"fixed:{FLOOR}"), Case(7, 0, 20), Case(0, 2, 20, "dense", 1.0)]
    rows = Bench(model).run_in_turn(tests, 2)
    assert [row.test for row in rows] == tests
    assert [len(row.samples_ns) for row in rows] == [2, 2, 2]
    assert [row.actions for row in rows] == [{FLOOR: 6}, {}, {model.bundle.config.dense.tag: 4}]
    filled = [(0, 20), (19, 1), (19, 1)]
    turn = [(19, 1), (20, 7)]
    first, *later = [(call.start, len(call.tokens)) for call in calls]
    assert first == filled[0]
    assert [each for each in later if each[0] == 20] == [(20, 7)] * 3
    assert set(later) == set(turn)
    assert model.engine.length == 20


def test_depth_zero_decodes_after_one_token(model: SolModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, run_next = [], Stream._run_next

    def noted(stream: Stream) -> None:
        run_next(stream)
        lengths.append(model.engine.length)

    monkeypatch.setattr(Stream, "_run_next", noted)
    row = Bench(model).run(Case(0, 4, 0, f"fixed:{FLOOR}"), 1)
    assert row.actions == {FLOOR: 4}
    assert lengths[-5:] == [1, 2, 3, 4, 5]  # after a token that is not timed


def test_deeper_tests_do_not_start_from_cheap_steps(model: SolModel, calls: list[Call]) -> None:
    bench = Bench(model)
    bench.run(Case(0, 24, 8, f"fixed:{FLOOR}"), 1)
    calls.clear()
    bench.run(Case(0, 4, 20, "dense", 1.0), 1)
    assert (calls[0].start, len(calls[0].tokens)) == (8, 12)
    assert calls[0].action == model.bundle.config.dense


def test_the_same_tokens_from_cheap_steps_of_another_run_are_not_taken(model: SolModel, calls: list[Call]) -> None:
    bench = Bench(model)
    bench.run(Case(0, 4, 20, "dense", 1.0), 1)
    model.score(calls[0].tokens, context=4, schedule=f"fixed:{FLOOR}")
    calls.clear()
    bench.run(Case(0, 4, 16, "dense", 1.0), 1)
    assert (calls[0].start, len(calls[0].tokens)) == (0, 16)


def test_an_interrupted_run_leaves_the_depth(
    model: SolModel, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, run_next = Bench(model), Stream._run_next

    def interrupted(stream: Stream) -> None:
        if model.engine.length == 25:
            raise KeyboardInterrupt
        run_next(stream)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "_run_next", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.run(Case(0, 10, 20, f"fixed:{FLOOR}"), 1)
    assert model.engine.length == 20
    calls.clear()
    bench.run(Case(0, 4, 20, "dense", 1.0), 1)
    assert {call.start for call in calls if call.start < 20} == {19}


@pytest.mark.parametrize(("schedule", "budget"), [("sol", 0.6), ("uniform", 0.5), ("dense", 1.0)])
def test_bench_runs_the_steps_of_generation(model: SolModel, calls: list[Call], schedule: str, budget: float) -> None:
    """Counts of each action equal those that a loop over the steps of a `Decoder` takes."""
    row = Bench(model).run(Case(0, 80, 24, schedule, budget), 1)
    prompt = list(calls[0].tokens)
    decoder = model.decoder(Dial(None if schedule == "dense" else budget, schedule))
    decoder.prefill(prompt[:-1])
    decoder.prefill(prompt, reuse=True)  # as the bench does: the last token of the prompt alone
    for _ in range(80):
        decoder.step(int(np.argmax(decoder.output.logits[-1])))
    assert row.actions == decoder.actions
    assert row.achieved_budget == decoder.achieved


def test_the_depth_is_filled_dense_whatever_runs_prompts(
    model: SolModel, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "prefill", Action(1.0, 1.0, 4))
    Bench(model).run(Case(0, 3, 24, f"fixed:{FLOOR}"), 2)
    before = [call for call in calls if call.start < 24]
    assert len(before) > 2
    assert {call.action for call in before} == {model.bundle.config.dense}


def test_bytes_of_a_fixed_action(model: SolModel) -> None:
    """Against the formula of docs/reference/bundle-details.md section 4, written out."""
    config = model.bundle.config
    dims, action = config.model, Action.parse(FLOOR)
    row = Bench(model).run(Case(0, 5, 100, f"fixed:{FLOOR}"), 3)
    expected = 0
    for context in range(100, 105):
        old_pages = -(-(context + 1) // 4) - 1
        pages = -(-old_pages * 30 // 100)
        tokens = 4 * (pages + 1) + config.kv.sinks
        codes = 4 * old_pages * (dims.head_dim // 2 + 4)
        expected += config.variants[action.variant].weight_bytes
        expected += dims.num_layers * dims.num_kv_heads * (4 * dims.head_dim * tokens + codes)
    assert row.bytes_read == 3 * expected
    assert row.actions == {FLOOR: 15}
    assert row.test.budget is None
    assert row.gb_per_second == pytest.approx(3 * expected / sum(row.samples_ns))


def test_bytes_count_the_policy(model: SolModel, calls: list[Call]) -> None:
    config = model.bundle.config
    steps = 32
    row = Bench(model).run(Case(0, steps, 32, "sol", 0.7), 1)
    prompt = list(calls[0].tokens)
    stream = model.stream(
        prompt, schedule="sol", budget=0.7, max_new_tokens=steps + 1, do_sample=False, eos_token_id=[], reuse_cache=True
    )
    taken = [token.action for token in stream][1:]
    expected = sum(BytesCost(config).step(action, 32 + index) for index, action in enumerate(taken))
    assert config.policy is not None
    assert row.bytes_read == pytest.approx(expected + steps * config.files[config.policy.file].bytes)


def test_a_prompt_is_dense_and_has_no_budget(model: SolModel) -> None:
    row = Bench(model, read_gb_per_second=10.0).run(Case(64, 0, 16), 2)
    result = row.as_json()
    assert (result["test"], result["n_prompt"], result["n_gen"], result["n_depth"]) == ("pp64 @ d16", 64, 0, 16)
    assert result["schedule"] == "dense"
    for key in ("budget", "achieved_budget", "gb_per_second", "bandwidth_share"):
        assert result[key] is None
    assert result["avg_ts"] > 0
    assert model.engine.length == 16


def made_row(samples: tuple[int, ...], read: float | None = None, limit: float | None = None) -> Row:
    machine = ("cpu", "a processor", "native", 2)
    setup = Setup("1", "1.32", "a processor", "tiny", "tiny", 1, *machine, "bytes", "s100-q8", limit)
    return Row(setup, Case(0, 128, 0, "uniform", 0.5), 0.5, {}, "2026-01-01T00:00:00+00:00", samples, read, 1.0)


def test_figures_of_a_row() -> None:
    """Means and sample deviations as numpy has them; bytes a nanosecond are GB/s."""
    samples = (10**9, 2 * 10**9, 4 * 10**9)
    result = made_row(samples, read=21e9, limit=6.0).as_json()
    rates = 128e9 / np.array(samples)
    assert result["samples_ts"] == pytest.approx(rates)
    assert result["avg_ts"] == pytest.approx(rates.mean())
    assert result["stddev_ts"] == pytest.approx(rates.std(ddof=1))
    assert result["avg_ns"] == pytest.approx(np.mean(samples))
    assert result["stddev_ns"] == pytest.approx(np.std(samples, ddof=1))
    assert result["gb_per_second"] == pytest.approx(3.0)
    assert result["bandwidth_share"] == pytest.approx(0.5)


def test_one_repetition_has_no_spread_and_no_limit_no_share() -> None:
    result = made_row((10**9,), read=1e9).as_json()
    assert result["stddev_ts"] == result["stddev_ns"] == 0
    assert result["gb_per_second"] == pytest.approx(1.0)
    assert result["bandwidth_share"] is None
