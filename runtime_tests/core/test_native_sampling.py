"""The native core picks the tokens that Python picks, and refuses settings in the words of Python."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from helpers.core_build import core_program
from helpers.frequencies import FILTERS, LOGITS, chi_square, filtered
from sol_rt.engine.distribution import Distribution
from sol_rt.errors import UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.sampling import Sampler

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    """Settings by their names, tokens so far, and logits, float32 [steps, vocab]."""

    settings: dict[str, Any]
    history: list[int]
    logits: np.ndarray


@pytest.fixture(scope="module")
def program() -> Path:
    return core_program("sampling")


def drawn_by_python(case: Case) -> str:
    try:
        sampler = Sampler(GenerationConfig().updated(**case.settings), case.logits.shape[1])
    except UsageError as error:
        return str(error)
    history = list(case.history)
    for logits in case.logits:
        history.append(sampler.sample(Distribution(logits), history)[0])
    return "".join(f"{token} " for token in history[len(case.history) :])


def natively(program: Path, cases: list[Case]) -> list[str]:
    """Reports of the core: for each case its tokens, or an error."""
    asked = bytearray()
    for case in cases:
        steps, vocab = case.logits.shape
        line = {"settings": case.settings, "history": case.history, "steps": steps, "vocab": vocab}
        asked += json.dumps(line).encode() + b"\n" + case.logits.tobytes()
    done = subprocess.run([program], input=bytes(asked), capture_output=True, check=True)
    found = done.stdout.decode().splitlines()
    assert len(found) == len(cases)
    return found


def assert_same(program: Path, cases: list[Case]) -> list[str]:
    """Runs all cases on both sides. Returns what they said."""
    expected = [drawn_by_python(case) for case in cases]
    for case, native, python in zip(cases, natively(program, cases), expected, strict=True):
        assert native == python, f"{case.settings}, vocabulary of {case.logits.shape[1]}"
    return expected


def made_case(seed: int, vocab: int, steps: int) -> Case:
    pick = random.Random(seed)
    numbers = np.random.default_rng(seed)
    logits = (numbers.normal(size=(steps, vocab)) * pick.choice([0.01, 1, 3, 10])).astype(np.float32)
    if pick.random() < 0.3:  # ties
        logits = np.round(logits * pick.choice([1, 4])).astype(np.float32)
    settings: dict[str, Any] = {
        "do_sample": pick.random() < 0.9,
        "seed": pick.choice([0, pick.getrandbits(32), pick.getrandbits(62)]),
        "temperature": pick.choice([1.0, 0.0, 0.3, 0.7, 1.9, 30.0, 1e-3]),
        "top_k": pick.choice([0, 1, 2, 50, 1000, 2000, 10**12]),
        "top_p": pick.choice([1.0, 0.95, 0.5, 0.1, 0.0]),
        "min_p": pick.choice([None, 0.0, 0.05, 0.3, 1.0]),
        "repetition_penalty": pick.choice([1.0, 1.3, 0.7]),
        "presence_penalty": pick.choice([0.0, 0.0, 1.5, -0.7]),
        "frequency_penalty": pick.choice([0.0, 0.0, 0.3, -2.0]),
        "logit_bias": {str(pick.randrange(vocab)): pick.uniform(-100, 100) for _ in range(pick.choice([0, 0, 3]))},
    }
    return Case(settings, [pick.randrange(vocab) for _ in range(pick.choice([0, 1, 30]))], logits)


def test_same_tokens_from_small_vocabularies(program: Path) -> None:
    sizes = [1, 2, 5, 90, 511, 512, 513, 3000]
    assert_same(program, [made_case(seed, sizes[seed % len(sizes)], 10) for seed in range(600)])


@pytest.mark.parametrize("vocab", [32_000, 49_152, 151_936])
def test_same_tokens_from_large_vocabularies(program: Path, vocab: int) -> None:
    for first in range(0, 60, 20):
        assert_same(program, [made_case(1000 + seed, vocab, 4) for seed in range(first, first + 20)])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e-320},
        {"temperature": 1e-40},
        {"temperature": 1.7e308},
        {"temperature": 1e-3, "repetition_penalty": 1e30},
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 1.7e308},
        {"top_p": 5e-324, "min_p": 5e-324},
        {"top_k": 2**63 - 1, "seed": 2**63 - 1},
    ],
)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4, 1e38])
def test_extreme_settings(program: Path, settings: dict[str, Any], size: float) -> None:
    numbers = np.random.default_rng(1)
    logits = (numbers.uniform(-1, 1, size=(6, 40)) * size).astype(np.float32)
    for signed in (logits, -abs(logits), abs(logits)):
        assert_same(program, [Case({"do_sample": True, "seed": 3, **settings}, [1, 2, 3], signed)])


def test_draws_of_one_run(program: Path) -> None:
    """Thousands of draws in a row, so that the counts of tokens stay alike."""
    logits = np.random.default_rng(5).normal(size=(4000, 64)).astype(np.float32)
    settings = {"do_sample": True, "seed": 11, "top_k": 0, "frequency_penalty": 0.01}
    tokens = assert_same(program, [Case(settings, [], logits)])[0].split()
    assert len(set(tokens)) == 64


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_100_000_draws_follow_the_distribution(program: Path, filters: dict[str, float]) -> None:
    settings = {"do_sample": True, "seed": 7, "top_k": 0, **filters}
    tokens = natively(program, [Case(settings, [], np.tile(LOGITS, (100_000, 1)))])[0].split()
    counts = np.bincount([int(token) for token in tokens], minlength=len(LOGITS))
    assert counts.sum() == 100_000
    statistic, limit = chi_square(counts, filtered(LOGITS, **filters))
    assert statistic < limit


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", [0.5, {"it's": None}]),
        ("top_k", -1),
        ("top_k", 2**63),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1e-7 - 1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -3),
        ("frequency_penalty", True),
        ("logit_bias", [1, 2]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"90": 1}),
        ("top_logprobs", 21),
        ("seed", -3),
        ("do_sample", 1),
        ("stop_strings", [""]),
        ("stop_strings", 3),
        ("stop_strings", ["a", 'say "it\'s"\n' + "long " * 30, 1]),
        ("eos_token_id", "2"),
        ("eos_token_id", [1, False]),
    ],
)
def test_settings_out_of_range_are_refused_in_the_same_words(program: Path, name: str, value: object) -> None:
    said = assert_same(program, [Case({name: value}, [], np.zeros((1, 90), np.float32))])[0]
    assert name.partition("_")[0] in said
