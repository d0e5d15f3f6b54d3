"""The variant that runs a prompt: the dial chooses it by the losses that the export measured."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_bundle import with_losing_prompts, write_bundle
from sol_rt import SolModel
from sol_rt.errors import BundleError, UsageError
from sol_rt.generate.trace import read_trace
from sol_rt.ops import library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
PROMPT = [3 + n % 80 for n in range(100)]
LEAST = 64  # tokens to run, from which on a prompt may be run by fewer bits
HALF = math.log1p(0.005) / 2  # nats: what the prompt may take of the default


def bundle_with(folder: Path, **losses: float) -> Path:
    """A bundle whose variants lose that much behind a prompt of 512 tokens; a key is `q4` for `s100-q4`."""
    return with_losing_prompts(write_bundle(folder, losses=True), **losses)


def opened(bundle: Path, prefill: str | None = None) -> SolModel:
    return SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False, prefill=prefill)


def ask(model: SolModel, prompt: list[int] = PROMPT, count: int = 24, **how: Any) -> Any:
    return model.generate(prompt, max_new_tokens=count, do_sample=False, eos_token_id=[], **how)


def answer(bundle: Path, prefill: str | None = None, **how: Any) -> Any:
    return ask(opened(bundle, prefill), **how)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, "s100-q8"),
        ({"q4": HALF, "q6": 0.0}, "s100-q4"),
        ({"q4": HALF * 1.01, "q6": 0.0}, "s100-q6"),
        ({"q4": HALF * 1.01, "q6": 0.1}, "s100-q8"),
    ],
)
def test_the_default_takes_the_fewest_bytes_within_half_its_loss(
    tmp_path: Path, losses: dict[str, float], expected: str
) -> None:
    assert answer(bundle_with(tmp_path / "tiny", **losses)).prefill == expected


def test_what_the_prompt_takes_the_steps_lose_less(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "tiny", q4=0.02)
    got = answer(bundle, max_loss=0.05)
    rest = answer(bundle, "s100-q4", max_loss=math.expm1(math.log1p(0.05) - 0.02))
    assert (got.prefill, got.text, got.actions) == ("s100-q4", rest.text, rest.actions)
    assert got.expected_loss == pytest.approx(rest.expected_loss)
    assert got.actions != answer(bundle, "s100-q4", max_loss=0.05).actions


@pytest.mark.parametrize(
    "how",
    [
        {"budget": 1.0},
        {"schedule": "dense"},
        {"schedule": "fixed:k100-s100-q4"},
        {"schedule": "uniform", "budget": 0.4},
    ],
)
def test_runs_that_keep_no_loss_read_prompts_densely(tmp_path: Path, how: dict[str, Any]) -> None:
    bundle = bundle_with(tmp_path / "tiny", q4=0.0, q6=0.0)
    assert answer(bundle, **how).prefill == "s100-q8"


def test_a_budget_lets_the_prompt_lose_half_of_what_its_steps_do(tmp_path: Path) -> None:
    steps = answer(bundle_with(tmp_path / "dense"), budget=0.9).expected_loss
    assert steps > 0.0
    assert answer(bundle_with(tmp_path / "most", q4=steps / 4), budget=0.9).prefill == "s100-q4"
    assert answer(bundle_with(tmp_path / "more", q4=steps), budget=0.9).prefill == "s100-q8"


def test_a_variant_that_is_named_runs_every_prompt(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "tiny", q4=0.0)
    assert answer(bundle, "s100-q8").prefill == "s100-q8"
    assert answer(bundle, "s100-q6").prefill == "s100-q6"


def test_a_trace_replays_with_its_own_variant(tmp_path: Path) -> None:
    bundle, trace = bundle_with(tmp_path / "tiny", q4=0.0), tmp_path / "run.jsonl"
    first = answer(bundle, trace=trace)
    assert first.prefill == "s100-q4"
    model = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    again = model.generate(replay=read_trace(trace))
    assert (again.text, again.prefill, again.first_difference) == (first.text, "s100-q4", None)


def test_a_replay_and_a_named_variant_count_their_prompt(tmp_path: Path) -> None:
    bundle, trace = bundle_with(tmp_path / "tiny", q4=0.002), tmp_path / "run.jsonl"
    first = answer(bundle, trace=trace)
    again = opened(bundle).generate(replay=read_trace(trace))
    assert again.expected_loss == first.expected_loss > 0.002
    assert answer(bundle, "s100-q4", schedule="dense").expected_loss == 0.002
    assert answer(bundle, "s100-q6", schedule="dense").expected_loss is None
    assert answer(bundle, "s100-q8", schedule="dense").expected_loss == 0.0


@pytest.mark.parametrize(("prefill", "expected"), [(None, 0.002), ("s100-q8", 0.0)])
def test_an_answer_of_one_token_loses_what_its_prompt_does(
    tmp_path: Path, prefill: str | None, expected: float
) -> None:
    assert answer(bundle_with(tmp_path / "tiny", q4=0.002), prefill, count=1).expected_loss == expected


@pytest.mark.parametrize("max_loss", [10.0, 0.0])
def test_the_bounds_of_the_loss_are_allowed(tmp_path: Path, max_loss: float) -> None:
    bundle = bundle_with(tmp_path / "tiny")
    assert answer(bundle, max_loss=max_loss).prefill == "s100-q8"
    assert answer(bundle_with(tmp_path / "cheap", q4=0.5), max_loss=10.0).prefill == "s100-q4"


@pytest.mark.parametrize("max_loss", [10.01, -0.5, -2.0])
def test_losses_beyond_the_bounds_are_refused(tmp_path: Path, max_loss: float) -> None:
    with pytest.raises(UsageError, match=r"--max-loss: got .*, expected a rise of perplexity from 0 to 10"):
        answer(bundle_with(tmp_path / "tiny", q4=0.0), max_loss=max_loss)


def test_short_prompts_and_short_rests_run_dense(tmp_path: Path) -> None:
    model = opened(bundle_with(tmp_path / "tiny", q4=0.0))
    assert ask(model, PROMPT[: LEAST - 1]).prefill == "s100-q8"
    assert ask(model, PROMPT[:LEAST]).prefill == "s100-q4"
    model.engine.reset()
    first = ask(model, PROMPT, 4, schedule="dense")
    longer = PROMPT + first.tokens
    assert ask(model, longer + PROMPT[:LEAST], 4, schedule="dense", reuse_cache=True).prefill == "s100-q8"
    rest = ask(model, longer + PROMPT[: LEAST - 1], 4, reuse_cache=True)
    assert (rest.prefill, rest.cached_tokens) == ("s100-q8", len(longer) + LEAST - 2)


def test_a_prompt_loses_its_share_of_the_context(tmp_path: Path) -> None:
    """Half of the context was read dense, and half by four bits; later only the half is what another prompt keeps."""
    model = opened(bundle_with(tmp_path / "tiny", q4=0.004))
    ask(model, PROMPT, 1, schedule="dense")
    prompt = PROMPT + PROMPT[::-1]
    half = ask(model, prompt, 1, reuse_cache=True)
    assert (half.prefill, half.cached_tokens) == ("s100-q4", len(PROMPT))
    assert half.expected_loss == pytest.approx(0.002)
    short = ask(model, [*prompt, 5], 1, reuse_cache=True)
    assert (short.prefill, short.cached_tokens) == ("s100-q8", len(prompt))
    assert short.expected_loss == pytest.approx(0.004 * 100 / 201)
    whole = ask(model, prompt, 1)
    assert (whole.prefill, whole.expected_loss) == ("s100-q8", 0.0)  # all of it would lose more than is allowed


@pytest.mark.parametrize("how", [{"budget": 1.0}, {"schedule": "dense"}, {"lossless": True}, {"max_loss": 0.0}])
def test_what_runs_dense_keeps_no_cache_that_fewer_bits_read(tmp_path: Path, how: dict[str, Any]) -> None:
    bundle, prompt = bundle_with(tmp_path / "tiny", q4=0.002), PROMPT + PROMPT
    model, other = opened(bundle), opened(bundle)
    for each in (model, other):
        ask(each, PROMPT, 1, schedule="dense")
    fresh = ask(other, prompt, reuse_cache=True, **how)
    assert ask(model, prompt, 1, reuse_cache=True).prefill == "s100-q4"
    again = ask(model, prompt, reuse_cache=True, **how)
    assert (again.cached_tokens, again.tokens, again.logprobs) == (len(PROMPT), fresh.tokens, fresh.logprobs)
    third = ask(model, prompt, reuse_cache=True, **how)
    assert (third.cached_tokens, third.tokens) == (len(prompt) - 1, fresh.tokens)


def test_a_saved_cache_says_what_read_it(tmp_path: Path) -> None:
    bundle, file = bundle_with(tmp_path / "tiny", q4=0.002), tmp_path / "session"
    model = opened(bundle)
    ask(model, PROMPT, 1)
    model.engine.save(file)
    for how, cached in (({}, len(PROMPT) - 1), ({"schedule": "dense"}, 0)):
        again = opened(bundle)
        again.engine.restore(file)
        assert ask(again, PROMPT, 1, reuse_cache=True, **how).cached_tokens == cached
    content = bytearray(file.read_bytes()[:-32])
    content[-4:] = (99).to_bytes(4, "little")
    file.write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(BundleError, match="got reader 99, expected one of the bundle's variants"):
        model.engine.restore(file)


def test_a_prompt_in_parts_is_that_of_a_whole_run(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "tiny", q4=0.002)
    whole = answer(bundle)
    model = opened(bundle)
    stream = model.stream(PROMPT, max_new_tokens=24, do_sample=False, eos_token_id=[], reuse_cache=True)
    assert [stream.read_prompt(most) for most in (0, 30, 1, 500)] == [100, 70, 69, 1]
    tokens = [token.token for token in stream]
    assert (tokens, stream.result.prefill, stream.result.cached_tokens) == (whole.tokens, "s100-q4", 0)
    assert stream.result.expected_loss == whole.expected_loss
    with pytest.raises(StopIteration):
        stream.read_prompt(1)
    begun = model.stream(PROMPT, max_new_tokens=4)
    next(begun)
    with pytest.raises(UsageError, match="the prompt has run"):
        begun.read_prompt(1)
