"""Generation and scoring: exactness at full budget, budgets held, streams, traces, replays, chat."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from helpers.random_decoder import describe
from helpers.tiny_bundle import END, seal, write_bundle
from sol_rt import SolModel
from sol_rt.budget.cost import profile
from sol_rt.budget.cost.cost_table import MeasuredCost
from sol_rt.budget.dial import Dial, sensible_budget
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.engine import providers
from sol_rt.errors import BundleError, ContextError, QualityWarning, UsageError
from sol_rt.generate.native.engine import Engine
from sol_rt.generate.trace import read_trace
from sol_rt.progress import silent

import onnxruntime as ort

PROMPT = "w1 w2 w3 w4 w5 w6"
LONG = {"max_new_tokens": 129, "eos_token_id": []}
CHANNEL_COUNTS = ("active_up", "active_down", "active_qkv", "active_o")
FLOOR = "fixed:k030-s050-q4"


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
    return write_bundle(tmp_path_factory.mktemp("model") / "small", decoder=decoder, policy=True, losses=True)


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)


def _alone(bundle: Path, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens and their top logits from the dense graph in a session and on arrays of its own."""
    config = Bundle.open(bundle).config
    options = providers.choose("cpu").options()
    file = bundle / config.variants[config.dense.variant].file
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {
        node.name: np.zeros((*node.shape[:2], 256, node.shape[3]), node.type[len("tensor(") : -1])
        for node in session.get_inputs()
        if node.name.startswith("past_") and node.name != "past_length"
    }
    names = [node.name for node in session.get_outputs()]
    tokens, tops, fed = [], [], prompt
    for _ in range(count):
        past = len(prompt) + len(tokens) - 1 if tokens else 0
        feed |= {name: np.array([value]) for name, value in {"past_length": past, "num_logits": 1}.items()}
        counts = {"kv_pages": 10**6, **dict.fromkeys(CHANNEL_COUNTS, 0)}
        feed |= {name: np.full(config.model.num_layers, value) for name, value in counts.items()}
        feed["input_ids"] = np.array([fed], np.int64)
        feed["total_length"] = np.array([past + len(fed)], np.int32)
        outputs = dict(zip(names, session.run(names, feed), strict=True))
        for name, value in outputs.items():
            if name.startswith("present"):
                feed[name.replace("present_key", "past_key").replace("present.", "past_key_values.")] = value
        tokens.append(int(outputs["logits"][0].argmax()))
        tops.append(float(outputs["logits"][0].max()))
        fed = [tokens[-1]]
    return tokens, tops


@pytest.mark.parametrize("schedule", ["sol", "uniform", "random", "dense"])
def test_full_budget_is_the_dense_graph_bit_by_bit(bundle: Path, model: SolModel, schedule: str) -> None:
    tokens, tops = _alone(bundle, model.tokenizer.encode(PROMPT), 129)
    result = model.generate(PROMPT, budget=1.0, schedule=schedule, **LONG)
    assert result.tokens == tokens
    assert result.actions == {"k100-s100-q8": 128}
    assert result.achieved_budget == 1.0
    decoder = model.decoder(Dial(1.0, schedule))
    decoder.prefill(model.tokenizer.encode(PROMPT))
    seen = [float(decoder.output.logits.max())]
    for token in tokens[:-1]:
        decoder.step(token)
        seen.append(float(decoder.output.logits.max()))
    assert seen == tops


@pytest.mark.parametrize("schedule", ["uniform", "random", "sol"])
@pytest.mark.parametrize("budget", [0.6, 0.7, 0.9])
def test_budgets_are_held(model: SolModel, schedule: str, budget: float) -> None:
    result = model.generate(PROMPT, budget=budget, schedule=schedule, seed=3, **LONG)
    assert abs(result.achieved_budget - budget) <= 0.02
    assert result.requested_budget == budget
    assert result.schedule == schedule
    assert sum(result.actions.values()) == 128
    assert len(result.actions) > 1


