"""Exports whose LM head gets a matrix of 3 bits that screens it: written, chosen, stored, cut off, left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torch", reason="exporting comes with the extra export")
from test_export import export
from test_stored_calibration import files, text_file

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import UsageError
from sol_rt.export.actions import lm_head_bits
from sol_rt.export.actions.lm_head_bits import Head, HeadPoint
from sol_rt.export.actions.stored import StoredCalibration
from sol_rt.export.web import write_web_bundle
from sol_rt.export.weights.weights_file import blob_bytes
from sol_rt.generate.native.engine import Engine
from sol_rt.train.reference_model.weights import read_bundle

__all__ = ["text_file"]  # a fixture
TOKENS = list(range(3, 60))
Chooser = Callable[[Mapping[Head, HeadPoint], object], Head]


def screened(points: Mapping[Head, HeadPoint], _: object) -> Head:
    return next(head for head in points if (head.first_bits, head.candidates) == (3, 24))


def whole(points: Mapping[Head, HeadPoint], _: object) -> Head:
    return max(head for head in points if not head.candidates)


def exported(source: Path, out: Path, chooser: Chooser, **options: object) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head_bits, "_CANDIDATES", {4: (24,), 3: (12, 24)})
        patch.setattr(lm_head_bits, "worth_reading", chooser)
        export(source, out, **options)
    return out


@pytest.fixture(scope="module")
def measured(llama_checkpoint: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle whose graph of 4 bits is screened by 3, and its stored calibration."""
    folder = tmp_path_factory.mktemp("screened")
    stored = folder / "tiny.calibration.json"
    options = {"calibration": text_file, "save_calibration": stored}
    return exported(llama_checkpoint, folder / "bundle", screened, **options), stored


def screen_tensors(bundle: Path) -> list[str]:
    return [name for name in Bundle.open(bundle).config.tensors if ".screen." in name]


@pytest.mark.slow
def test_the_screen_is_near_the_lm_head(measured: tuple[Path, Path]) -> None:
    config = Bundle.open(measured[0]).config
    assert len(screen_tensors(measured[0])) == 5
    weights, vocab = read_bundle(measured[0]), config.model.vocab_size
    screen, exact = weights.matrix("embed.screen").at(3), weights.matrix("embed").at(8)
    error = (screen[:vocab] - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 0.25
    assert torch.count_nonzero(screen[vocab:]) == 0
    assert {key: variant.lm_head_screen is not None for key, variant in config.variants.items()} == {
        key: variant.bits == 4 for key, variant in config.variants.items()
    }


def test_a_screened_head_picks_the_tokens_of_the_whole_head(measured: tuple[Path, Path]) -> None:
    bundle = Bundle.open(measured[0])
    weights, config = read_bundle(measured[0]), bundle.config
    assert config.variants["s100-q4"].lm_head_screen._replace(tail_offset=0.0) == (24, 0.0, 3)
    out = Engine(bundle, provider="cpu").forward(TOKENS, Action(1.0, 1.0, 4), num_logits=len(TOKENS))
    exact = out.hidden @ weights.matrix("embed").at(8).numpy().T
    np.testing.assert_array_equal(out.logits.argmax(-1), exact.argmax(-1))
    near = np.isclose(out.logits, exact, atol=2e-3, rtol=1e-3).sum(-1)
    assert (near >= 24).all()
    assert (near < config.model.vocab_size / 2).all()


def test_a_stored_calibration_writes_it_again(
    llama_checkpoint: Path, measured: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, stored = measured
    found = StoredCalibration.read(stored)
    assert found.lm_heads[4][:2] == (8, 24)
    assert found.lm_heads[4].first_bits == 3
    export(llama_checkpoint, tmp_path / "out", calibration=stored)  # whose own rule would offer no screen of 3 bits
    assert screen_tensors(tmp_path / "out") == screen_tensors(bundle)
    assert files(tmp_path / "out") == files(bundle)


@pytest.mark.slow
def test_a_screen_that_no_graph_reads_is_cut_off(llama_checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    out = exported(llama_checkpoint, tmp_path / "out", whole, calibration=text_file)
    config = Bundle.open(out).config
    assert screen_tensors(out) == []
    assert (out / config.weights_file).stat().st_size == blob_bytes(config.tensors.values())


def test_an_export_without_calibration_has_no_screen(llama_checkpoint: Path, tmp_path: Path) -> None:
    out = exported(llama_checkpoint, tmp_path / "out", screened, calibration="none")
    assert screen_tensors(out) == []


def test_a_copy_for_browsers_leaves_the_screen_out(measured: tuple[Path, Path], tmp_path: Path) -> None:
    kept = write_web_bundle(measured[0], tmp_path / "web")
    assert not any(".screen." in name for name in kept.tensors)
    assert kept.variants["s100-q4"].lm_head_screen is None


def test_a_stored_screen_of_other_bits_is_refused(measured: tuple[Path, Path], tmp_path: Path) -> None:
    text = measured[1].read_text(encoding="utf-8")
    damaged = tmp_path / "damaged.calibration.json"
    damaged.write_text(text.replace('"bits": 3}', '"bits": 2}'), encoding="utf-8")
    assert damaged.read_text(encoding="utf-8") != text
    with pytest.raises(UsageError, match="screened by 2 bits"):
        StoredCalibration.read(damaged)
