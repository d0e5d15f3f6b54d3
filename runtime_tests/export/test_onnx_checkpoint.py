"""Folders with an ONNX graph: the same tensors, description and bundle as from the checkpoint; damage is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.places import ROOT

pytest.importorskip("torch", reason="exporting comes with the extra export")
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

from helpers.onnx_folder import write_onnx_folder
from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.cli import main
from sol_rt.errors import CheckpointError
from sol_rt.export import export_bundle
from sol_rt.export.sources.checkpoint import Checkpoint, check_tensors
from sol_rt.export.sources.decoder import family_of, from_hf_config
from sol_rt.export.sources.folder.onnx_checkpoint import OnnxCheckpoint
from sol_rt.export.sources.open_checkpoint import open_checkpoint

FAMILY_PRESETS = [name for name in PRESETS if name.startswith("tiny-")]
NORM = "model.layers.0.input_layernorm.weight"
OPTIMUM = shutil.which(
    "optimum-cli", path=os.pathsep.join([str(ROOT / ".venv-peers/optimum/bin"), os.environ.get("PATH", "")])
)


def checked(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, OnnxCheckpoint)
    check_tensors(checkpoint, from_hf_config(checkpoint.config), family_of(checkpoint.config))
    return checkpoint


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama, and the same as a folder with a graph. Not to be written to."""
    base = tmp_path_factory.mktemp("onnx")
    source = write_random_checkpoint(base / "source", PRESETS["tiny-llama"])
    return source, write_onnx_folder(source, base / "graph")


@pytest.fixture
def folder(llama: tuple[Path, Path], tmp_path: Path) -> Path:
    """A folder with a graph that a test may damage."""
    return Path(shutil.copytree(llama[1], tmp_path / "graph"))


