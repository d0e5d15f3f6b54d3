"""Layers with a window keep little more of the KV cache than it, and every rewind gives what a fresh run gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="exporting comes with the extra export")

from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from helpers.reference_steps import EXACT, NEAR, random_tokens
from helpers.rewinds import Moves, logits_along, moves
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.cache_layout import SLACK
from sol_rt.export.pipeline import export_bundle
from sol_rt.generate.native.engine import Engine
from sol_rt.ops import library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")

DENSE, CHEAP = Action(1.0, 1.0, 8), Action(0.25, 0.5, 4)
TOKENS = random_tokens(4000, 300).tolist()


@pytest.fixture(scope="module", params=["float16", "int8"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two layers with a window of 24 tokens, and one that attends to all."""
    base = tmp_path_factory.mktemp(request.param)
    source = write_random_checkpoint(base / "source", replace(PRESETS["tiny-gemma3"], max_context=8192))
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
    """The logits after tokens that run dense from the start, as a prompt, in an engine of their own."""
    other = Engine(bundle, provider="cpu")

    def logits(tokens: list[int]) -> np.ndarray:
        other.reset()
        return other.forward(tokens, DENSE).logits[0]

    return logits


def same(got: np.ndarray, expected: np.ndarray, kv: str) -> bool:
    """True if logits are equal up to the rounding that differs between prompts and steps, which is larger in int8."""
    return bool(np.abs(got - expected).max() < (NEAR if kv == "int8" else EXACT) * expected.std())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves(1200, 20, SLACK + 300), st.randoms(use_true_random=False))
def test_any_rewinds_give_what_a_fresh_run_gives(
    engine: Engine, fresh: Callable[[list[int]], np.ndarray], chosen: Moves, random: Any
) -> None:
    """Within the slack, beyond it, and to the start; the text passes what is kept several times over."""
    for logits in islice(logits_along(engine, DENSE, chosen, random), 0, None, 7):
        assert same(logits, fresh(engine.tokens), engine.bundle.config.kv.dtype)


def test_a_rewind_within_the_slack_runs_nothing_again(engine: Engine) -> None:
    """Bit by bit, although the steps were cheap: a token that ran again, dense, would leave other keys."""
    engine.forward(TOKENS[:1200], DENSE)
    runs = []
    for _ in range(2):
        runs.append([engine.forward([token], CHEAP).logits for token in TOKENS[1200:1300]])
        engine.truncate(1200)
    assert np.array_equal(runs[0], runs[1])


def test_a_rewind_beyond_the_slack_runs_the_tokens_as_a_prompt(engine: Engine) -> None:
    """Bit by bit what the prompt gave, and greedy tokens after it; a rewind of many tokens, and one to the start."""
    first = [engine.forward(TOKENS[:300], DENSE).logits]
    first += [engine.forward([token], DENSE).logits for token in TOKENS[300:340]]
    engine.forward(TOKENS[340:2400], DENSE)
    engine.truncate(300)
    again = [engine.forward([token], DENSE).logits for token in TOKENS[300:340]]
    assert np.array_equal(again, first[1:])
    engine.forward(TOKENS[340:1900], DENSE)
    engine.reset()
    assert np.array_equal(engine.forward(TOKENS[:300], DENSE).logits, first[0])