def test_a_budget_below_the_floor_is_served_and_said(model: SolModel) -> None:
    result = model.generate(PROMPT, budget=0.1, schedule="uniform", **LONG)
    assert result.floored
    assert result.achieved_budget == pytest.approx(
        model.generate(PROMPT, schedule=FLOOR, **LONG).achieved_budget, abs=0.02
    )


def test_fixed_takes_any_kv_density(model: SolModel) -> None:
    result = model.generate(PROMPT, schedule="fixed:k077-s050-q6", **LONG)
    assert result.actions == {"k077-s050-q6": 128}
    assert result.requested_budget == result.achieved_budget < 1
    with pytest.raises(UsageError, match="fixes the action"):
        model.generate(PROMPT, schedule="fixed:k077-s050-q6", budget=0.5)
    with pytest.raises(UsageError, match="s025-q4"):
        model.generate(PROMPT, schedule="fixed:k100-s025-q4")


def test_axis_targets(model: SolModel) -> None:
    result = model.generate(PROMPT, schedule="uniform", bits=6.0, **LONG)
    bits = [Action.parse(tag).bits * count for tag, count in result.actions.items()]
    assert sum(bits) / 128 == pytest.approx(6.0, abs=0.2)


def test_repr_is_one_helpful_line(model: SolModel) -> None:
    config = model.bundle.config
    said = repr(model)
    assert "\n" not in said
    for part in (
        f"SolModel {config.model.name}",
        f"{len(config.variants)} variants",
        f"{len(config.actions)} actions",
        "costs bytes",
        f"cpu, {model.provider.threads} threads",
        f"context {model.engine.max_context} tokens",
    ):
        assert part in said


def test_steps_and_summary_agree(model: SolModel) -> None:
    stream = model.stream(PROMPT, budget=0.7, schedule="random", seed=5, **LONG)
    assert stream.result is None
    steps = list(stream)
    result = stream.result
    assert result is not None
    assert result.tokens == [step.token for step in steps]
    assert result.text == "".join(step.text for step in steps)
    assert result.text.split() == [f"w{step.token}" for step in steps if step.token < 86]
    assert steps[0].cost == 0
    assert steps[0].action == Action(1.0, 1.0, 8)
    assert [step.finish_reason for step in steps] == [None] * 128 + ["length"]
    assert steps[-1].achieved_budget == result.achieved_budget
    dense = [model.cost.dense(result.prompt_tokens + index) for index in range(128)]
    assert sum(step.cost for step in steps) / sum(dense) == pytest.approx(result.achieved_budget)
    relative = [step.cost / full for step, full in zip(steps[1:], dense, strict=True)]
    assert relative == pytest.approx([step.relative_cost for step in steps[1:]])
    assert result.peak_rss_mb > 10
    assert result.time_to_first_token_ms > 0


def test_the_same_call_gives_the_same_tokens(model: SolModel) -> None:
    arguments = {"budget": 0.7, "schedule": "random", "seed": 7, "do_sample": True, "temperature": 1.5, **LONG}
    first = model.generate(PROMPT, **arguments)
    assert model.generate(PROMPT, **arguments).tokens == first.tokens
    assert model.generate(model.tokenizer.encode(PROMPT), **arguments).tokens == first.tokens
    assert model.generate(PROMPT, **{**arguments, "seed": 8}).tokens != first.tokens


def test_end_tokens_and_stop_strings_end_the_text(model: SolModel) -> None:
    others = dict.fromkeys(range(86, 90), -100)  # words of a name that is not their number
    arguments: dict[str, Any] = {
        "do_sample": True, "temperature": 3.0, "top_k": 0, "seed": 1, "max_new_tokens": 129, "logit_bias": others,
    }  # fmt: skip
    full = model.generate(PROMPT, **arguments, eos_token_id=[])
    end = full.tokens[20]
    first = full.tokens.index(end)
    ended = model.generate(PROMPT, **arguments, eos_token_id=[end])
    assert ended.tokens == full.tokens[: first + 1]
    assert ended.finish_reason == "stop"
    assert ended.text == "".join(f" w{token}" for token in full.tokens[:first])
    stopped = model.generate(PROMPT, **arguments, eos_token_id=[], stop_strings=[f"w{end} "])
    assert f"w{end} " not in stopped.text
    assert stopped.text.rstrip() == ended.text.rstrip()
    assert stopped.finish_reason == "stop"


