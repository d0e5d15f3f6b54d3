"""Drafts: several tokens are guessed and run at once, and the text stays that of single steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.places import GOLDEN
from helpers.random_decoder import STATES, TRAITS
from helpers.saved_session import saved
from helpers.tiny_bundle import write_bundle
from sol_rt import Grammar, SolModel
from sol_rt.errors import SolError, UsageError
from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.generate.stream import Stream
from sol_rt.generate.trace import read_trace
from sol_rt.ops import library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
WORDS = ["once", "upon", "a", "time", "there", "was", "the", "fox", "and", "in", "deep", "wood"]
LOOP = "the fox in the wood and the fox in the wood and the fox in the"
GREEDY: dict[str, Any] = {"do_sample": False}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.4}
MODES: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "top_k": {**SAMPLED, "top_k": 20},
    "top_p": {**SAMPLED, "top_p": 0.9, "min_p": 0.05},
    "repetition": {**GREEDY, "repetition_penalty": 1.05},
    "presence": {**SAMPLED, "presence_penalty": 0.2, "frequency_penalty": 0.05},
    "bias": {**GREEDY, "logit_bias": {40: 2.0, 101: -100.0}},
    "stop": {**SAMPLED, "stop_strings": ["e t", "ood", "\n"]},
    "likeliest": {**GREEDY, "top_logprobs": 3},
}


@pytest.fixture(scope="module")
def model() -> SolModel:
    """A tiny model with a token for every byte."""
    return SolModel.from_pretrained(GOLDEN / "tiny", provider="cpu", measure_costs=False)


@pytest.fixture(scope="module")
def dense(model: SolModel) -> SolModel:
    """The same, whose cache the runs of `model` don't touch."""
    return SolModel.from_pretrained(GOLDEN / "tiny", provider="cpu", measure_costs=False)


def prompts(count: int) -> Iterator[str]:
    draws = random.Random(5)
    for _ in range(count):
        yield " ".join(draws.choice(WORDS) for _ in range(draws.randint(2, 30)))


def facts(result: Generation) -> tuple[Any, ...]:
    return result.tokens, result.logprobs, result.top_logprobs, result.text, result.finish_reason, result.actions


def to_a_draft(stream: Stream, number: int) -> list[GeneratedToken]:
    """Tokens to the first of a run of several or, in every other text, to one that such a run has checked; or all."""
    tokens = [next(stream)]
    for token in stream:
        tokens.append(token)
        if token.relative_cost > 1.001 if number % 2 else token.cost == 0:
            break
    return tokens


