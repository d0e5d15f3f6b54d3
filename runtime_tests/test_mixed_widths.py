"""Mixed widths: those that a source gives, and the export of a file with 4-bit codes in some of its matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
pytest.importorskip("gguf", reason="exporting comes with the extra export")
from gguf_file import GgufFile  # noqa: E402

from sol_rt.actions import Action  # noqa: E402
from sol_rt.bundle import Bundle  # noqa: E402
from sol_rt.engine import Engine  # noqa: E402
from sol_rt.errors import CheckpointError  # noqa: E402
from sol_rt.export.bundle_writer import ExportReport, export_bundle  # noqa: E402
from sol_rt.export.random_checkpoint import PRESETS, write_random_checkpoint  # noqa: E402
from sol_rt.train.twin import Twin  # noqa: E402

MORE_BITS = {"blk.0.attn_v": "model.layers.0.self_attn.v_proj", "blk.0.ffn_down": "model.layers.0.mlp.down_proj"}
"""What llama.cpp keeps at more than 4 bits in some layers of a Q4_K_M."""


def write_file(path: Path, kind: str, other: str | None = None) -> Path:
    """A file of one type, or with `other` for the matrices of MORE_BITS."""
    source = write_random_checkpoint(path.with_suffix(".source"), PRESETS["tiny-llama"])
    file = GgufFile(path, source).metadata(16)
    if other is None:
        return file.tensors(kind).write()
    file.tensors(kind, leave_out=tuple(MORE_BITS))
    for name, module in MORE_BITS.items():
        file.add(f"{name}.weight", file.source.read(f"{module}.weight"), other)
    return file.write()


def export(source: Path, bits: tuple[int, ...]) -> ExportReport:
    output = source.with_name("bundle")
    return export_bundle(str(source), output, bits=bits, prune=(100,), calibration="none", parity=False)


def test_own_codes_are_read_at_4_bits_and_others_at_more(tmp_path: Path) -> None:
    report = export(write_file(tmp_path / "model.gguf", "Q4_0", "Q8_0"), (8, 5, 4))
    config = Bundle.open(report.path).config
    mixed, narrow = config.variants["s100-q5"], config.variants["s100-q4"]
    assert mixed.layer_widths == ((8, 4, 4, 6), (4, 4, 4, 4))
    assert narrow.layer_widths is None
    graph = onnx.load(str(report.path / mixed.file), load_external_data=False).graph
    planes = {tensor.name for tensor in graph.initializer if ".plane" in tensor.name and "layers" in tensor.name}
    assert planes == {"layers.0.qkv.plane1", "layers.0.qkv.plane2", "layers.0.down.plane1"}
    extra = sum(config.tensors[name].bytes for name in planes) + config.tensors["embed.plane1"].bytes
    assert mixed.weight_bytes == narrow.weight_bytes + extra
    assert not report.dropped


def test_a_mixed_graph_is_nearer_to_the_source_than_one_of_4_bits(tmp_path: Path) -> None:
    """And the runtime runs it as the twin does."""
    folder = export(write_file(tmp_path / "model.gguf", "Q4_0", "Q8_0"), (8, 5, 4)).path
    tokens = np.random.default_rng(0).integers(3, 320, 40).tolist()
    engine, twin = Engine(Bundle.open(folder), provider="cpu"), Twin.from_bundle(folder)
    found = {}
    for bits in (8, 5, 4):
        engine.reset()
        found[bits] = engine.forward(tokens, Action(100, 100, bits), num_logits=len(tokens)).logits
        expected, _ = twin.forward(torch.tensor([tokens]), Action(100, 100, bits), twin.new_cache(1))
        assert _mean_square(found[bits], expected[0].numpy()) < 1e-4 * float(expected.var())
    assert _mean_square(found[5], found[8]) < _mean_square(found[4], found[8]) / 4


def _mean_square(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(one - other).mean())


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_a_source_of_one_kind_has_no_mixed_graph(kind: str, tmp_path: Path) -> None:
    report = export(write_file(tmp_path / "model.gguf", kind), (8, 5, 4))
    assert {variant.bits for variant in report.config.variants.values()} == {8, 4}
    assert "width 5 left out" in report.lines()[-1]


def test_a_mixed_graph_alone_of_a_source_of_one_kind_is_refused(tmp_path: Path) -> None:
    source = write_file(tmp_path / "model.gguf", "Q8_0")
    with pytest.raises(CheckpointError, match=r"bits: width 5 left out: .*; give --bits 8,4"):
        export(source, (5,))
    assert not (tmp_path / "bundle").exists()
