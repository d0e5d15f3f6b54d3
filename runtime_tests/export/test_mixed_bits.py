"""Mixed bits: those that a source gives, and the export of a file with 4-bit codes in some of its matrices."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
pytest.importorskip("gguf", reason="exporting comes with the extra export")
from helpers.gguf_file import GgufFile, write_mixed_file  # noqa: E402
from helpers.random_checkpoint import PRESETS, write_random_checkpoint  # noqa: E402
from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.bits import MIXED  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.bundle.config import CONFIG_NAME  # noqa: E402
from sol_rt.cli.show.inspect import inspect  # noqa: E402
from sol_rt.errors import BundleError, CheckpointError  # noqa: E402
from sol_rt.evaluation.inspect import describe  # noqa: E402
from sol_rt.export import pipeline  # noqa: E402
from sol_rt.export.pipeline import ExportReport, export_bundle  # noqa: E402
from sol_rt.generate.native.engine import Engine  # noqa: E402
from sol_rt.train.reference_model.model import UNROUNDED, ReferenceModel  # noqa: E402
from sol_rt.train.reference_model.weights import FloatMatrix, read_checkpoint  # noqa: E402


def write_plain_file(path: Path, kind: str) -> Path:
    """All matrices of one type."""
    source = write_random_checkpoint(path.with_suffix(".source"), PRESETS["tiny-llama"])
    return GgufFile(path, source).metadata(16).tensors(kind).write()


def export(source: Path, bits: tuple[int, ...], calibration: str | Path = "none") -> ExportReport:
    output = source.with_name("bundle")
    return export_bundle(str(source), output, bits=bits, channel_density=(1.0,), calibration=calibration, parity=False)


def test_own_codes_are_read_at_4_bits_and_others_at_more(tmp_path: Path) -> None:
    report = export(write_mixed_file(tmp_path / "model.gguf"), (8, MIXED, 4))
    config = Bundle.open(report.path).config
    mixed, narrow = config.variants["s100-qmix"], config.variants["s100-q4"]
    assert mixed.layer_bits == ((8, 4, 4, 6), (4, 4, 4, 4))
    assert (mixed.lm_head_bits, narrow.layer_bits) == (4, None)
    graph = onnx.load(str(report.path / mixed.file), load_external_data=False).graph
    planes = {tensor.name for tensor in graph.initializer if ".plane" in tensor.name and "layers" in tensor.name}
    assert planes == {"layers.0.qkv.plane1", "layers.0.qkv.plane2", "layers.0.down.plane1"}
    extra = sum(config.tensors[name].bytes for name in planes)
    assert mixed.weight_bytes == narrow.weight_bytes + extra
    assert not report.dropped


def test_a_source_of_only_4_bit_codes_reads_more_where_activations_count(tmp_path: Path) -> None:
    config = export(write_plain_file(tmp_path / "model.gguf", "Q4_1"), (8, MIXED, 4)).config
    assert config.variants["s100-qmix"].layer_bits == ((8, 8, 4, 8),) * 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen2", "tiny-phi3"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_mixed_graph_is_nearer_to_the_source_than_one_of_4_bits(
    preset: str, calibrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the runtime runs it as the reference model does. All graphs stay, whatever their speeds are.

    Where an activation lies between two codes, runtime and reference may round it to different ones: logits then
    differ by a percent, for that token and those after it. Of ten short texts most have no such activation.
    """
    every = lambda folder, config, *_, **__: SimpleNamespace(config=config, selection=None)  # noqa: E731
    monkeypatch.setattr(pipeline.action_set, "choose_actions", every)
    source = write_mixed_file(tmp_path / "model.gguf", preset)
    (tmp_path / "text.txt").write_text(" ".join(map(str, range(3000))), encoding="utf-8")
    calibration = tmp_path / "text.txt" if calibrated else "none"
    folder = export(source, (8, MIXED, 4), calibration).path
    exact = ReferenceModel(read_checkpoint(source, FloatMatrix), UNROUNDED)
    texts = np.random.default_rng(0).integers(3, 320, (10, 4)).tolist()
    tokens = [token for text in texts for token in text]
    wanted, _ = exact.forward(torch.tensor([tokens]), Action(1.0, 1.0, 8), exact.new_cache(1))
    engine, reference = Engine(Bundle.open(folder), provider="cpu"), ReferenceModel.from_bundle(folder)
    found = {}
    for variant in engine.bundle.config.variants.values():
        action, differences = Action(1.0, 1.0, variant.bits), []
        for text in texts:
            engine.reset()
            logits = engine.forward(text, action, num_logits=len(text)).logits
            expected, _ = reference.forward(torch.tensor([text]), action, reference.new_cache(1))
            differences.append(_mean_square(logits, expected[0].numpy()) / float(expected.var()))
        assert np.median(differences) < 1e-7, differences
        assert max(differences) < 1e-3, differences
        engine.reset()
        found[variant.bits] = engine.forward(tokens, action, num_logits=len(tokens)).logits
    assert _mean_square(found[5], wanted[0].numpy()) < _mean_square(found[4], wanted[0].numpy()) / 4


