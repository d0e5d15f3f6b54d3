"""A file's own 4-bit codes: they mean the weights that the file means, and reach the bundle as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
gguf = pytest.importorskip("gguf", reason="exporting comes with the extra export")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from helpers.gguf_file import GgufFile, random_rows  # noqa: E402
from helpers.random_checkpoint import PRESETS, RandomCheckpoint, write_random_checkpoint  # noqa: E402
from sol_rt.bundle.config import BLOCK  # noqa: E402
from sol_rt.errors import CheckpointError  # noqa: E402
from sol_rt.export import export_bundle  # noqa: E402
from sol_rt.export.quantize.gptq import HessianFactor  # noqa: E402
from sol_rt.export.quantize.nested import dequantize, quantize_matrix  # noqa: E402
from sol_rt.export.quantize.source_codes import SourceCodes, choose_zeros, nest, source_codes  # noqa: E402
from sol_rt.export.sources.gguf.four_bit import FOUR_BIT  # noqa: E402
from sol_rt.export.sources.open_checkpoint import open_checkpoint  # noqa: E402

KINDS = ("Q4_0", "Q4_1", "Q4_K")


def meant(own: SourceCodes) -> np.ndarray:
    """Weights of the codes by section 2 of docs/reference/bundle-details.md, float64 [n, KB, 32]."""
    q = own.q.reshape(*own.scale.shape, BLOCK).astype(np.float64)
    return own.scale.astype(np.float64)[..., None] / 16 * (16 * q - own.zero.astype(np.float64)[..., None])


def weights_of(rows: np.ndarray, kind: str) -> np.ndarray:
    """Weights as the gguf library reads them, float32 [n, KB, 32]."""
    w = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    return w.reshape(len(rows), -1, BLOCK)


def own_of(rows: np.ndarray, kind: str) -> SourceCodes:
    return FOUR_BIT[gguf.GGMLQuantizationType[kind]](rows)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**32))
def test_held_blocks_are_the_files_weights(kind: str, seed: int) -> None:
    rows = random_rows(kind, 3, 512, np.random.default_rng(seed))
    own, w = own_of(rows, kind), weights_of(rows, kind)
    sixteenth = own.scale.astype(np.float64)[..., None] / 16
    error = np.abs(meant(own) - w) - np.abs(w) * 1e-6
    assert (error <= 0.61 * sixteenth)[own.representable].all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_symmetric_blocks_are_exact_whatever_their_sign(seed: int) -> None:
    rows = random_rows("Q4_0", 3, 512, np.random.default_rng(seed))
    own = own_of(rows, "Q4_0")
    assert own.representable.all()
    assert np.array_equal(meant(own), weights_of(rows, "Q4_0"))


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K"])
def test_only_blocks_far_from_zero_are_not_held(kind: str) -> None:
    rows = random_rows(kind, 64, 1024, np.random.default_rng(5))
    own, w = own_of(rows, kind), weights_of(rows, kind)
    assert 0.2 < own.representable.mean() < 1
    low, high = w.min(axis=-1), w.max(axis=-1)
    far = (low > 0) | (high < 0)  # no zero point of this side's range, or barely
    assert far[~own.representable].mean() > 0.99
    crossing = (w == 0).any(axis=-1)
    assert own.representable[crossing & (high > low)].all()


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_not_held(place: int, value: float) -> None:
    rows = random_rows("Q4_1", 1, 64, np.random.default_rng(0))
    rows[0, place : place + 2] = np.array([value], "<f2").view(np.uint8)
    own = own_of(rows, "Q4_1")
    assert not own.representable[0, 0]
    with np.errstate(invalid="ignore"):
        w = weights_of(rows, "Q4_1").reshape(1, -1)
    with pytest.raises(CheckpointError, match="tensor x: got NaN or infinite"):
        nest(own, w, 2, "x")


@pytest.mark.parametrize("planes", [0, 1, 2])
def test_levels_of_own_codes(planes: int) -> None:
    rows = random_rows("Q4_1", 16, 1024, np.random.default_rng(3))
    own, w = own_of(rows, "Q4_1"), weights_of(rows, "Q4_1")
    nested = nest(own, w.reshape(16, -1), planes)
    assert (nested.b is None, nested.c is None) == (planes < 1, planes < 2)
    blocks = nested.q.reshape(w.shape)
    assert np.array_equal(blocks[own.representable], own.q.reshape(w.shape)[own.representable])
    assert np.array_equal(nested.zero.T[own.representable], own.zero[own.representable])
    sixteenth = own.scale.astype(np.float32)[..., None] / 16
    for level, bound in ((4, 0.61), (6, 2.2), (8, 0.61))[: planes + 1]:
        error = np.abs(dequantize(nested, level).reshape(w.shape) - w)
        assert (error <= bound * sixteenth * 1.001)[own.representable].all()
    plain = quantize_matrix(w[~own.representable], planes)
    got = dequantize(nested, 4 + 2 * planes).reshape(w.shape)[~own.representable]
    assert np.array_equal(got, dequantize(plain, 4 + 2 * planes))


def test_zero_points_make_up_for_each_other() -> None:
    rng = np.random.default_rng(2)
    rows, channels = 48, 512
    step = (0.01 + 0.02 * rng.random((rows, channels // BLOCK))).astype(np.float16).astype(np.float32)
    offset = -step * rng.uniform(1, 14, step.shape).astype(np.float32)
    own = source_codes(rng.integers(0, 16, (rows, channels // BLOCK, BLOCK)).astype(np.uint8), step, offset)
    own.representable[3, 4] = False
    w = (step[..., None] * own.q.reshape(rows, -1, BLOCK) + offset[..., None]).reshape(rows, channels)
    x = rng.standard_normal((4096, channels)) + 0.5  # sums over blocks go together, as those of real inputs do
    hessian = x.T @ x / len(x)
    chosen = choose_zeros(own, w, HessianFactor.of(torch.from_numpy(hessian).float()))

    def loss(codes: SourceCodes) -> float:
        lost = np.where(codes.representable[..., None], meant(codes) - w.reshape(rows, -1, BLOCK), 0).reshape(
            rows, channels
        )
        return float(np.einsum("nk,kj,nj->", lost, hessian, lost))

    assert loss(chosen) < 0.4 * loss(own)
    assert np.abs(chosen.zero.astype(int) - own.zero).max() == 1
    assert chosen.zero[3, 4] == own.zero[3, 4]
    assert np.array_equal(chosen.q, own.q)


def gguf_of(preset: RandomCheckpoint, kind: str, tmp_path: Path, rotary: int, packed_qkv: bool = False) -> Path:
    source = write_random_checkpoint(tmp_path / "hf", preset)
    file = GgufFile(tmp_path / "model.gguf", source).metadata(rotary)
    return file.tensors(kind, packed_qkv=packed_qkv).write()


@pytest.mark.parametrize(("preset", "rotary", "packed"), [("tiny-llama", 16, False), ("tiny-phi", 8, True)])
def test_codes_follow_reordered_and_joint_rows(preset: str, rotary: int, packed: bool, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(gguf_of(PRESETS[preset], "Q4_0", tmp_path, rotary, packed))
    for part in "qkv":
        name = f"model.layers.1.self_attn.{part}_proj.weight"
        own = checkpoint.codes(name, 3, 17)
        assert own is not None
        assert np.array_equal(meant(own).reshape(14, -1), checkpoint.read(name, 3, 17))


def test_other_types_have_no_codes(tmp_path: Path) -> None:
    path = gguf_of(PRESETS["tiny-llama"], "Q8_0", tmp_path, 16)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert open_checkpoint(path).codes(name, 0, 4) is None
    assert open_checkpoint(tmp_path / "hf").codes(name, 0, 4) is None


def test_a_bundle_has_the_files_codes(tmp_path: Path) -> None:
    path = gguf_of(PRESETS["tiny-llama"], "Q4_0", tmp_path, 16)
    levels = {"bits": (4,), "channel_density": (1.0,), "kv_density": (1.0,)}
    report = export_bundle(str(path), tmp_path / "out", **levels, calibration="none", parity=False)
    entry = report.config.tensors["layers.1.down.base"]
    packed = np.fromfile(tmp_path / "out" / "weights.bin", np.uint8, entry.bytes, offset=entry.offset)
    own = open_checkpoint(path).codes("model.layers.1.mlp.down_proj.weight", 0, 64)
    assert own is not None
    assert np.array_equal(packed.reshape(96, 32) & 15, own.q[0::2].T)
    assert np.array_equal(packed.reshape(96, 32) >> 4, own.q[1::2].T)
