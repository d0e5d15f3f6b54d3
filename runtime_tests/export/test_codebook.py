"""The 3-bit level's weights: how they are packed, and that fitting them to a text beats rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from test_gptq import factor_of, made  # noqa: E402

from helpers.random_checkpoint import PRESETS, write_random_checkpoint  # noqa: E402
from helpers.reference import Coded, random_codebook  # noqa: E402
from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.bits import THREE  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.bundle.config import SolConfig  # noqa: E402
from sol_rt.bundle.verify import verify_bundle  # noqa: E402
from sol_rt.export import pipeline  # noqa: E402
from sol_rt.export.pipeline import export_bundle  # noqa: E402
from sol_rt.export.quantize.codebook import (  # noqa: E402
    Grid,
    choose_codes,
    choose_grid,
    dequantize,
    learn_codebook,
    pack_block_scale,
    pack_codes,
    unpack_codes,
)
from sol_rt.generate.native.engine import Engine  # noqa: E402
from sol_rt.train.reference_model.model import ReferenceModel  # noqa: E402

Array = np.ndarray
ANY_TABLES = random_codebook(np.random.default_rng(1))
SEEDS = st.integers(0, 2**32)


def error(w: Array, found: Array, hessian: Array) -> float:
    """tr((W - Q) H (W - Q)^T) in float64."""
    lost = found.astype(np.float64) - w
    return float(((lost @ hessian.astype(np.float64)) * lost).sum())


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([32, 96]), st.sampled_from([32, 64, 160]))
def test_packed_codes_are_those_of_the_specification(seed: int, k: int, n: int) -> None:
    """Against the packing that the tests' own reference does output by output, and back."""
    coded = Coded.random(np.random.default_rng(seed), k, n, ANY_TABLES)
    codes = np.ascontiguousarray(coded.code.T)
    expected = coded.tensors("w")
    low, high = pack_codes(codes)
    np.testing.assert_array_equal(low, expected["w.low"])
    np.testing.assert_array_equal(high, expected["w.high"])
    np.testing.assert_array_equal(unpack_codes(expected["w.low"], expected["w.high"]), codes)
    grid = Grid(coded.output_scale, coded.scale, coded.table)
    np.testing.assert_array_equal(pack_block_scale(grid), expected["w.block_scale"])
    np.testing.assert_allclose(dequantize(codes, ANY_TABLES, grid), coded.weights(THREE).T, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_fitted_codes_lose_less_than_rounded_ones(seed: int) -> None:
    w, hessian = made(seed)
    factor, codebook = factor_of(hessian), learn_codebook(w.reshape(-1, 32))
    plain = choose_grid(w, codebook)
    rounded = error(w, dequantize(choose_codes(w, codebook, plain), codebook, plain), hessian)
    grid = choose_grid(w, codebook, factor.conditional)
    fitted = error(w, dequantize(choose_codes(w, codebook, grid, [factor]), codebook, grid), hessian)
    assert fitted < 0.4 * rounded


def test_tables_beat_even_steps() -> None:
    """On Gaussian weights: a block's squared error beside that of 8 even steps whose width is searched."""
    w = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    codebook = learn_codebook(w.reshape(-1, 32))
    grid = choose_grid(w, codebook)
    found = np.square(dequantize(choose_codes(w, codebook, grid), codebook, grid) - w).mean()
    blocks = w.reshape(64, -1, 32)
    even = np.full(blocks.shape[:2], np.inf)
    for width in np.linspace(0.5, 1.0, 26):
        step = width * (blocks.max(-1) - blocks.min(-1)) / 7
        low = (blocks.max(-1) + blocks.min(-1)) / 2 - 3.5 * step
        code = np.clip(np.rint((blocks - low[..., None]) / step[..., None]), 0, 7)
        even = np.minimum(even, np.square(code * step[..., None] + low[..., None] - blocks).mean(-1))
    assert found < 0.95 * even.mean()


def test_the_tables_are_ascending_and_symmetric_weights_use_all_of_them() -> None:
    w = np.random.default_rng(2).standard_normal((512, 32)).astype(np.float32)
    codebook = learn_codebook(w)
    assert (codebook.dtype, codebook.shape) == (np.int8, (4, 8))
    assert (np.diff(codebook.astype(int), axis=1) > 0).all()
    assert (np.abs(codebook.astype(int)).max(axis=1) == 127).all()
    assert set(np.unique(choose_grid(w, codebook).table)) == {0, 1, 2, 3}


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_each_code_is_the_nearest_of_its_block(seed: int) -> None:
    w, _ = made(seed, rows=8, channels=64)
    codebook = learn_codebook(w.reshape(-1, 32))
    grid = choose_grid(w, codebook)
    values = np.repeat(grid.values(codebook).transpose(1, 0, 2), 32, axis=1)  # [N, K, 8]
    found = dequantize(choose_codes(w, codebook, grid), codebook, grid)
    np.testing.assert_allclose(np.abs(found - w), np.abs(values - w[..., None]).min(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 3e4])
def test_weights_of_any_size_and_blocks_of_zeros_do(scale: float) -> None:
    w = (scale * np.random.default_rng(3).standard_normal((32, 96))).astype(np.float32)
    w[3] = 0
    w[:, 32:64] = 0
    codebook = learn_codebook(w.reshape(-1, 32))
    grid = choose_grid(w, codebook)
    found = dequantize(choose_codes(w, codebook, grid), codebook, grid)
    assert np.isfinite(grid.output_scale).all()
    assert not found[3].any()
    assert not found[:, 32:64].any()
    assert np.square(found - w).mean() < 0.05 * np.square(w).mean()
    nothing = learn_codebook(np.zeros((4, 32), np.float32))
    assert (np.diff(nothing.astype(int), axis=1) > 0).all()


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-phi"])
def test_an_exported_bundle_runs_as_its_reference_model(preset: str, calibrated: bool, tmp_path: Path) -> None:
    """By function bodies, which round activations otherwise."""
    source = write_random_checkpoint(tmp_path / "source", PRESETS[preset])
    (tmp_path / "text.txt").write_text(" ".join(map(str, range(3000))), encoding="utf-8")
    calibration = tmp_path / "text.txt" if calibrated else "none"
    options = {"channel_density": (1.0,), "kv_density": (1.0,), "max_actions": None, "parity": False}
    folder = export_bundle(str(source), tmp_path / "out", bits=(8, THREE), calibration=calibration, **options).path
    verify_bundle(folder)
    bundle = Bundle.open(folder)
    assert "s100-q3" in bundle.config.variants
    tokens = np.random.default_rng(0).integers(3, 300, 40).tolist()
    engine, twin = Engine(bundle, provider="cpu", native_ops=False), ReferenceModel.from_bundle(folder)
    action = Action(1.0, 1.0, THREE)
    got = engine.forward(tokens, action, num_logits=len(tokens)).logits
    expected, _ = twin(torch.tensor([tokens]), action, twin.new_cache(1))
    assert np.sqrt(np.mean((got - expected[0].numpy()) ** 2)) < 0.08 * float(expected.std())


def test_matrices_have_only_the_levels_that_graphs_read(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source", PRESETS["tiny-llama"])
    report = export_bundle(str(source), tmp_path / "out", bits=(THREE,), calibration="none", parity=False)
    read = {
        tuple(name.split(".")[1:] if name.startswith("layers.") else name.split("."))
        for name in report.config.tensors
        if name.endswith((".base", ".low"))
    }
    # The last layer keeps 4 bits: `export/weights/mixed_bits.py` says why.
    last = str(report.config.model.num_layers - 1)
    up = {(str(layer), "up", "base" if str(layer) == last else "low") for layer in range(int(last) + 1)}
    others = {(str(layer), kind, "base") for layer in range(int(last) + 1) for kind in ("qkv", "o", "down")}
    assert read == {("embed", "base"), *others, *up}
    twin = ReferenceModel.from_bundle(report.path)
    assert torch.isfinite(twin(torch.tensor([[5, 6, 7]]), Action(1.0, 1.0, THREE), twin.new_cache(1))[0]).all()


@pytest.mark.slow
def test_bits_that_serve_lower_densities_alone_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The selection may keep 3 bits only together with fewer channels."""

    def choose(folder: Path, config: SolConfig, *_: object) -> SimpleNamespace:
        variants = {key: variant for key, variant in config.variants.items() if key != "s100-q3"}
        actions = tuple(entry for entry in config.actions if entry.action.variant in variants)
        return SimpleNamespace(config=replace(config, variants=variants, actions=actions), selection=None)

    monkeypatch.setattr(pipeline.action_set, "choose_actions", choose)
    source = write_random_checkpoint(tmp_path / "source", PRESETS["tiny-llama"])
    (tmp_path / "text.txt").write_text(" ".join(map(str, range(3000))), encoding="utf-8")
    options = {"channel_density": (1.0, 0.5), "kv_density": (1.0,), "calibration": tmp_path / "text.txt"}
    report = export_bundle(str(source), tmp_path / "out", bits=(8, THREE), **options)
    assert report.parity is not None
    assert [row.variant for row in report.parity.rows] == ["s100-q8"]
    assert "s050-q3" in report.config.variants
