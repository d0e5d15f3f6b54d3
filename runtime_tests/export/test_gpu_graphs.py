"""A bundle's graphs for GPUs: which every export writes, which `--target gpu` adds, and what a reader refuses."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.main_memory import OnMainMemory
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.cli import main
from sol_rt.engine import providers
from sol_rt.engine.gpu.gpu_graphs import FLOAT16, FLOAT32, INDEX, KERNELS, GpuGraphs, archive_of, member
from sol_rt.errors import BundleError, ProviderError, UsageError
from sol_rt.export.gpu import ARCHIVE, add_gpu_graphs
from sol_rt.export.web import write_web_bundle
from sol_rt.generate.native.engine import Engine

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with graphs for GPUs. Not to be written to."""
    return write_bundle(tmp_path_factory.mktemp("gpu") / "tiny", policy=True, gpu=True)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bare", policy=True)


def _files(folder: Path) -> Files:
    name = archive_of(Bundle.open(folder).config.files)
    assert name is not None
    with zipfile.ZipFile(folder / name) as archive:
        return {each: archive.read(each) for each in archive.namelist()}


def test_a_default_export_has_the_graphs_for_native_operators(llama_bundle: Path) -> None:
    config, names = Bundle.open(llama_bundle).config, set(_files(llama_bundle))
    files = {variant.file for variant in config.variants.values()}
    assert names == {INDEX, *(member(KERNELS, run, file) for run in ("step", "batch") for file in files)}


def test_every_action_and_variant_has_a_graph_of_function_bodies(made: Path) -> None:
    config, names = Bundle.open(made).config, set(_files(made))
    assert config.policy is not None
    tags = {entry.action.tag for entry in config.actions} | {action.tag for action in config.policy.actions}
    for form in (FLOAT16, FLOAT32):
        expected = {member(form, "step", tag) for tag in tags} | {member(form, "batch", key) for key in config.variants}
        assert {name for name in names if name.startswith(form)} == expected


def test_graphs_are_added_in_place_once(bare: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["export", "-m", str(bare), "--target", "gpu"]) == 0
        assert capsys.readouterr().out == f"{bare}\n"
        assert _files(bare) == _files(made)
        (archive,) = bare.glob("gpu*.zip")
        assert archive.name in Bundle.open(bare).config.files
    assert list(bare.glob("policy*.onnx")) == [bare / "policy.onnx"]


def test_what_adding_graphs_does_not_change_is_refused(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in bare.iterdir())
    assert main(["export", "-m", str(bare), "--target", "gpu", "--kv", "int8", "-o", "other"]) == 2
    error = capsys.readouterr().err
    assert f"--output and --kv: {bare} is there already, and --target gpu changes none of that" in error
    assert sorted(path.name for path in bare.iterdir()) == before


def test_a_model_that_no_gpu_runs_gets_no_graphs(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "states", "lfm2")
    with pytest.raises(UsageError, match=r"^--target gpu: .* has layers with a short convolution, .*; use it on the"):
        add_gpu_graphs(folder)
    assert archive_of(Bundle.open(folder).config.files) is None


def test_a_copy_for_browsers_has_none(llama_bundle: Path, tmp_path: Path) -> None:
    assert archive_of(write_web_bundle(llama_bundle, tmp_path / "web").files) is None


@pytest.mark.parametrize(("form", "kernels"), [(KERNELS, False), (FLOAT16, True)])
def test_a_bundle_without_graphs_names_the_command_that_adds_them(bare: Path, form: str, kernels: bool) -> None:
    if kernels:  # those are there, the others are not
        _replace_archive(bare, {INDEX: b"{}", member(KERNELS, "step", "model.q8.onnx"): b""})
    with pytest.raises(ProviderError) as caught:
        GpuGraphs(Bundle.open(bare), form, "webgpu")
    assert str(caught.value) == (
        f"provider webgpu: {bare} has no graphs for this GPU; sol-rt export --target gpu -m {bare} adds what is "
        "missing; or use --provider cpu"
    )


def test_an_action_without_a_graph_is_named(made: Path) -> None:
    with pytest.raises(ProviderError, match=r"has no graph float16/step/k077-s100-q8\.onnx; sol-rt export --target"):
        GpuGraphs(Bundle.open(made), FLOAT16, "webgpu").read("step", "k077-s100-q8")


