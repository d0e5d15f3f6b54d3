"""The nested quantizer: error bounds at every level, the packed layouts, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sol_rt.bundle.config import BLOCK
from sol_rt.errors import CheckpointError
from sol_rt.export.quantize.nested import (
    Nested,
    dequantize,
    pack_base_block_major,
    pack_base_channel_major,
    pack_plane,
    quantize_matrix,
)
from sol_rt.export.quantize.nested_kernels import offer


def gaussian(rows: int = 64, channels: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, channels)).astype(np.float32)


def mean_square(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(got.astype(np.float64) - wanted).mean())


def round_to_nearest(w: np.ndarray, bits: int) -> np.ndarray:
    """A stand-alone quantization of blocks of 32 with a float step and offset: the plain method to be as good as."""
    blocks = w.astype(np.float64).reshape(-1, BLOCK)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    step = (high - low) / (2**bits - 1)
    return (np.rint((blocks - low) / step) * step + low).reshape(w.shape)


def test_the_searchs_loop_rounds_as_numpy_does() -> None:
    w, importance = gaussian(32, 300), np.square(gaussian(32, 300, 1))  # 300 blocks, one a column
    low, high = w.min(axis=0), w.max(axis=0)
    step = (high - low) / np.float32(15)
    inverse = np.float32(1) / step
    zero = np.rint(inverse * low * np.float32(-16))
    exact = w * inverse + zero * np.float32(1 / 16)
    squares = np.square(exact - np.clip(np.rint(exact), 0, 15))
    for weights, wanted in ((w[:0], squares), (importance, squares * importance)):
        best, best_step, best_zero = np.full(300, np.inf, np.float32), np.zeros(300, np.float32), np.zeros_like(step)
        offer(w, weights, low, high, step, inverse, zero, False, best, best_step, best_zero)
        assert (best == wanted.sum(axis=0) * np.square(step * np.float32(2**12))).all()
        assert (best_step == step).all()
        assert (best_zero == zero).all()


def test_four_bits_beat_round_to_nearest_by_a_sixth() -> None:
    w = gaussian()
    assert mean_square(dequantize(quantize_matrix(w, 2), 4), w) < 0.84 * mean_square(round_to_nearest(w, 4), w)


@pytest.mark.parametrize(("bits", "factor"), [(6, 1.15), (8, 1.25)])
def test_wider_levels_are_as_good_as_stand_alone_ones(bits: int, factor: float) -> None:
    w = gaussian()
    error = mean_square(dequantize(quantize_matrix(w, 2), bits), w)
    assert error < factor * mean_square(round_to_nearest(w, bits), w)
    symmetric = np.abs(w.reshape(-1, BLOCK)).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    plain = (np.rint(w.reshape(-1, BLOCK) / symmetric) * symmetric).reshape(w.shape)
    assert error < mean_square(plain, w)


def lattice(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights as a Q4_1 file has them, float16 step and offset a block: w, codes (0 and 15 both present), steps."""
    rng = np.random.default_rng(seed)
    step = (0.001 + 0.01 * rng.random((32, 8, 1))).astype(np.float16).astype(np.float32)
    offset = (-step * 15 * rng.uniform(0.2, 0.8, step.shape)).astype(np.float16).astype(np.float32)
    codes = rng.integers(0, 16, (32, 8, BLOCK))
    codes[..., 0], codes[..., 1] = 0, 15
    return (codes * step + offset).astype(np.float32).reshape(32, -1), codes.reshape(32, -1), step[..., 0]


def block_error(got: np.ndarray, wanted: np.ndarray, step: np.ndarray) -> float:
    """Largest root mean square error of a block, in sixteenths of its step."""
    squares = np.square((got - wanted).reshape(32, 8, BLOCK) / step[..., None] * 16)
    return float(np.sqrt(squares.mean(axis=-1)).max())


def test_four_bit_source_comes_back() -> None:
    w, codes, step = lattice()
    nested = quantize_matrix(w, 2, six_bits=False)
    assert np.array_equal(nested.q, codes)
    for level in (4, 8):  # what is left is the offset, rounded to sixteenths of a step
        assert block_error(dequantize(nested, level), w, step) <= 0.52


def test_six_bits_of_a_four_bit_source_share_the_shift() -> None:
    w, codes, step = lattice()
    alone, shared = quantize_matrix(w, 2, six_bits=False), quantize_matrix(w, 2)
    assert block_error(dequantize(alone, 6), w, step) > 1.9
    assert block_error(dequantize(shared, 6), w, step) < 1.3
    assert block_error(dequantize(shared, 4), w, step) < 1.5
    assert np.array_equal(shared.q, codes)


