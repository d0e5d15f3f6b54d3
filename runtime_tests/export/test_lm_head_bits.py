"""The output matrix's own bits: the rule by hand, and the choice made and written for a bundle."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting comes with the extra export")
pytest.importorskip("gguf", reason="exporting comes with the extra export")
from helpers.gguf_file import write_mixed_file
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.export import export_bundle
from sol_rt.export.actions import lm_head_bits
from sol_rt.export.actions.lm_head_bits import Head, HeadPoint, choose_lm_head_bits, worth_reading
from sol_rt.export.runs import open_under
from sol_rt.export.sources.decoder import Decoder, from_hf_config
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.progress import silent
from sol_rt.train.reference_model.weights import read_bundle

WINDOWS = [np.random.default_rng(seed).integers(0, 320, 64).tolist() for seed in range(2)]


def points(**given: tuple[int, float]) -> dict[int, HeadPoint]:
    return {int(name[1:]): HeadPoint(*values) for name, values in given.items()}


def test_a_width_is_taken_at_twice_the_wider_variants_multiplier() -> None:
    """From (80, 0.5) to the wider variant at (120, 0.1) it is 0.01 nats a byte."""
    wider = [HeadPoint(120, 0.1)]
    assert worth_reading(points(h4=(80, 0.5), h6=(90, 0.35), h8=(100, 0.2)), wider) == 4
    assert worth_reading(points(h4=(80, 0.5), h6=(90, 0.28), h8=(100, 0.2)), wider) == 6
    assert worth_reading(points(h4=(80, 0.5), h6=(90, 0.28), h8=(100, 0.05)), wider) == 8


def test_the_steepest_line_counts() -> None:
    """6 bits that bring nothing are no measure of what bytes are worth: 8 bits are."""
    head = points(h4=(80, 0.5), h6=(90, 0.45))
    assert worth_reading(head, [HeadPoint(100, 0.5), HeadPoint(120, 0.1)]) == 4
    assert worth_reading(head, [HeadPoint(100, 0.5), HeadPoint(120, 0.45)]) == 6


def test_a_mix_of_widths_that_reads_as_much_is_no_measure() -> None:
    """Nor is one that reads less: 5 bits beside 6."""
    head = points(h6=(100, 0.2), h8=(110, 0.1))
    assert worth_reading(head, [HeadPoint(100, 0.1), HeadPoint(90, 0.3)]) == 6
    assert worth_reading(head, [HeadPoint(100, 0.3), HeadPoint(90, 0.3), HeadPoint(140, 0.1)]) == 8


def test_nothing_is_spent_where_more_bits_bring_nothing() -> None:
    assert worth_reading(points(h4=(80, 0.5), h6=(90, 0.499)), [HeadPoint(120, 0.5)]) == 4
    assert worth_reading(points(h6=(90, 0.5), h8=(100, 0.4)), []) == 6


@pytest.fixture
def exported(llama_checkpoint: Path, llama_bundle: Path, tmp_path: Path) -> tuple[Path, SolConfig, Decoder]:
    """A bundle to be changed: folder, config and decoder."""
    folder = shutil.copytree(llama_bundle, tmp_path / "tiny")
    return folder, Bundle.open(folder).config, from_hf_config(open_checkpoint(llama_checkpoint).config)


@pytest.mark.parametrize("chosen", [4, 6, 8])
def test_a_bundle_with_its_choice_runs(
    chosen: int, exported: tuple[Path, SolConfig, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, decoder = exported
    monkeypatch.setattr(lm_head_bits, "worth_reading", lambda points, wider: max(Head(chosen), min(points)))
    found = choose_lm_head_bits(folder, config, decoder, WINDOWS, silent)
    for variant in found.variants.values():
        before = config.variants[variant.key].lm_head_bits
        assert variant.lm_head_bits == max(chosen, before)
        more = variant.weight_bytes - config.variants[variant.key].weight_bytes
        assert more == 64 * 320 * (variant.lm_head_bits - before) // 8
    step = open_under(folder, found).forward(WINDOWS[0], Action(1.0, 1.0, 4))
    head = read_bundle(folder).matrix("embed")
    off = {level: np.abs(step.logits[0] - step.hidden[0] @ head.at(level).numpy().T).mean() for level in (4, 6, 8)}
    assert min(off, key=lambda level: off[level]) == chosen


def test_every_width_is_measured_and_the_widest_stays(
    exported: tuple[Path, SolConfig, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, decoder = exported
    asked = []

    def choose(points: dict[Head, HeadPoint], wider: list[HeadPoint]) -> Head:
        asked.append(([head.bits for head in sorted(points)], len(wider)))
        sizes = [points[bits].weight_bytes for bits in sorted(points)]
        assert sizes == sorted(set(sizes))
        losses = [points[bits].loss for bits in sorted(points)]
        assert losses[0] == max(losses)
        assert losses[-1] < losses[0]
        assert losses[-1] > 0
        return min(points)

    run, measured = lm_head_bits._measure, list[tuple[int, int]]()

    def noted(folder: Path, config: SolConfig, graphs: Collection[int], *rest: Any) -> dict[int, HeadPoint]:
        measured.extend({(each.bits, each.lm_head_bits) for each in config.variants.values() if each.bits in graphs})
        return run(folder, config, graphs, *rest)

    monkeypatch.setattr(lm_head_bits, "worth_reading", choose)
    monkeypatch.setattr(lm_head_bits, "_measure", noted)
    found = choose_lm_head_bits(folder, config, decoder, WINDOWS, silent)
    assert len(measured) == len(set(measured))
    graph_bits = sorted({variant.bits for variant in config.variants.values()})
    heads = {3: [4, 6, 8], 4: [4, 6, 8], 5: [6, 8], 6: [6, 8]}
    wider = [len(graph_bits) - index - 1 for index in range(len(graph_bits))]
    assert asked == [(heads[bits], count) for bits, count in zip(graph_bits[:-1], wider, strict=False)]
    assert replace(found, files={}) == replace(config, files={})
    for variant in config.variants.values():
        graph = (folder / variant.file).read_bytes()
        assert hashlib.sha256(graph).hexdigest() == config.files[variant.file].sha256


def test_output_matrices_are_tried_up_to_the_widest_whatever_the_graphs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixed graph may start at 4 bits where no graph of 4 bits is."""
    source = write_mixed_file(tmp_path / "model.gguf")
    options = {"channel_density": (1.0,), "calibration": "none", "parity": False}
    folder = export_bundle(str(source), tmp_path / "bundle", bits=(8, MIXED), **options).path
    monkeypatch.setattr(lm_head_bits, "worth_reading", lambda points, wider: max(points))
    decoder = from_hf_config(open_checkpoint(source).config)
    found = choose_lm_head_bits(folder, Bundle.open(folder).config, decoder, WINDOWS, silent)
    assert {variant.lm_head_bits for variant in found.variants.values()} == {8}


def test_a_mixed_width_is_no_measure_for_narrower_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixed width gets a choice of its own."""
    source = write_mixed_file(tmp_path / "model.gguf")
    options = {"channel_density": (1.0,), "calibration": "none", "parity": False}
    folder = export_bundle(str(source), tmp_path / "bundle", bits=(8, 6, MIXED, 4), **options).path
    asked = []

    def choose(points: dict[Head, HeadPoint], wider: list[HeadPoint]) -> Head:
        asked.append(([head.bits for head in sorted(points)], len(wider)))
        return max(points)

    monkeypatch.setattr(lm_head_bits, "worth_reading", choose)
    decoder = from_hf_config(open_checkpoint(source).config)
    found = choose_lm_head_bits(folder, Bundle.open(folder).config, decoder, WINDOWS, silent)
    assert asked == [([4, 6, 8], 1), ([4, 6, 8], 1)]
    assert {variant.lm_head_bits for variant in found.variants.values()} == {8}
