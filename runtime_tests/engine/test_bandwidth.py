"""The read loop behind the bandwidth figure: it reads every byte, on every target of this processor."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.simd_targets import MASKS, run_tests
from sol_rt.engine.hardware import reads
from sol_rt.errors import SolError
from sol_rt.evaluation.speed import bandwidth
from sol_rt.ops import library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")


def checksum(content: bytes) -> int:
    """Sum of the little-endian 64-bit words, the last filled up with zeros, modulo 2^64, in Python's integers."""
    words = (int.from_bytes(content[start : start + 8], "little") for start in range(0, len(content), 8))
    return sum(words) % 2**64


@given(size=st.integers(0, 1500), offset=st.integers(0, 63), seed=st.integers(0, 2**32 - 1))
def test_every_byte_is_read_once(size: int, offset: int, seed: int) -> None:
    content = np.random.default_rng(seed).integers(0, 256, offset + size, dtype=np.uint8)[offset:]
    assert reads.read_bytes(content) == checksum(content.tobytes())


def test_the_sum_is_numpys_over_a_large_buffer() -> None:
    words = np.random.default_rng(0).integers(0, 2**64, 1 << 18, dtype=np.uint64)
    assert reads.read_bytes(words) == int(words.sum())


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.skipif("SOL_RT_SIMD_TARGETS" in os.environ, reason="this is the run of one target")
def test_every_target_of_this_machine(mask: int) -> None:
    result = run_tests(__file__, "read_once or large", mask)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("threads", [1, 3])
def test_all_of_the_buffer_is_read_in_every_pass(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(data: np.ndarray) -> int:
        seen.append(data.nbytes)
        assert (data == 1).all()  # written, so that no page is the one of zeros
        return 0

    monkeypatch.setattr(reads, "read_bytes", counted)
    assert bandwidth.measure(threads, 8 * 1001, seconds=0.0) > 0
    assert len(seen) == 3 * threads
    assert sum(seen) == 3 * 8 * 1001


@pytest.mark.slow
def test_a_process_of_its_own_measures() -> None:
    assert bandwidth.measure_apart(2) > 0


def test_without_the_library_it_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "library_path", lambda: None)
    reads._native.cache_clear()
    try:
        with pytest.raises(SolError, match="not built"):
            bandwidth.measure(1, 64, seconds=0.0)
    finally:
        reads._native.cache_clear()


def test_errors_of_the_measuring_process_come_through() -> None:
    with pytest.raises(SolError, match=r"not measured: .*larger than 0"):
        bandwidth.measure_apart(0)