WEIGHTS = st.floats(-60000, 60000, width=32)
MATRICES = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda shape: arrays.arrays(np.float32, (shape[0], shape[1] * BLOCK), elements=WEIGHTS)
)


@settings(max_examples=150, deadline=None)
@given(MATRICES, st.sampled_from([0, 1, 2]))
@example(np.zeros((2, 64), np.float32), 2)
@example(np.full((1, 32), 0.3, np.float32), 2)
@example(-np.linspace(1, 2, 32, dtype=np.float32)[None], 2)
@example(np.linspace(3, 5, 32, dtype=np.float32)[None], 2)
@example(np.linspace(-1e-6, 2e-6, 32, dtype=np.float32)[None], 2)
@example(np.linspace(-1e-44, 1e-44, 32, dtype=np.float32)[None], 2)
@example(np.array([[1e5] + [0.0] * 31], np.float32), 1)
def test_every_weight_is_within_its_level(w: np.ndarray, planes: int) -> None:
    nested = quantize_matrix(w, planes)
    step = np.repeat(nested.scale.T.astype(np.float64), BLOCK, axis=1)
    assert np.isfinite(nested.scale).all()
    # half a step of the level, what its grid lacks at the ends of the range, and what float32 can't tell
    for level, bound in {0: {4: 2.1}, 1: {4: 0.6, 6: 0.25}, 2: {4: 0.6, 6: 0.25, 8: 0.06}}[planes].items():
        assert (
            np.abs(dequantize(nested, level) - w.astype(np.float64)) <= step * bound + np.abs(w) * 1e-6 + 1e-38
        ).all()


def test_planes_are_absent_where_not_wanted() -> None:
    nested = quantize_matrix(gaussian(4, 32), 1)
    assert nested.b is not None
    assert nested.c is None
    with pytest.raises(ValueError, match="plane 2"):
        dequantize(nested, 8)


def test_zero_blocks_are_exactly_zero() -> None:
    w = gaussian(2, 96)
    w[:, 32:64] = 0
    for level in (4, 6, 8):
        assert not dequantize(quantize_matrix(w, 2), level)[:, 32:64].any()


def test_chunks_change_no_code() -> None:
    w = gaussian(9000, 32)
    whole, part = quantize_matrix(w, 2), quantize_matrix(w[5000:5003], 2)
    assert np.array_equal(whole.q[5000:5003], part.q)
    assert np.array_equal(whole.scale[:, 5000:5003], part.scale)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_refused_by_name(value: float) -> None:
    w = gaussian(4, 64)
    w[2, 40] = value
    with pytest.raises(CheckpointError, match=r"tensor model\.x\.weight: got NaN or infinite"):
        quantize_matrix(w, 2, "model.x.weight")


def test_ranges_beyond_float16_are_refused() -> None:
    w = gaussian(2, 32)
    w[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="largest float16 step"):
        quantize_matrix(w, 2)


def test_odd_channel_counts_are_refused() -> None:
    with pytest.raises(CheckpointError, match="40 input channels, expected a multiple of 32"):
        quantize_matrix(gaussian(2, 40), 2)


def codes(seed: int = 0, n: int = 6, k: int = 96) -> Nested:
    return quantize_matrix(gaussian(n, k, seed), 2)


def test_block_major_base_layout() -> None:
    q = codes().q
    packed = pack_base_block_major(q)
    assert packed.shape == (3, 6, 16)
    for block, output, channel in ((0, 0, 0), (1, 4, 7), (2, 5, 30), (2, 5, 31)):
        nibble = packed[block, output, channel // 2] >> (4 * (channel % 2)) & 15
        assert nibble == q[output, block * BLOCK + channel]


def test_channel_major_base_layout() -> None:
    q = codes().q
    packed = pack_base_channel_major(q)
    assert packed.shape == (96, 3)
    assert np.array_equal(packed & 15, q[0::2].T)
    assert np.array_equal(packed >> 4, q[1::2].T)


def test_residual_plane_layout() -> None:
    b = codes().b
    assert b is not None
    packed = pack_plane(b)
    assert packed.shape == (3, 6, 8)
    for block, output, channel in ((0, 0, 0), (1, 4, 7), (2, 5, 30), (2, 5, 31)):
        assert packed[block, output, channel // 4] >> (2 * (channel % 4)) & 3 == b[output, block * BLOCK + channel]
