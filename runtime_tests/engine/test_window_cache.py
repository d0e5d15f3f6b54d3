"""Layers with a window keep no more of the KV cache than it and some slack, and every rewind still gives what a fresh
run gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="exporting comes with the extra export")

from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from helpers.reference_steps import EXACT, NEAR, random_tokens
from helpers.rewinds import Moves, logits_along, moves
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.budget.schedules.constant import ConstantSchedule
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine import kv_cache
from sol_rt.engine.engine import Engine
from sol_rt.export.pipeline import export_bundle
from sol_rt.generate.loop import Decoder
from sol_rt.ops import library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")

DENSE, CHEAP = Action(1.0, 1.0, 8), Action(0.25, 0.5, 4)
TOKENS = random_tokens(2000, 300).tolist()
SLACK, STEP = 24, 16


@pytest.fixture(autouse=True)
def small_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "SLACK", SLACK)
    monkeypatch.setattr(kv_cache, "STEP", STEP)


@pytest.fixture(scope="module", params=["float16", "int8"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two layers with a window of 24 tokens, and one that attends to all."""
    base = tmp_path_factory.mktemp(request.param)
    source = write_random_checkpoint(base / "source", replace(PRESETS["tiny-gemma3"], max_context=2048))
    levels = {"bits": (8, 4), "channel_density": (1.0, 0.5), "kv_density": (1.0, 0.25), "kv": request.param}
    export_bundle(str(source), base / "bundle", **levels, calibration="none", parity=False)
    bundle = Bundle.open(base / "bundle")
    assert bundle.config.kv.windows == (24, 24, 0)
    return bundle


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle, provider="cpu")


@pytest.fixture
def fresh(bundle: Bundle) -> Callable[[list[int]], np.ndarray]:
    """The logits after tokens that run dense from the start in an engine that keeps all of them, float32 [vocab]."""
    other = keeping_all(bundle)

    def logits(tokens: list[int]) -> np.ndarray:
        other.reset()
        return other.forward(tokens, DENSE).logits[0].copy()

    return logits


def keeping_all(bundle: Bundle) -> Engine:
    engine = Engine(bundle, provider="cpu")
    engine._cache._windows = ()
    engine._cache.forget()
    return engine


def poison(engine: Engine) -> int:
    """Writes what is no number over all that the cache may have given back. Returns how many tokens that is."""
    cache = engine._cache
    assert cache._memory is not None
    for i, buffer in enumerate(cache.buffers()):
        array = cache._memory.array(i)
        array[:, :, : cache._firsts.get(buffer.window, 0)] = np.nan if array.dtype == np.float16 else 111
    return max(cache._firsts.values())


def same(got: np.ndarray, expected: np.ndarray, engine: Engine) -> bool:
    """True if logits are equal up to the rounding that differs between prompts and steps, which is larger in int8."""
    most = NEAR if engine.bundle.config.kv.dtype == "int8" else EXACT
    return bool(np.abs(got - expected).max() < most * expected.std())


def test_memory_that_was_given_back_is_not_read(bundle: Bundle, engine: Engine) -> None:
    """Bit by bit: prompts, and steps that read all or some of the window's tokens."""
    other, seen = keeping_all(bundle), []
    for part in [TOKENS[:700], *([token] for token in TOKENS[700:900]), TOKENS[900:1500], TOKENS[1500:1502]]:
        for action in (CHEAP, DENSE) if len(part) == 1 else (DENSE,):
            length = engine.length
            got, expected = (each.forward(part, action).logits.copy() for each in (engine, other))
            assert np.array_equal(got, expected), (length, action)
            if action == CHEAP:
                engine.truncate(length)
                other.truncate(length)
        seen.append(poison(engine))
    assert seen[0] == (700 - 24 - SLACK) // STEP * STEP
    assert seen[-1] == (1502 - 24 - SLACK) // STEP * STEP


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves(150, 20, SLACK), st.randoms(use_true_random=False))
def test_any_rewinds_give_what_a_fresh_run_gives(
    engine: Engine, fresh: Callable[[list[int]], np.ndarray], chosen: Moves, random: Any
) -> None:
    for logits in logits_along(engine, DENSE, chosen, random):
        assert same(logits, fresh(list(engine.tokens)), engine)
        poison(engine)


