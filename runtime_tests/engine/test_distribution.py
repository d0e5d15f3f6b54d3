"""softmax of logits, by numpy and by the native library on every target of this processor, against float64."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.simd_targets import MASKS, run_tests
from sol_rt.engine.distribution import Distribution, SoftmaxSums, native_sums, numpy_sums
from sol_rt.ops import library_path

SUMS = [
    pytest.param(numpy_sums, id="numpy"),
    pytest.param(
        native_sums(),
        id="native",
        marks=pytest.mark.skipif(library_path() is None, reason="the native operators are not built"),
    ),
]
Sums = Callable[[np.ndarray], SoftmaxSums]


@pytest.mark.parametrize("sums", SUMS)
@given(
    size=st.one_of(st.integers(1, 70), st.sampled_from([1000, 49152, 151936])),
    scale=st.sampled_from([0.0, 0.1, 3.0, 40.0, 1e4, 1e38]),
    offset=st.sampled_from([0.0, -300.0, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_statistics_match_float64(sums: Sums, size: int, scale: float, offset: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (scale * random.uniform(-1, 1, size) + offset).astype(np.float32)
    distribution = Distribution(logits, sums)
    assert distribution.finite
    assert distribution.top == int(logits.argmax())
    centred = logits.astype(np.float64) - logits.max()
    log_total = np.log(np.exp(centred).sum())
    probabilities = np.exp(centred - log_total)
    assert distribution.top_probability == pytest.approx(probabilities.max(), rel=1e-5)
    second = np.partition(probabilities, -2)[-2] if size > 1 else 0.0
    assert distribution.margin == pytest.approx(probabilities.max() - second, rel=1e-5, abs=1e-6)
    entropy = -(probabilities * (centred - log_total)).sum()
    assert distribution.entropy == pytest.approx(entropy, rel=1e-5, abs=1e-5)
    token = int(random.integers(size))
    assert distribution.log_probability(token) == pytest.approx(centred[token] - log_total, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("sums", SUMS)
@given(size=st.integers(1, 300), number=st.integers(0, 299), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_number_that_is_not_finite_is_found(sums: Sums, size: int, number: int, bad: float) -> None:
    logits = np.linspace(-5, 5, size, dtype=np.float32)
    logits[number % size] = bad
    assert not Distribution(logits, sums).finite


@pytest.mark.parametrize("sums", SUMS)
@given(size=st.integers(2, 300), first=st.integers(0, 299), second=st.integers(0, 299))
def test_the_first_of_equal_logits_is_the_top(sums: Sums, size: int, first: int, second: int) -> None:
    logits = np.full(size, -1, np.float32)
    logits[[first % size, second % size]] = 2
    distribution = Distribution(logits, sums)
    assert distribution.top == min(first % size, second % size)
    assert (distribution.margin == 0) == (first % size != second % size)


@pytest.mark.parametrize("sums", SUMS)
@given(size=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_the_second_largest_is_exact(sums: Sums, size: int, seed: int) -> None:
    logits = np.random.default_rng(seed).integers(-size, size, size).astype(np.float32)
    rest = np.sort(logits)[:-1]
    assert sums(logits).second == (rest[-1] if size > 1 else np.finfo(np.float32).min)


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.skipif("SOL_RT_SIMD_TARGETS" in os.environ, reason="this is the run of one target")
@pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
def test_every_target_of_this_machine(mask: int) -> None:
    result = run_tests(__file__, "native", mask)
    assert result.returncode == 0, result.stdout[-3000:]