def test_auto_goes_on_to_the_cpu(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A provider that computes on the CPU stands in for a GPU's."""
    gpu = OnMainMemory("webgpu", providers.start_pool(None), gpu=providers.Gpu("a GPU"))
    monkeypatch.setattr(providers, "_has_device", lambda name: name == "webgpu")
    monkeypatch.setattr(providers, "_gpu", lambda *_: gpu)
    assert Engine(Bundle.open(bare), provider="auto").provider_name == "cpu"
    assert f"provider webgpu: {bare} has no graphs for this GPU; sol-rt export --target gpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda files: {**files, INDEX: b"{"}, "index.json"),
        (lambda files: {**files, INDEX: b'{"made.0": {}}'}, "index.json"),
        (lambda files: {**files, INDEX: _index(files, of=[])}, "no tensor"),
        (lambda files: {**files, INDEX: _index(files, dtype="none")}, "index.json"),
        (lambda files: {**files, INDEX: _index(files, shape=["none"])}, "index.json"),
        (lambda files: {**files, INDEX: _index(files, of=["none"])}, "that the bundle lacks"),
        (lambda files: {**files, INDEX: _index(files, recipe="recipes/none.onnx")}, "recipes/none.onnx"),
        (lambda files: {name: content for name, content in files.items() if name != INDEX}, "index.json"),
        (lambda files: files | dict.fromkeys(_recipes(files), b"\xff\xff"), "not an ONNX model"),
    ],
)
def test_a_damaged_archive_is_one_line(made: Path, tmp_path: Path, damage: Callable[[Files], Files], said: str) -> None:
    folder = shutil.copytree(made, tmp_path / "damaged")
    _replace_archive(folder, damage(_files(folder)))
    with pytest.raises(BundleError) as caught:
        GpuGraphs(Bundle.open(folder), FLOAT16, "webgpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_brings_weights_is_refused(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "weights")
    _replace_archive(
        folder, _files(folder) | {member(FLOAT16, "batch", "s100-q8"): (folder / "model.q8.onnx").read_bytes()}
    )
    with pytest.raises(BundleError, match=r"batch/s100-q8\.onnx: got a graph with weights, expected one that is given"):
        GpuGraphs(Bundle.open(folder), FLOAT16, "webgpu").read("batch", "s100-q8")


def test_an_archive_that_is_none_is_one_line(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "none")
    (folder / ARCHIVE).write_bytes(b"PK")
    seal(folder, Bundle.open(made).config)
    with pytest.raises(BundleError, match=r"gpu\.zip: got no zip archive, expected graphs for GPUs"):
        GpuGraphs(Bundle.open(folder), FLOAT16, "webgpu")


def test_the_runtime_runs_graphs_without_the_package_onnx(made: Path) -> None:
    """On the CPU in a GPU's place: the module cannot be imported, and a step runs."""
    program = (
        "import sys; sys.modules['onnx'] = None; sys.path.insert(0, 'runtime_tests'); "
        "import numpy as np; from helpers.main_memory import OnMainMemory; from sol_rt.engine import providers; "
        "from sol_rt.engine.gpu.gpu_engine import GpuEngine; from sol_rt.bundle.bundle import Bundle; "
        "bundle = Bundle.open(sys.argv[1]); "
        "provider = OnMainMemory('cuda', providers.start_pool(None), gpu=providers.Gpu('a GPU')); "
        "engine = GpuEngine(bundle, provider)\n"
        "for token in range(70): out = engine.forward([token], bundle.config.dense)\n"
        "print(np.isfinite(out.logits).all(), engine.cache.capacity)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(made)], capture_output=True, text=True, check=False)
    assert done.stdout == "True 128\n", done.stderr


def _replace_archive(folder: Path, files: Files) -> None:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    config = Bundle.open(folder).config
    (folder / ARCHIVE).write_bytes(output.getvalue())
    seal(folder, config)


def _index(files: Files, **changed: object) -> bytes:
    """The index with one value made otherwise."""
    index = json.loads(files[INDEX])
    name = next(name for name, value in index.items() if value["recipe"] != "repacked")
    index[name] |= changed
    return json.dumps(index).encode()


def _recipes(files: Files) -> list[str]:
    return [name for name in files if name.startswith("recipes/")]