def edit(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize("preset", FAMILY_PRESETS)
def test_a_graph_holds_the_tensors_of_its_checkpoint(preset: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source", PRESETS[preset])
    wanted = open_checkpoint(source)
    got = checked(write_onnx_folder(source, tmp_path / "graph"))
    assert from_hf_config(got.config) == from_hf_config(wanted.config)
    assert set(wanted.names()) <= set(got.names())
    offset = np.float32(from_hf_config(got.config).norm_offset)
    for name in wanted.names():
        assert got.shape(name) == wanted.shape(name)
        assert np.array_equal(got.read(name) + offset, wanted.read(name) + offset), "as the bundle stores them"
        assert np.array_equal(got.read(name, 3, 8), got.read(name)[3:8])
        assert got.read(name).dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "dtype", "external"),
    [
        ("tiny-llama", "float32", False),
        ("tiny-llama", "float32", True),
        ("tiny-llama", "float16", False),
        ("tiny-gemma3", "float32", False),
        ("tiny-gemma3", "float16", False),
    ],
)
def test_the_bundle_is_that_of_the_checkpoint(preset: str, dtype: str, external: bool, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source", replace(PRESETS[preset], dtype=dtype))
    graph = write_onnx_folder(source, tmp_path / "graph", external=external, half=dtype == "float16")
    if external:
        assert (graph / "model.onnx_data").stat().st_size > 100_000
    assert differing_files(source, graph, tmp_path) <= {CONFIG_NAME, "README.md"}, "these two name the source"


@pytest.mark.slow
@pytest.mark.skipif(OPTIMUM is None, reason="no optimum-cli; make peers PEERS=optimum installs it")
@pytest.mark.parametrize(
    ("preset", "dtype"), [("tiny-llama", "float32"), ("tiny-gemma3", "float32"), ("tiny-gemma3", "float16")]
)
def test_the_bundle_of_optimums_own_folder_is_that_of_the_checkpoint(preset: str, dtype: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source", replace(PRESETS[preset], dtype=dtype))
    short = {"float32": "fp32", "float16": "fp16"}[dtype]
    command = [str(OPTIMUM), "export", "onnx", "--model", str(source), "--dtype", short]
    command += ["--task", "text-generation-with-past", str(tmp_path / "graph")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rewritten = {"config.json", "generation_config.json", "tokenizer_config.json"}  # by another transformers
    assert differing_files(source, tmp_path / "graph", tmp_path) <= {CONFIG_NAME, "README.md", *rewritten}


def differing_files(source: Path, graph: Path, base: Path) -> set[str]:
    """The files that differ between the bundles of a checkpoint and of a folder with its graph.

    Their configs are equal but for names and the files' hashes.
    """
    levels = {"bits": (8, 4), "channel_density": (1.0, 0.5), "kv_density": (1.0,)}
    for folder, name in ((source, "one"), (graph, "other")):
        export_bundle(str(folder), base / name, calibration="none", parity=False, **levels)
    one, other = ({p.name: p.read_bytes() for p in (base / name).iterdir()} for name in ("one", "other"))
    assert set(one) == set(other)
    differ = {name for name in one if one[name] != other[name]}
    configs = [json.loads(files[CONFIG_NAME]) for files in (one, other)]
    for config, wanted in zip(configs, (source, graph), strict=True):
        assert config["model"].pop("name") == wanted.name
        assert config["model"].pop("source") == wanted.name
        for name in differ & set(config["files"]):
            del config["files"][name]
    assert configs[0] == configs[1]
    return differ


@pytest.mark.slow
def test_a_calibrated_export_compares_a_graph_with_transformers(llama: tuple[Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The old man of the sea told a tale of ships and of the stars above the bay. " * 120)
    levels = {"bits": (8,), "channel_density": (1.0,), "kv_density": (1.0,)}
    report = export_bundle(str(llama[1]), tmp_path / "bundle", calibration=text, **levels)
    assert report.parity is not None
    assert report.parity.rows[0].kl < 1e-3


def test_half_floats_are_read(llama: tuple[Path, Path], tmp_path: Path) -> None:
    got = checked(write_onnx_folder(llama[0], tmp_path / "graph", half=True))
    wanted = open_checkpoint(llama[0])
    for name in wanted.names():
        assert np.array_equal(got.read(name), wanted.read(name).astype(np.float16).astype(np.float32))


def test_copies_and_brain_floats_are_read(folder: Path, llama: tuple[Path, Path]) -> None:
    wanted = open_checkpoint(llama[0])
    values = wanted.read(NORM)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)

    def change(model: onnx.ModelProto) -> None:
        kept = [tensor for tensor in model.graph.initializer if tensor.name != NORM]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.initializer.append(helper.make_tensor("stored", onnx.TensorProto.BFLOAT16, [64], halves, raw=False))
        model.graph.initializer[-1].ClearField("int32_data")
        model.graph.initializer[-1].raw_data = halves.tobytes()
        model.graph.node.insert(0, helper.make_node("Identity", ["stored"], [NORM]))

    edit(folder, change)
    assert np.array_equal(checked(folder).read(NORM), (halves.astype(np.uint32) << 16).view(np.float32))


def test_equal_tensors_are_all_found(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source", PRESETS["tiny-llama"])
    tensors = load_file(source / "model.safetensors")
    ones = {name: torch.ones_like(tensor) for name, tensor in tensors.items() if "norm" in name}
    save_file({**tensors, **ones}, source / "model.safetensors", metadata={"format": "pt"})
    got = checked(write_onnx_folder(source, tmp_path / "graph"))
    assert all(np.array_equal(got.read(name), np.ones(64)) for name in ones)


def test_a_graph_in_the_folder_onnx_is_found_and_safetensors_go_before(folder: Path, llama: tuple[Path, Path]) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    checked(folder)
    shutil.copyfile(llama[0] / "model.safetensors", folder / "model.safetensors")
    assert not isinstance(open_checkpoint(folder), OnnxCheckpoint)


def test_damaged_graphs_are_named(folder: Path, llama: tuple[Path, Path], tmp_path: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:5000])
    with pytest.raises(CheckpointError, match=r"model\.onnx: damaged ONNX file"):
        open_checkpoint(folder)
    (folder / "model.onnx").write_bytes(content)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        open_checkpoint(folder)
    graph = write_onnx_folder(llama[0], tmp_path / "external", external=True)
    data = (graph / "model.onnx_data").read_bytes()
    (graph / "model.onnx_data").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"model\.onnx_data: it ends before tensor "):
        open_checkpoint(graph)
    (graph / "model.onnx_data").unlink()
    with pytest.raises(CheckpointError, match=r"model\.onnx_data: no such file, but the graph's weights are in it"):
        open_checkpoint(graph)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "../model.safetensors", "got the file '../model.safetensors', expected one in the graph's folder"),
        ("offset", "-4", "it ends before tensor"),
        ("length", "much", "it ends before tensor"),
        ("length", "8", "got 8 bytes, expected 256"),
    ],
)
def test_places_outside_the_file_are_refused(folder: Path, key: str, value: str, message: str) -> None:
    (folder / "data").write_bytes(bytes(4096))

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == NORM)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for name, text in {"location": "data", "offset": "0", "length": "256", key: value}.items():
            tensor.external_data.add(key=name, value=text)

    model = onnx.load(folder / "model.onnx")
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_quantized_and_foreign_graphs_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))

    def quantize(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("DequantizeLinear", [NORM, "s"], ["unused"]))

    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.name = ""

    for change, message in (
        (quantize, "got quantized weights (operator DequantizeLinear), expected float32 or float16"),
        (rename, "tensor model.layers.0.self_attn.q_proj.weight is missing"),
    ):
        original = (folder / "model.onnx").read_bytes()
        edit(folder, change)
        assert main(["export", "-m", str(folder), "-o", str(tmp_path / "out")]) == 1
        out, err = capsys.readouterr()
        assert not out
        assert message in err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        (folder / "model.onnx").write_bytes(original)


def test_numbers_in_typed_lists_are_read(folder: Path, llama: tuple[Path, Path]) -> None:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == NORM:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(helper.make_tensor(NORM, onnx.TensorProto.FLOAT, [64], values))

    edit(folder, change)
    assert np.array_equal(checked(folder).read(NORM), open_checkpoint(llama[0]).read(NORM))