def test_a_rewind_within_the_slack_runs_nothing_again(engine: Engine) -> None:
    """Bit by bit, although the steps were cheap: a token that ran again, dense, would leave other keys."""
    engine.forward(TOKENS[:600], DENSE)
    runs = []
    for _ in range(2):
        runs.append([engine.forward([token], CHEAP).logits.copy() for token in TOKENS[600 : 600 + SLACK]])
        poison(engine)
        engine.truncate(600)
    assert np.array_equal(runs[0], runs[1])


def test_a_rewind_beyond_the_slack_runs_the_tokens_as_a_prompt(engine: Engine, bundle: Bundle) -> None:
    """Bit by bit what the prompt gave, and greedy tokens after it; a rewind of many tokens, and one to the start."""
    first = [engine.forward(TOKENS[:300], DENSE).logits.copy()]
    first += [engine.forward([token], DENSE).logits.copy() for token in TOKENS[300:340]]
    engine.forward(TOKENS[340:1400], DENSE)
    poison(engine)
    told: list[tuple[int, int]] = []
    engine.on_chunk = lambda done, total: told.append((done, total))
    engine.truncate(300)
    engine.follow_up()
    assert told[-1] == (300, 300)
    told.clear()
    again = [engine.forward([token], DENSE).logits.copy() for token in TOKENS[300:340]]
    assert np.array_equal(again, first[1:])
    assert told == []
    engine.forward(TOKENS[340:900], DENSE)
    engine.reset()
    assert np.array_equal(engine.forward(TOKENS[:300], DENSE).logits, first[0])


def test_an_interrupted_rewind_leaves_a_prefix(engine: Engine, fresh: Callable[[list[int]], np.ndarray]) -> None:
    engine.forward(TOKENS[:1500], DENSE)
    engine.truncate(1200)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    engine.on_chunk = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.forward([5], DENSE)
    engine.on_chunk = None
    assert list(engine.tokens) == TOKENS[:512]
    assert same(engine.forward(TOKENS[512:700], DENSE).logits[0], fresh(TOKENS[:700]), engine)


def test_function_bodies_keep_every_token(bundle: Bundle) -> None:
    """Function bodies read all tokens and mask the tokens before the window, so memory that was given back would come
    again.
    """
    if bundle.config.kv.dtype == "int8":
        pytest.skip("one type shows it")
    engine = Engine(bundle, provider="cpu", native_ops=False)
    engine.forward(TOKENS[:700], DENSE)
    assert engine._cache.holds(1)


def test_content_that_is_held_stays_where_the_capacity_grows(bundle: Bundle) -> None:
    cache = kv_cache.KvCache(bundle.config.model, bundle.config.kv)
    cache.resize(256, 0)
    assert cache._memory is not None
    count = len(list(cache.buffers()))
    for i in range(count):
        array = cache._memory.array(i)
        array[:] = 10 * np.random.default_rng(i).random(array.shape)
    old = [cache._memory.array(i).copy() for i in range(count)]
    cache.discard(200)
    first = (200 - 24 - SLACK) // STEP * STEP
    assert (cache.holds(first + 23), cache.holds(first + 22)) == (True, False)
    cache.resize(512, 200)
    for i, buffer in enumerate(cache.buffers()):
        array, begin = cache._memory.array(i), first if buffer.window else 0
        assert np.array_equal(array[:, :, begin:200], old[i][:, :, begin:200])
        assert not array[:, :, :begin].any()
    cache.free()
    assert cache.holds(0)


def test_a_prompt_counts_what_runs_again(engine: Engine) -> None:
    """A prompt that shares a beginning with the cache, of which layers with a window have given back what it needs."""
    controller = Controller([DENSE, CHEAP], BytesCost(engine.bundle.config), 1.0)
    loop = Decoder(engine, controller, ConstantSchedule("dense", DENSE))
    assert loop.prefill(TOKENS[:400], reuse=True) == 400
    assert loop.prefill(TOKENS[:405], reuse=True) == 5
    assert loop.prefill([*TOKENS[:100], 7, 8], reuse=True) == 102