def _mean_square(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(one - other).mean())


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_a_source_without_codes_has_no_mixed_graph(kind: str, tmp_path: Path) -> None:
    report = export(write_plain_file(tmp_path / "model.gguf", kind), (8, MIXED, 4))
    assert {variant.bits for variant in report.config.variants.values()} == {8, 4}
    assert "mixed bits left out" in report.lines()[-1]
    assert "`qmix`" not in (report.path / "README.md").read_text(encoding="utf-8")


def test_a_mixed_graph_alone_of_a_source_without_codes_is_refused(tmp_path: Path) -> None:
    source = write_plain_file(tmp_path / "model.gguf", "Q8_0")
    with pytest.raises(CheckpointError, match=r"bits: mixed bits left out: .*; give --bits 8,4"):
        export(source, (MIXED,))
    assert not (tmp_path / "bundle").exists()


def test_6_bits_that_lose_more_are_not_the_dense_action(tmp_path: Path) -> None:
    report = export(write_mixed_file(tmp_path / "model.gguf"), (6, MIXED, 4))
    assert report.config.dense == Action(1.0, 1.0, MIXED)
    assert {variant.bits for variant in report.config.variants.values()} == {5, 4}
    assert "6 bits left out" in report.lines()[-1]
    assert "embed.plane2" in report.config.tensors


@pytest.mark.parametrize(("key", "bits"), [("s100-qmix", "layer_bits"), ("s100-q8", "bits")])
def test_a_variant_wider_than_the_weights_is_named(key: str, bits: str, tmp_path: Path) -> None:
    folder = export(write_mixed_file(tmp_path / "model.gguf"), (8, MIXED, 4)).path
    path = folder / CONFIG_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    tensors = document["weights"]["tensors"]
    for name in [name for name in tensors if name.endswith(".plane2")]:
        del tensors[name]
    document["variants"] = {key: document["variants"][key]}
    document["dense"] = f"k100-{key}"
    document["actions"] = [{"tag": document["dense"], "loss": None}]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"variants\.{key}\.{bits}: got 8, expected at most 6"):
        Bundle.open(folder)


@pytest.mark.parametrize(("kind", "head"), [("Q4_0", 4), ("Q8_0", 8)])
def test_a_mixed_graph_that_is_the_dense_one_spares_nothing(kind: str, head: int, tmp_path: Path) -> None:
    """But where 4 bits are all that the output matrix has."""
    source = write_mixed_file(tmp_path / "model.gguf", embedding=kind)
    report = export(source, (MIXED, 4))
    assert report.config.variants["s100-qmix"].lm_head_bits == head
    beside_8 = export(source, (8, MIXED)).config.variants["s100-qmix"].lm_head_bits
    assert beside_8 == min(head, 6)


def test_inspect_tells_what_a_mixed_graph_mixes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(write_mixed_file(tmp_path / "model.gguf"), (8, MIXED, 4)).path
    assert "`qmix`: its matrices" in (folder / "README.md").read_text(encoding="utf-8")
    variants = {entry["key"]: entry for entry in describe(folder)["variants"]}
    assert variants["s100-qmix"]["layer_bits"] == ((8, 4, 4, 6), (4, 4, 4, 4))
    assert variants["s100-q8"]["layer_bits"] is None
    inspect(str(folder))
    assert "mixed (4, 6, 8)" in capsys.readouterr().out