def whole_pages(model: SolModel) -> dict[str, bytes]:
    """The cache, but for codes of a page that more tokens are to fill: its next token makes them anew."""
    cache, length, page = saved(model.engine)[0], model.engine.length, model.bundle.config.kv.page_size
    return {
        name: (held[:, :, : length // page * page] if "key_codes" in name or "key_range" in name else held).tobytes()
        for name, held in cache.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_the_text_is_that_of_dense_steps(model: SolModel, dense: SolModel, mode: str) -> None:
    """Tokens, log-probabilities and the cache, on 200 prompts."""
    drafted = accepted = 0
    for index, prompt in enumerate(prompts(200)):
        settings = {"max_new_tokens": 20 + index % 50, "seed": index, **MODES[mode]}
        got, expected = (
            model.generate(prompt, lossless=True, **settings),
            dense.generate(prompt, budget=1.0, **settings),
        )
        assert facts(got) == facts(expected), prompt
        assert model.engine.tokens == dense.engine.tokens
        drafted, accepted = drafted + got.drafted_tokens, accepted + got.accepted_tokens
        if index % 20 == 0:
            assert whole_pages(model) == whole_pages(dense), prompt
    assert 0 < accepted < drafted


def test_a_cheaper_action_drafts_where_nothing_is_found(dense: SolModel) -> None:
    """Steps of a draft are in the cost of the run that checks them, and leave neither entries nor counts behind."""
    made = kept = 0
    modes = {
        **MODES,
        "grammar": {**SAMPLED, "grammar": Grammar.regex("[a-z ]{60}")},
        "counts": {**SAMPLED, "frequency_penalty": 1.5},
    }
    for index, (prompt, mode) in enumerate(zip(prompts(6 * len(modes)), [*modes] * 6, strict=True)):
        model = SolModel.from_pretrained(GOLDEN / "tiny", provider="cpu", measure_costs=False)  # it has learned nothing
        settings = {"max_new_tokens": 40, "seed": index, "eos_token_id": [], **modes[mode]}
        stream = model.stream(prompt, lossless=True, **settings)
        tokens = list(stream)
        assert stream.result is not None
        assert facts(stream.result) == facts(dense.generate(prompt, budget=1.0, **settings)), (mode, prompt)
        assert model.engine.tokens == dense.engine.tokens
        assert whole_pages(model) == whole_pages(dense)
        for place in range(1, len(tokens) - 1):
            if tokens[place].relative_cost > 1.2:  # a found draft reads the weights once
                made += 1
                kept += tokens[place + 1].cost == 0
    assert 0 < kept < made


@pytest.mark.parametrize("seed", range(3))
def test_a_grammar_holds_each_token_of_a_run(model: SolModel, dense: SolModel, seed: int) -> None:
    drafted = 0
    for pattern in ("(ab|ac){3,30}d", "[a-c]{40}", "(the fox, ){5,}and the end"):
        settings = {"grammar": Grammar.regex(pattern), "max_new_tokens": 90, "seed": seed, **SAMPLED}
        got, expected = model.generate(LOOP, lossless=True, **settings), dense.generate(LOOP, budget=1.0, **settings)
        assert facts(got) == facts(expected)
        drafted += got.drafted_tokens
    assert drafted > 0


@pytest.mark.parametrize(
    ("family", "kv"), [("llama", "int8"), *((family, "float16") for family in sorted(TRAITS | STATES))]
)
def test_other_families_and_caches(family: str, kv: str, tmp_path: Path) -> None:
    """Windows, norms and biases; layers with a state take single steps."""
    model = SolModel.from_pretrained(write_bundle(tmp_path, family, kv=kv), provider="cpu", measure_costs=False)
    drafted = 0
    for seed in range(4):
        prompt, settings = [5, 6, 7, 8] * 12, {"max_new_tokens": 120, "eos_token_id": [], "seed": seed}
        dense = model.generate(prompt, budget=1.0, do_sample=seed > 0, temperature=0.1, **settings)
        got = model.generate(prompt, lossless=True, do_sample=seed > 0, temperature=0.1, **settings)
        assert facts(got) == facts(dense)
        drafted += got.drafted_tokens
    assert (drafted > 0) == (not model.bundle.config.kv.convolving)


def test_chats_go_on_from_the_cache(model: SolModel, dense: SolModel) -> None:
    """Rewinds between and inside texts: answers that end early, and prompts that share a beginning with the cache."""
    draws, tokens = random.Random(3), model.tokenizer.encode(LOOP)
    drafted = 0
    for seed in range(40):
        settings = {"max_new_tokens": 60, "reuse_cache": True, "seed": seed, "eos_token_id": [], **SAMPLED}
        ends = draws.randint(1, 60)
        ours, theirs = model.stream(tokens, lossless=True, **settings), dense.stream(tokens, budget=1.0, **settings)
        for _ in range(ends):
            ours_next, theirs_next = next(ours), next(theirs)
            assert (ours_next.token, ours_next.logprob) == (theirs_next.token, theirs_next.logprob)
            assert model.engine.tokens == dense.engine.tokens
        ours.close(), theirs.close()
        assert model.engine.tokens == dense.engine.tokens
        assert ours.result is not None
        assert theirs.result is not None
        assert ours.result.cached_tokens == theirs.result.cached_tokens
        drafted += ours.result.drafted_tokens
        tokens = tokens[: draws.randint(1, len(tokens))] + ours.result.tokens
    assert drafted > 0


def test_a_session_saved_within_a_draft_is_that_of_dense_steps(
    model: SolModel, dense: SolModel, tmp_path: Path
) -> None:
    """The file has the text alone, and steps that read codes of the keys go on from it."""
    ahead = 0
    for seed in range(40):
        asked = {"max_new_tokens": 60, "eos_token_id": [], "seed": seed, **SAMPLED}
        ours, theirs = model.stream(LOOP, lossless=True, **asked), dense.stream(LOOP, budget=1.0, **asked)
        tokens = to_a_draft(ours, seed)
        assert [token.token for token in tokens] == [next(theirs).token for _ in tokens]
        ahead += len(tokens) < 60
        for one in (model, dense):
            one.engine.save(tmp_path / "session")
            one.engine.reset()
            one.engine.restore(tmp_path / "session")
        assert whole_pages(model) == whole_pages(dense)
        sparse = {"schedule": "fixed:k050-s100-q8", "reuse_cache": True, "max_new_tokens": 8, "eos_token_id": []}
        text = [*model.engine.tokens, tokens[-1].token]
        assert facts(model.generate(text, **sparse)) == facts(dense.generate(text, **sparse))
    assert ahead > 0


def test_runs_are_counted(model: SolModel, tmp_path: Path) -> None:
    """The first token of a run costs what the run does, the others nothing; a trace has the dense steps and replays."""
    trace = tmp_path / "trace.jsonl"
    tokens: list[GeneratedToken] = []
    for _ in range(60):
        stream = model.stream(LOOP, lossless=True, max_new_tokens=150, eos_token_id=[], trace=trace)
        tokens = list(stream)
        result = stream.result
        assert result is not None
        if 0 < result.accepted_tokens < result.drafted_tokens:
            break
    assert 0 < result.accepted_tokens < result.drafted_tokens
    runs = [token for token in tokens[1:] if token.cost > 0]
    assert len(runs) == len(tokens) - 1 - result.accepted_tokens
    assert result.achieved_budget == pytest.approx(
        sum(token.relative_cost for token in runs) / (len(tokens) - 1), rel=0.05
    )
    assert result.achieved_budget < 1 < max(token.relative_cost for token in runs)
    assert result.requested_budget == 1.0
    assert result.expected_loss == 0.0

    plain = tmp_path / "plain.jsonl"
    model.generate(LOOP, schedule="dense", max_new_tokens=150, eos_token_id=[], trace=plain)
    ours, theirs = read_trace(trace), read_trace(plain)
    assert ours.header == theirs.header
    same = [(a.step, a.token, a.text, a.action, a.context, a.logprob) for a in ours.records]
    assert same == [(a.step, a.token, a.text, a.action, a.context, a.logprob) for a in theirs.records]
    assert sum(record.relative_cost for record in ours.records) == pytest.approx(sum(t.relative_cost for t in tokens))
    replayed = model.generate(replay=ours)
    assert replayed.first_difference is None
    assert (replayed.drafted_tokens, replayed.achieved_budget) == (0, 1.0)


@pytest.mark.parametrize("tag", ["k100-s060-q4", "k100-s100-q4", "k050-s100-q8"])
def test_look_up_under_one_action(model: SolModel, dense: SolModel, tag: str) -> None:
    """A step that leaves out old tokens reads less than a run: it is taken alone."""
    drafted = 0
    for index, prompt in enumerate(prompts(40)):
        settings = {"schedule": f"fixed:{tag}", "max_new_tokens": 100, "seed": index, "eos_token_id": [], **SAMPLED}
        got, expected = model.generate(prompt, lookup=True, **settings), dense.generate(prompt, **settings)
        assert facts(got) == facts(expected)
        drafted += got.drafted_tokens
    assert (drafted > 0) == tag.startswith("k100")


@pytest.mark.parametrize("schedule", ["hull", "uniform", "random"])
def test_look_up_keeps_a_budget(model: SolModel, schedule: str) -> None:
    """The steps of the text cost what was asked for, however many a run has."""
    drafted = 0
    for seed in range(12):
        stream = model.stream(
            LOOP, lookup=True, schedule=schedule, budget=0.8, max_new_tokens=200, eos_token_id=[], seed=seed
        )
        costs = [
            model.cost.step(token.action, stream.prompt_tokens + step)
            / model.cost.step(model.bundle.config.dense, stream.prompt_tokens + step)
            for step, token in enumerate(list(stream)[1:])
        ]
        assert stream.result is not None
        assert abs(sum(costs) / len(costs) - 0.8) <= 0.02
        assert len(stream.result.actions) > 1
        drafted += stream.result.drafted_tokens
    assert (drafted > 0) == (schedule == "hull")


def test_a_moved_budget_holds_from_the_next_token(model: SolModel) -> None:
    cheapest = min(model.bundle.config.actions, key=lambda listed: model.cost.step(listed.action, 100)).action
    moved = 0
    for number in range(40):
        stream = model.stream(LOOP, lookup=True, budget=1.0, max_new_tokens=60, eos_token_id=[])
        if len(to_a_draft(stream, number)) < 60:
            stream.budget = 0.0
            assert next(stream).action == cheapest
            moved += 1
        stream.close()
    assert moved > 0


def test_where_rows_are_not_those_of_steps_each_token_is_a_step(dense: SolModel) -> None:
    bodies = SolModel.from_pretrained(GOLDEN / "tiny", provider="cpu", native_ops=False, measure_costs=False)
    got = bodies.generate(LOOP, lossless=True, max_new_tokens=100, eos_token_id=[])
    assert got.drafted_tokens == got.accepted_tokens == 0
    assert facts(got) == facts(bodies.generate(LOOP, budget=1.0, max_new_tokens=100, eos_token_id=[]))


def test_a_text_ends_at_the_context(model: SolModel) -> None:
    room = model.engine.max_context - 40
    prompt = model.tokenizer.encode(LOOP * 30)[:room]
    drafted = 0
    for _ in range(20):
        got = model.generate(prompt, lossless=True, max_new_tokens=1000, eos_token_id=[])
        assert facts(got) == facts(model.generate(prompt, budget=1.0, max_new_tokens=1000, eos_token_id=[]))
        assert (len(got.tokens), got.finish_reason) == (41, "length")
        drafted += got.drafted_tokens
    assert drafted > 0


def test_lossless_is_a_dial_of_its_own(model: SolModel, tmp_path: Path) -> None:
    for dial in (
        {"budget": 0.5},
        {"max_loss": 0.01},
        {"schedule": "uniform"},
        {"bits": 4},
    ):
        with pytest.raises(UsageError, match="--lossless"):
            model.generate(LOOP, lossless=True, **dial)
    for dial in ({"budget": 1.0}, {"schedule": "dense"}, {"budget": 1.0, "schedule": "dense"}):
        assert model.generate(LOOP, lossless=True, max_new_tokens=2, **dial).schedule == "dense"
    stream = model.stream(LOOP, lossless=True)
    next(stream)
    with pytest.raises(UsageError, match="budget"):
        stream.budget = 0.5
    stream.close()
    model.generate(LOOP, max_new_tokens=3, trace=tmp_path / "trace")
    for option in ("lossless", "lookup"):
        with pytest.raises(SolError, match=f"--{option}: a replay"):
            model.generate(replay=read_trace(tmp_path / "trace"), **{option: True})


@pytest.mark.slow
def test_the_text_of_real_weights(smollm2_bundle: Path) -> None:
    model = SolModel.from_pretrained(smollm2_bundle, provider="cpu", measure_costs=False)
    code = (
        "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n    return width"
    )
    accepted = 0
    for index, request in enumerate(
        ("Repeat this code:\n" + code, "Tell me of a fox in the hills.", "List ten rivers, then list them again.")
    ):
        for settings in (
            GREEDY,
            SAMPLED,
            {**SAMPLED, "repetition_penalty": 1.1},
            {**GREEDY, "stop_strings": ["return"]},
        ):
            asked: dict[str, Any] = {"max_new_tokens": 120, "seed": index, "reuse_cache": False, **settings}
            chat = [{"role": "user", "content": request}]
            got, expected = model.generate(chat, lossless=True, **asked), model.generate(chat, budget=1.0, **asked)
            assert facts(got) == facts(expected)
            accepted += got.accepted_tokens
    assert accepted > 0