def test_the_config_gives_the_end_token(bundle: Path, model: SolModel) -> None:
    assert Bundle.open(bundle).config.model.eos_token_ids == (END,)
    result = model.generate(PROMPT, do_sample=True, temperature=100.0, top_k=0, seed=3, max_new_tokens=250)
    assert result.finish_reason == "stop"
    assert result.tokens[-1] == END


def test_the_context_ends_a_text(model: SolModel) -> None:
    prompt = [5] * 250
    result = model.generate(prompt, max_new_tokens=100, eos_token_id=[])
    assert len(result.tokens) == 256 - 250 + 1
    assert result.finish_reason == "length"
    with pytest.raises(ContextError, match="257 tokens"):
        model.generate([5] * 257)
    with pytest.raises(ContextError, match=r"the first \d+ of which are \d+ tokens, expected at most 256"):
        model.generate("w1 " * 100_000)


@pytest.mark.parametrize("prompt", ["", [], None])
def test_empty_prompts(model: SolModel, prompt: str | list[int] | None) -> None:
    with pytest.raises(UsageError, match="prompt"):
        model.generate(prompt)


def test_an_empty_text_is_no_prompt_of_a_replay(model: SolModel, tmp_path: Path) -> None:
    model.generate(PROMPT, max_new_tokens=2, trace=tmp_path / "trace.jsonl")
    with pytest.raises(UsageError, match="prompt: got an empty one"):
        model.generate("", replay=read_trace(tmp_path / "trace.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"budget": 1.5}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"schedule": "fast"}, "fast"),
        ({"temprature": 1.0}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"budget": 0.5, "bits": 5.0}, "contradict"),
        ({"tokens_per_second": 10.0}, "profile"),
    ],
)
def test_unusable_arguments(model: SolModel, arguments: dict[str, object], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        model.stream(PROMPT, **arguments)


def test_sol_needs_a_policy(tmp_path: Path) -> None:
    without = SolModel.from_pretrained(
        write_bundle(tmp_path / "tiny", channel_densities=(1.0,), bits=(8, 4)), provider="cpu"
    )
    assert without.generate(PROMPT, budget=0.8, max_new_tokens=8).schedule == "uniform"
    with pytest.raises(UsageError, match="policy"):
        without.generate(PROMPT, budget=0.8, schedule="sol")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    """A model whose actions have losses; its costs are bytes."""
    folder = write_bundle(tmp_path_factory.mktemp("measured") / "tiny", losses=True)
    return SolModel.from_pretrained(folder, provider="cpu", measure_costs=False)


@pytest.fixture(scope="module")
def with_policy(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    """The same with a policy."""
    folder = write_bundle(tmp_path_factory.mktemp("with-policy") / "tiny", losses=True, policy=True)
    return SolModel.from_pretrained(folder, provider="cpu", measure_costs=False)


def test_without_a_dial_the_fastest_mix_within_the_default_loss_runs(measured: SolModel) -> None:
    result = measured.generate(PROMPT, **LONG)
    assert result.schedule == "hull"
    assert result.achieved_budget < 0.95
    assert result.expected_loss == pytest.approx(math.log(1.005), rel=0.2)
    assert result.dense_tokens_per_second == pytest.approx(result.tokens_per_second * result.achieved_budget)
    looser = measured.generate(PROMPT, max_loss=0.05, **LONG)
    assert looser.achieved_budget < result.achieved_budget
    assert looser.expected_loss == pytest.approx(math.log(1.05), rel=0.2)


def test_a_full_budget_is_dense_though_losses_are_known(measured: SolModel) -> None:
    result = measured.generate(PROMPT, budget=1.0, **LONG)
    assert set(result.actions) == {measured.bundle.config.dense.tag}
    assert result.tokens == measured.generate(PROMPT, schedule="dense", **LONG).tokens
    assert result.expected_loss == 0.0


def test_without_losses_nothing_is_assumed(tmp_path: Path) -> None:
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny", policy=True), provider="cpu")
    result = model.generate(PROMPT, max_new_tokens=8)
    assert set(result.actions) == {model.bundle.config.dense.tag}
    with pytest.raises(UsageError, match="no losses"):
        model.generate(PROMPT, max_loss=0.01)


def test_scoring_is_dense_by_default(measured: SolModel) -> None:
    assert measured.score(list(range(3, 40))).achieved_budget == 1.0


def test_a_budget_below_the_sensible_ones_is_warned_of_once(measured: SolModel) -> None:
    assert measured.hull is not None
    least = sensible_budget(measured.hull, len(measured.tokenizer.encode(PROMPT)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured.generate(PROMPT, budget=least + 0.02, max_new_tokens=2)
    with pytest.warns(QualityWarning, match=rf"asks for {least - 0.1:.2f} .* below {least:.2f}"):
        measured.generate(PROMPT, budget=least - 0.1, max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured.generate(PROMPT, budget=least - 0.1, max_new_tokens=2)


def test_a_loose_loss_is_warned_of_too(tmp_path: Path) -> None:
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny", losses=True), provider="cpu", measure_costs=False)
    with pytest.warns(QualityWarning, match="of the dense cost"):
        model.generate(PROMPT, max_loss=0.3, max_new_tokens=2)


def test_schedules_that_keep_no_loss_are_dense_without_a_dial_and_refuse_a_loss(measured: SolModel) -> None:
    assert measured.generate(PROMPT, schedule="uniform", max_new_tokens=8).achieved_budget == 1.0
    with pytest.raises(UsageError, match="uniform keeps no loss"):
        measured.generate(PROMPT, schedule="uniform", max_loss=0.01)


def test_a_loss_of_a_bundle_without_losses_is_refused(tmp_path: Path) -> None:
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny"), provider="cpu", measure_costs=False)
    assert model.default_schedule() == "uniform"
    with pytest.raises(UsageError, match="no losses of this bundle's actions were measured"):
        model.generate(PROMPT, max_loss=0.01)


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
def test_scattered_times_serve_for_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    folder = write_bundle(tmp_path / "tiny", losses=True)
    assert SolModel.from_pretrained(folder, provider="cpu").cost.unit == "milliseconds"
    (table,) = (tmp_path / "home" / "costs").iterdir()
    scattered = {**json.loads(table.read_text()), "steady": False}
    table.write_text(json.dumps(scattered))
    assert SolModel.from_pretrained(folder, provider="cpu").cost.note == ""  # read, not measured
    for created in ("2020-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "2020-01-01T00:00:00", "last week"):
        table.write_text(json.dumps({**scattered, "created": created}))
        assert "measured what each action costs" in SolModel.from_pretrained(folder, provider="cpu").cost.note


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_said_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "file" / "home"))
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny", losses=True), provider="cpu")
    assert model.cost.unit == "milliseconds"
    assert "cannot be made (Not a directory); make it writable, or set SOL_RT_HOME" in model.cost.note
    assert model.generate(PROMPT, max_new_tokens=2).tokens


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
def test_a_stale_cost_table_stays_and_a_quick_one_serves_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    folder = write_bundle(tmp_path / "tiny", losses=True)
    SolModel.from_pretrained(folder, provider="cpu")
    (quick,) = (tmp_path / "home" / "costs").iterdir()
    kept = {**json.loads(quick.read_text()), "quick": False, "device": "another machine"}
    full = quick.with_name(quick.name.replace(".quick", ""))
    full.write_text(json.dumps(kept))
    quick.unlink()
    model = SolModel.from_pretrained(folder, provider="cpu")
    assert model.cost.unit == "milliseconds"
    assert "another machine" in model.cost.note
    assert json.loads(full.read_text()) == kept
    again = SolModel.from_pretrained(folder, provider="cpu")
    assert again.cost.unit == "milliseconds"
    assert "another machine" in again.cost.note  # still said
    assert "measured" not in again.cost.note  # but not measured at every load


def test_a_trace_has_the_bias_as_it_was_given(model: SolModel, tmp_path: Path) -> None:
    biases = {3: 1.3, 4: -0.1, 5: 100.0, 6: 1e-7}
    model.generate(PROMPT, max_new_tokens=2, logit_bias=biases, trace=tmp_path / "trace.jsonl")
    written = read_trace(tmp_path / "trace.jsonl").header.generation["logit_bias"]
    assert {int(token): bias for token, bias in written.items()} == biases


def test_without_a_folder_for_temporary_files(model: SolModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    model.generate(PROMPT, max_new_tokens=2, trace=tmp_path / "trace.jsonl")
    trace = read_trace(tmp_path / "trace.jsonl")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"replay: .*No such file.*TMPDIR"):
        model.stream(replay=trace)


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
def test_costs_are_measured_once_at_the_first_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    folder = write_bundle(tmp_path / "tiny", losses=True)
    first = SolModel.from_pretrained(folder, provider="cpu")
    assert first.cost.unit == "milliseconds"
    assert "measured what each action costs" in first.cost.note
    (table,) = (tmp_path / "home" / "costs").iterdir()
    content = table.read_bytes()
    second = SolModel.from_pretrained(folder, provider="cpu")
    assert (second.cost.unit, second.cost.note) == ("milliseconds", "")
    assert table.read_bytes() == content
    # measuring commands do not go by a quick table
    assert SolModel.from_pretrained(folder, provider="cpu", measure_costs=False).cost.unit == "bytes"
    for entry in first.bundle.config.actions:
        assert second.cost.step(entry.action, 100) > 0


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
def test_two_first_loads_at_once_leave_one_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    folder = write_bundle(tmp_path / "tiny", losses=True)
    program = "import sys; from sol_rt import SolModel; print(SolModel.from_pretrained(sys.argv[1]).cost.name)"
    command = [sys.executable, "-c", program, str(folder)]
    loads = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [load.communicate()[0].strip() for load in loads] == ["measured", "measured"]
    (table,) = (tmp_path / "home" / "costs").iterdir()
    loaded = SolModel.from_pretrained(folder, provider="cpu").cost
    assert isinstance(loaded, MeasuredCost)
    assert (loaded.path, loaded.note) == (table, "")


@pytest.mark.slow
def test_a_profile_times_the_policy(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "tiny", policy=True))
    engine = Engine(bundle, provider="cpu")
    table = profile.measure(engine, bundle, [8, 24], 1, silent).table
    assert table.policy_ms > 0
    assert engine.length == 0


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
def test_a_rate_is_told_the_fastest_that_can_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny", losses=True), provider="cpu")
    result = model.generate(PROMPT, tokens_per_second=1e9, **LONG)
    assert result.floored
    fastest = min(model.cost.step(entry.action, len(result.tokens)) for entry in model.bundle.config.actions)
    assert result.fastest_tokens_per_second == pytest.approx(1000 / fastest, rel=0.05)


def test_a_closed_stream_leaves_everything_in_order(model: SolModel, tmp_path: Path) -> None:
    expected = model.generate(PROMPT, budget=0.7, schedule="uniform", **LONG)
    trace = tmp_path / "trace.jsonl"
    stream = model.stream(PROMPT, budget=0.7, schedule="uniform", trace=trace, **LONG)
    steps = [next(stream) for _ in range(10)]
    stream.close()
    assert stream.result is not None
    assert stream.result.finish_reason == "closed"
    assert stream.result.tokens == expected.tokens[:10] == [step.token for step in steps]
    assert [record.token for record in read_trace(trace).records] == expected.tokens[:10]
    with pytest.raises(StopIteration):
        next(stream)
    assert model.generate(PROMPT, budget=0.7, schedule="uniform", **LONG).tokens == expected.tokens


def test_a_stream_closed_in_the_middle_of_a_token_ends_after_it(
    model: SolModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal's handler may close it."""
    stream = model.stream(PROMPT, **LONG)
    run_next = stream._run_next

    def interrupted() -> None:
        stream.close()
        run_next()

    next(stream)
    monkeypatch.setattr(stream, "_run_next", interrupted)
    next(stream)
    assert stream.result is not None
    assert len(stream.result.tokens) == 2
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_closed_before_its_first_step(model: SolModel, tmp_path: Path) -> None:
    stream = model.stream(PROMPT, trace=tmp_path / "trace.jsonl", **LONG)
    stream.close()
    assert stream.result is None
    assert read_trace(tmp_path / "trace.jsonl").records == ()


def test_two_generations_cannot_share_the_cache(model: SolModel) -> None:
    first = model.stream(PROMPT, **LONG)
    next(first)
    model.generate(PROMPT, max_new_tokens=3)
    with pytest.raises(UsageError, match="another one"):
        next(first)


@pytest.mark.parametrize("schedule", ["uniform", "random", "sol", FLOOR])
def test_a_trace_replays(model: SolModel, tmp_path: Path, schedule: str) -> None:
    budget = {} if schedule == FLOOR else {"budget": 0.75}
    path = tmp_path / "trace.jsonl"
    first = model.generate(PROMPT, schedule=schedule, trace=path, **budget, **LONG)
    trace = read_trace(path)
    assert [record.token for record in trace.records] == first.tokens
    assert trace.records[-1].achieved == first.achieved_budget
    again = model.generate(replay=trace, **LONG)
    assert again.first_difference is None
    assert again.tokens == first.tokens
    assert again.actions == first.actions
    assert again.achieved_budget == pytest.approx(first.achieved_budget)
    other = replace(trace.records[40], token=(trace.records[40].token + 1) % 86)
    changed = replace(trace, records=(*trace.records[:40], other, *trace.records[41:]))
    assert model.generate(replay=changed, **LONG).first_difference == 40


@pytest.mark.parametrize("schedule", ["hull", "sol"])
def test_a_trace_of_a_loss_names_the_budget_that_it_came_to(
    with_policy: SolModel, tmp_path: Path, schedule: str
) -> None:
    path = tmp_path / "trace.jsonl"
    first = with_policy.generate(PROMPT, schedule=schedule, max_loss=0.02, trace=path, **LONG)
    trace = read_trace(path)
    assert trace.header.budget == pytest.approx(first.requested_budget, abs=0.02)
    assert trace.header.budget < 0.98
    again = with_policy.generate(replay=trace, **LONG)
    assert again.achieved_budget == pytest.approx(first.achieved_budget)
    assert again.requested_budget == pytest.approx(first.requested_budget, abs=0.02)


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
def test_a_trace_of_a_slow_rate_replays(with_policy: SolModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its allowance has room for the policy beside a dense step."""
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    model = SolModel.from_pretrained(with_policy.bundle, provider="cpu")
    model.generate(PROMPT, schedule="sol", tokens_per_second=0.01, trace=tmp_path / "t.jsonl", max_new_tokens=4)
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.header.budget == 1.0
    assert model.generate(replay=trace).first_difference is None


def test_a_variant_of_the_prompt_runs_the_prompt_alone(model: SolModel, tmp_path: Path) -> None:
    cheap = SolModel.from_pretrained(model.bundle, provider="cpu", measure_costs=False, prefill="s050-q4")
    prompt = model.tokenizer.encode(PROMPT)
    expected = []
    for action in ("k100-s050-q4", "k100-s100-q8"):
        model.engine.reset()
        expected.append(model.engine.forward(prompt, Action.parse(action)).distribution)
    stream = cheap.stream(PROMPT, budget=1.0, trace=tmp_path / "t.jsonl", **LONG)
    first = next(stream)
    assert first.action.tag == "k100-s050-q4"
    assert first.token == expected[0].top
    assert first.logprob == expected[0].log_probability(first.token) != expected[1].log_probability(first.token)
    for _ in stream:
        pass
    assert stream.result is not None
    assert stream.result.actions == {"k100-s100-q8": 128}
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.header.prefill == "s050-q4"
    assert model.generate(replay=trace).first_difference is None  # the trace's variant, not the model's
    model.generate(PROMPT, budget=1.0, trace=tmp_path / "t.jsonl", max_new_tokens=4)
    assert "prefill" not in json.loads((tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert cheap.generate(replay=read_trace(tmp_path / "t.jsonl")).first_difference is None


def test_scores_are_behind_the_variant_of_the_prompt(model: SolModel) -> None:
    cheap = SolModel.from_pretrained(model.bundle, provider="cpu", measure_costs=False, prefill="s050-q4")
    tokens = model.tokenizer.encode(PROMPT)
    model.engine.reset()
    given = model.engine.forward(tokens[:4], Action.parse("k100-s050-q4")).distribution.log_probability(tokens[4])
    step = model.engine.forward(tokens[4:5], model.bundle.config.dense).distribution.log_probability(tokens[5])
    assert cheap.score(tokens[:6], context=4).logprobs == pytest.approx([given, step], abs=1e-6)


@pytest.mark.parametrize("key", ["s050-q3", "k100-s050-q4", "", "dense", ["s050-q4"]], ids=str)
def test_a_variant_of_the_prompt_that_the_bundle_lacks(model: SolModel, key: Any) -> None:
    with pytest.raises(UsageError, match=r"--prefill: got .*, expected one of the bundle's variants: s100-q8, "):
        SolModel.from_pretrained(model.bundle, provider="cpu", prefill=key)


def test_a_trace_that_cannot_be_replayed_is_refused_before_it_runs(model: SolModel, tmp_path: Path) -> None:
    model.generate(PROMPT, schedule="dense", trace=tmp_path / "t.jsonl", max_new_tokens=6, eos_token_id=[])
    trace = read_trace(tmp_path / "t.jsonl")
    model.engine.reset()
    with pytest.raises(UsageError, match="without tokens"):
        model.stream(replay=replace(trace, records=()))
    foreign = (*trace.records[:3], replace(trace.records[3], token=10**6), *trace.records[4:])
    with pytest.raises(UsageError, match=r"token 1000000 at step 3 of the trace, expected 0 to"):
        model.stream(replay=replace(trace, records=foreign))
    limit = len(trace.header.prompt_tokens) + 5
    for size, fits in ((limit, True), (limit - 1, False)):
        small = SolModel.from_pretrained(model.bundle, provider="cpu", max_context=size, measure_costs=False)
        if fits:
            assert small.generate(replay=trace).first_difference is None
        else:
            with pytest.raises(ContextError, match=f"a trace of {limit} tokens, expected at most {size}"):
                small.stream(replay=trace)
    assert model.engine.length == 0


def test_a_trace_of_something_else(model: SolModel, tmp_path: Path) -> None:
    model.generate(PROMPT, trace=tmp_path / "trace.jsonl", max_new_tokens=4)
    trace = read_trace(tmp_path / "trace.jsonl")
    with pytest.raises(UsageError, match="prompt is not"):
        model.generate("w7", replay=trace)
    other = replace(trace, header=replace(trace.header, config_sha256="0" * 64, bundle="x\n" * 5000))
    with pytest.raises(UsageError, match="another bundle") as caught:
        model.generate(replay=other)
    assert len(str(caught.value)) < 200


def test_the_policy_is_charged(model: SolModel) -> None:
    assert model.cost.policy() > 0
    steps = list(model.stream(PROMPT, schedule="sol", budget=0.8, **LONG))
    for index, step in enumerate(steps[1:]):
        assert step.cost == model.cost.step(step.action, 6 + index) + model.cost.policy()


@pytest.mark.parametrize("schedule", ["uniform", "sol", FLOOR])
def test_scores_are_those_of_generation(model: SolModel, schedule: str) -> None:
    budget = {} if schedule == FLOOR else {"budget": 0.8}
    prompt = model.tokenizer.encode(PROMPT)
    steps = list(model.stream(prompt, schedule=schedule, **budget, **LONG))
    tokens = prompt + [step.token for step in steps]
    scores = model.score(tokens, context=len(prompt), schedule=schedule, **budget)
    assert np.array_equal(scores.logprobs, [step.logprob for step in steps])
    assert scores.achieved_budget == steps[-1].achieved_budget
    assert sum(scores.actions.values()) == 128


@pytest.mark.parametrize(("tokens", "context"), [([1], 1), ([1, 2], 2), ([1, 2], 0), ([], 1)])
def test_nothing_to_score(model: SolModel, tokens: list[int], context: int) -> None:
    with pytest.raises(UsageError, match="score"):
        model.score(tokens, context=context)


def test_scores_beyond_the_context_are_refused_before_the_first_step(bundle: Path) -> None:
    model = SolModel.from_pretrained(bundle, provider="cpu", max_context=16)
    assert len(model.score([1] * 17).logprobs) == 16
    tokens = model.engine.tokens
    with pytest.raises(ContextError, match=r"score: got 17 tokens to run, expected at most 16"):
        model.score([1] * 18)
    assert model.engine.tokens == tokens


def test_chat_keeps_what_was_said(model: SolModel) -> None:
    messages = [{"role": "user", "content": "w1 w2 w3"}]
    first = model.generate(messages, max_new_tokens=20, eos_token_id=[], budget=0.7, schedule="uniform")
    assert first.cached_tokens in (0, first.prompt_tokens - 1)
    messages += [{"role": "assistant", "content": first.text.strip()}, {"role": "user", "content": "w4"}]
    second = model.generate(messages, max_new_tokens=5, eos_token_id=[])
    assert second.prompt_tokens == first.prompt_tokens + 20 + 3
    assert second.cached_tokens == first.prompt_tokens + 19
    edited = [{"role": "user", "content": "w1 w9"}]
    third = model.generate(edited, max_new_tokens=5, eos_token_id=[])
    assert third.cached_tokens == 2
    alone = model.generate(edited, max_new_tokens=5, eos_token_id=[], reuse_cache=False)
    assert alone.cached_tokens == 0
    assert alone.tokens == third.tokens


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny", channel_densities=(1.0,), bits=(8,))
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"] |= {f"extra{index}": 90 + index for index in range(10)}
    path.write_text(json.dumps(document))
    seal(folder, read_config(folder / CONFIG_NAME))
    with pytest.raises(BundleError, match="100 tokens, expected at most the model's 90"):
        SolModel.from_pretrained(folder, provider="cpu").generate(PROMPT)


def test_importing_the_package_is_light() -> None:
    code = "import sys, sol_rt; print({'onnxruntime', 'numpy', 'tokenizers', 'jinja2'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
    code = (
        "import sys; from sol_rt import SolModel; print({'torch', 'transformers', 'onnx', 'gguf'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_special_tokens_in_a_prompt_are_text_unless_asked_for(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "special"))
    written = (folder / "tokenizer.json").read_text(encoding="utf-8").replace('"w80"', '"<eot>"')
    tokenizer = tokenizers.Tokenizer.from_str(written)
    tokenizer.add_special_tokens(["<eot>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    seal(folder, read_config(folder / CONFIG_NAME))
    model, eot = SolModel.from_pretrained(folder, provider="cpu"), tokenizer.token_to_id("<eot>")

    def prompt(text: object, **how: bool) -> list[int]:
        trace = tmp_path / "trace.jsonl"
        model.generate(text, max_new_tokens=1, trace=trace, **how)  # type: ignore[arg-type]
        return list(read_trace(trace).header.prompt_tokens)

    assert eot not in prompt("w1<eot>w3")
    assert prompt("w1<eot>w3", parse_special=True) == [1, eot, 3]
    assert eot not in prompt([{"role": "user", "content": "w1<eot>w3"}], parse_special=True)


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"top_k": 8, "top_p": 0.9}], ids=str)
def test_a_seed_gives_the_same_text_after_a_rewind(model: SolModel, settings: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "do_sample": True,
        "temperature": 1.5,
        "schedule": "dense",
        "eos_token_id": [],
        **settings,
    }
    prompt = model.tokenizer.encode(PROMPT)
    whole = model.generate(prompt, max_new_tokens=40, seed=11, **options).tokens
    model.generate([*reversed(prompt)], max_new_tokens=9, seed=12, **options)
    for kept in (0, 1, 17, 39):
        for reuse in (False, True):
            begun = [*prompt, *whole[:kept]]
            again = model.generate(begun, max_new_tokens=40 - kept, seed=11, reuse_cache=reuse, **options)
            assert again.tokens == whole[kept:]
    assert model.generate(prompt, max_new_tokens=40, seed=12, **options).tokens != whole
