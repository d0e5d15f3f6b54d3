"""Losses through the runtime: batches against steps and the reference, pairing, and engines left as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.random_decoder import RandomDecoder, describe
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import UsageError
from sol_rt.export.actions.losses import Candidate, prompt_divergences, token_losses
from sol_rt.export.actions.prompt_losses import SCORED, measure_prompts, with_prompt_losses
from sol_rt.generate.native.engine import Engine

WINDOWS = [np.random.default_rng(seed).integers(0, 90, size).tolist() for seed, size in ((1, 120), (2, 61))]
CHEAP = Action(1.0, 0.5, 4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(Bundle.open(write_bundle(tmp_path_factory.mktemp("losses") / "tiny")), provider="cpu")


def _by_steps(engine: Engine, window: list[int], action: Action) -> list[float]:
    half = len(window) // 2
    engine.reset()
    engine.forward(window[:half], engine.bundle.config.dense)
    losses = []
    for token, target in zip(window[half:-1], window[half + 1 :], strict=True):
        logits = engine.forward([token], action).logits[0].astype(np.float64)
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])
    return losses


@pytest.mark.parametrize("action", [CHEAP, Action(1.0, 1.0, 8), Action(0.3, 1.0, 8), Action(0.3, 0.5, 4)])
def test_batches_give_what_steps_give(engine: Engine, action: Action) -> None:
    """To float32 order; a flipped code or choice of a channel shows at its own token and a little at later ones."""
    (got,) = token_losses(engine, WINDOWS, [Candidate(action)])
    expected = np.array([loss for window in WINDOWS for loss in _by_steps(engine, window, action)])
    assert got.shape == expected.shape == (59 + 30,)
    if action.kv_density < 1.0:
        assert np.abs(got - expected).max() < 1e-4
    assert np.mean(np.abs(got - expected) < 0.02) > 0.8
    assert abs(float(np.mean(got - expected))) < 0.01


def test_losses_are_those_of_the_reference(tmp_path: Path) -> None:
    """float64 arithmetic of docs/reference/bundle-details.md, dense at 8 bits."""
    decoder = RandomDecoder.write(describe("llama"), tmp_path)
    engine = Engine(Bundle.open(decoder.write_bundle(tmp_path, [(1.0, 8)])), provider="cpu")
    (got,) = token_losses(engine, WINDOWS[1:], [Candidate(Action(1.0, 1.0, 8))])
    logits, _ = decoder.logits(WINDOWS[1], 1.0, 8)
    logits = logits - logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.arange(30, 60)
    assert np.abs(got + logprobs[rows, np.array(WINDOWS[1])[rows + 1]]).max() < 2e-3


def test_first_halves_run_under_the_prefill_that_is_asked_for(engine: Engine) -> None:
    action, window = Action(1.0, 1.0, 4), WINDOWS[0]
    half = len(window) // 2
    (got,) = token_losses(engine, [window], [Candidate(action)], prefill=action)
    logits = engine.forward(window, action, num_logits=len(window)).logits.astype(np.float64)
    log_sum = np.log(np.exp(logits).sum(1))
    expected = (log_sum - logits[np.arange(len(window)), np.roll(window, -1)])[half:-1]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    (dense,) = token_losses(engine, [window], [Candidate(action)])
    assert np.abs(dense - got).max() > 1e-3


def _behind(engine: Engine, prompt: Action, window: list[int], context: int) -> np.ndarray:
    """Log-probabilities of dense steps behind a prompt, float64 [positions, vocab]."""
    engine.reset()
    engine.forward(window[:context], prompt)
    part = window[context:-1]
    logits = engine.forward(part, engine.bundle.config.dense, num_logits=len(part)).logits.astype(np.float64)
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def test_dense_steps_diverge_behind_a_prompt_of_fewer_bits(engine: Engine) -> None:
    dense, cheap, context = engine.bundle.config.dense, Action(1.0, 1.0, 4), 60
    same, other = prompt_divergences(engine, WINDOWS[0], context, [dense, cheap])
    assert engine.length == 0
    whole, got = (_behind(engine, prompt, WINDOWS[0], context) for prompt in (dense, cheap))
    np.testing.assert_allclose(other, (np.exp(whole) * (whole - got)).sum(1), atol=1e-6)
    assert other.mean() > 1e-4 > np.abs(same).max()


def test_prompts_are_measured_where_they_are_faster(engine: Engine) -> None:
    found = measure_prompts(engine.bundle, WINDOWS, lambda *_: None, kinds=True)
    config = with_prompt_losses(engine.bundle.config, found)
    assert {key for key, variant in config.variants.items() if variant.prompt_losses} == {"s100-q4"}
    context = len(WINDOWS[1]) // 2
    texts = [
        prompt_divergences(engine, window[: context + SCORED + 1], context, [Action(1.0, 1.0, 4)])[0]
        for window in WINDOWS
    ]
    rows = np.concatenate(texts)
    means = np.array([text.mean() for text in texts])
    margin = 1 + 1.45 * means.std(ddof=1) / means.mean()
    loss = rows.mean() + rows.std(ddof=1) / len(rows) ** 0.5
    assert found["s100-q4"] == {context: pytest.approx(margin * loss)}
    of_one_text = measure_prompts(engine.bundle, WINDOWS, lambda *_: None, kinds=False)
    assert of_one_text["s100-q4"] == {context: pytest.approx(loss)}
    assert margin > 1
    assert found.keys() == {"s100-q4"}
    assert measure_prompts(engine.bundle, [window[:5] for window in WINDOWS], lambda *_: None, kinds=True) == {}


def test_counts_of_candidates_count_and_leave_the_engine_as_it_was(engine: Engine) -> None:
    every = Candidate(CHEAP, (64, 64), (96, 96), (64, 64), (64, 64))
    few = [replace(every, **{name: (every.counts[name][0], 8)}) for name in every.counts]
    own, whole, *pruned, again, dense = token_losses(
        engine, WINDOWS, [Candidate(CHEAP), every, *few, Candidate(CHEAP), Candidate(Action(1.0, 1.0, 4))]
    )
    assert np.array_equal(own, again)
    assert np.array_equal(whole, dense)
    assert len(pruned) == 4
    assert not any(np.array_equal(row, whole) for row in pruned)
    assert np.array_equal(token_losses(engine, WINDOWS, [Candidate(CHEAP)])[0], own)


def test_counts_out_of_range_are_refused(engine: Engine) -> None:
    expected = r"active_up: got .* expected 2 (counts from 1 to 64|whole numbers, one a layer)"
    for active_up in ((64,), (0, 64), (64, 65)):
        with pytest.raises(UsageError, match=expected):
            token_losses(engine, WINDOWS, [Candidate(CHEAP, active_up, (96, 96))])
    with pytest.raises(UsageError, match="s025-q8"):
        token_losses(engine, WINDOWS, [Candidate(Action(1.0, 0.25, 8))])
