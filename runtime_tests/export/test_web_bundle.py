"""Bundles for browsers: what stays of a bundle, and that the graphs for wasm and WebGPU compute what the others do.

Tolerances are relative to the largest logit: 3e-3 at 8 bits and 0.08 below, as test_bodies.py has them for whole
graphs, for a browser's bodies round neither activations (wasm) nor keys and values (both).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers.places import TINY
from helpers.random_decoder import hf_config
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.cli import main
from sol_rt.errors import BundleError, UsageError
from sol_rt.export import web
from sol_rt.export.graphs.graph import Target
from sol_rt.export.web import write_web_bundle
from sol_rt.generate.native.engine import Engine

import onnxruntime as ort

GOLDEN = TINY
ALL = {"channel_density": (1.0, 0.6), "kv_density": (1.0, 0.3)}
PROMPT = [9, 300, 47, 61, 350, 12, 201, 33, 77]
SHIFT = {4: 0.0, 6: 6.5, 8: 8.0}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("web") / "bundle"
    write_web_bundle(GOLDEN, folder, **ALL)
    return Bundle.open(folder)


def stored(bundle: Bundle, name: str) -> np.ndarray:
    entry = bundle.config.tensors[name]
    data = (bundle.path / bundle.config.weights_file).read_bytes()[entry.offset : entry.offset + entry.bytes]
    if entry.dtype != "uint4":
        return np.frombuffer(data, entry.dtype).reshape(entry.shape)
    pairs = np.frombuffer(data, np.uint8)
    return np.stack([pairs & 15, pairs >> 4], 1).reshape(entry.shape)


def codes(bundle: Bundle, matrix: str) -> np.ndarray:
    """The codes of the base plane, [K, N], by the format of docs/reference/bundle-details.md section 2."""
    base = stored(bundle, f"{matrix}.base")
    if base.ndim == 2:
        return base
    blocks, outputs, _ = base.shape
    return np.stack([base & 15, base >> 4], 3).reshape(blocks, outputs, 32).transpose(0, 2, 1).reshape(-1, outputs)


def made(bundle: Bundle, location: str) -> np.ndarray:
    """Matrix that a host makes for a location in a graph."""
    matrix, level, _ = f"{location}.".rsplit(".", 2) if location.endswith(".packed") else location.rsplit(".", 2)
    if location.endswith(".packed"):
        q = codes(bundle, location.removesuffix(".packed"))
        blocks = q.reshape(-1, 32, q.shape[1]).transpose(2, 0, 1)
        return np.ascontiguousarray(blocks[..., ::2] | blocks[..., 1::2] << 4)
    code = 16.0 * codes(bundle, matrix)
    for index, step in enumerate((4.0, 1.0)[: (int(level) - 4) // 2]):
        plane = stored(bundle, f"{matrix}.plane{index + 1}")
        parts = np.stack([plane >> 2 * i & 3 for i in range(4)], 3)
        code += step * parts.reshape(*plane.shape[:2], 32).transpose(0, 2, 1).reshape(code.shape)
    zero, scale = (np.repeat(stored(bundle, f"{matrix}.{part}"), 32, axis=0) for part in ("zero", "scale"))
    return ((code - SHIFT[int(level)] - zero) * scale.astype(np.float64) / 16).astype(np.float32)


def session(bundle: Bundle, file: str, target: Target) -> ort.InferenceSession:
    """The session of a graph's form for a browser, with everything in it that the browser's host gives."""
    model = onnx.load(bundle.path / web.web_file(file, target), load_external_data=False)
    assert not model.functions
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = tensor.external_data[0].value
        if location != bundle.config.weights_file:
            tensor.CopyFrom(numpy_helper.from_array(made(bundle, location), tensor.name))
            continue
        entry = bundle.config.tensors[tensor.name]
        data = (bundle.path / location).read_bytes()[entry.offset : entry.offset + entry.bytes]
        tensor.ClearField("external_data")
        tensor.data_location, tensor.raw_data = onnx.TensorProto.DEFAULT, data
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def logits(bundle: Bundle, action: Action, target: Target) -> np.ndarray:
    """Logits of a step under an action after PROMPT, which runs dense, by the graphs of a target."""
    config = bundle.config
    model, kv = config.model, config.kv
    cache = {
        f"past_key_values.{layer}.{part}": np.zeros((1, model.num_kv_heads, 64, model.head_dim), np.float32)
        for layer in range(model.num_layers)
        for part in ("key", "value")
    }
    for layer in range(model.num_layers):
        cache[f"past_key_codes.{layer}"] = np.zeros((1, model.num_kv_heads, 4, model.head_dim // 2), np.uint8)
        cache[f"past_key_range.{layer}"] = np.zeros((1, model.num_kv_heads, 4, 2), np.float32)
    length, result = 0, np.zeros(0)
    for ids, one in ((PROMPT[:-1], config.dense), (PROMPT[-1:], action)):
        variant = config.variants[one.variant]
        counts: dict[str, np.ndarray] = {
            name: np.array(getattr(variant, name), np.int64) % most for name, most in model.channels.items()
        }
        pages = np.full(model.num_layers, one.pages(length, kv.page_size), np.int64)
        pages[list(kv.dense_layers)] = 1 << 30
        none = np.zeros(0, np.int64)
        feeds = {
            **cache,
            "input_ids": np.array([ids], np.int64),
            "past_length": np.array([length], np.int64),
            "total_length": np.array([length + len(ids)], np.int32),
            "num_logits": np.ones(1, np.int64),
            "kv_pages": pages if one.kv_density < 1 else none,
            **(counts if any(row.any() for row in counts.values()) else dict.fromkeys(counts, none)),
        }
        opened = session(bundle, variant.file, target)
        known = {item.name for item in opened.get_inputs()}
        outputs = [item.name for item in opened.get_outputs()]
        values = dict(zip(outputs, opened.run(outputs, {k: v for k, v in feeds.items() if k in known}), strict=True))
        for name in cache:
            if name.startswith("past_key_values."):
                cache[name] = values[name.replace("past_key_values", "present")]
        result, length = values["logits"][0], length + len(ids)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("tag", ["k100-s100-q8", "k100-s100-qmix", "k100-s100-q6", "k100-s100-q4", "k030-s100-q8"])
def test_graphs_for_browsers_compute_what_function_bodies_do(bundle: Bundle, target: Target, tag: str) -> None:
    action = Action.parse(tag)
    engine = Engine(bundle, provider="cpu", native_ops=False)
    engine.forward(PROMPT[:-1], bundle.config.dense)
    expected = engine.forward(PROMPT[-1:], action).logits[0]
    got = logits(bundle, action, target)
    bound = 3e-3 if action.bits == 8 else 0.08
    assert np.abs(got - expected).max() <= bound * np.abs(expected).max()


def test_by_default_only_bits_are_left_to_choose(tmp_path: Path) -> None:
    config = write_web_bundle(GOLDEN, tmp_path / "web")
    source = Bundle.open(GOLDEN).config
    assert [entry.action.tag for entry in config.actions] == [
        "k100-s100-q8", "k100-s100-q6", "k100-s100-qmix", "k100-s100-q4",
    ]  # fmt: skip
    assert config.policy is None  # it knows actions that are gone
    assert config.dense == source.dense
    assert [entry.losses for entry in config.actions] == [
        entry.losses for entry in source.actions if entry.action in {kept.action for kept in config.actions}
    ]
    assert "policy.onnx" not in config.files
    Bundle.open(tmp_path / "web")


def test_three_bits_are_left_out(tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "source", bits=(8, 4, 3))
    (source / "config.json").write_text(json.dumps(hf_config("llama")), encoding="utf-8")
    seal(source, Bundle.open(source).config)
    config = write_web_bundle(source, tmp_path / "web")
    assert {variant.bits for variant in config.variants.values()} == {8, 4}
    assert not [name for name in config.tensors if name == "codebook" or name.endswith((".low", ".high"))]


def test_only_tensors_that_are_read_stay(tmp_path: Path) -> None:
    config = write_web_bundle(GOLDEN, tmp_path / "web", bits=(8, 4))
    assert set(config.tensors) == set(Bundle.open(GOLDEN).config.tensors)  # 8 bits read all planes
    assert {variant.file for variant in config.variants.values()} == {"model.q8.onnx", "model.q4.onnx"}
    assert "model.q6.wasm.onnx" not in config.files


def test_a_bundle_for_browsers_may_become_a_smaller_one(tmp_path: Path) -> None:
    write_web_bundle(GOLDEN, tmp_path / "web")
    config = write_web_bundle(tmp_path / "web", tmp_path / "less", bits=(8,))
    graphs = {name for name in config.files if name.endswith(".onnx")}
    assert graphs == {"model.q8.onnx", "model.q8.wasm.onnx", "model.q8.webgpu.onnx"}


def test_the_policy_stays_with_its_actions(bundle: Bundle) -> None:
    assert bundle.config.policy is not None
    assert {action.tag for action in bundle.config.policy.actions} <= {e.action.tag for e in bundle.config.actions}


def test_damaged_weights_get_no_new_hash(tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(GOLDEN, tmp_path / "damaged"))
    weights = bytearray((damaged / "weights.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (damaged / "weights.bin").write_bytes(weights)
    with pytest.raises(BundleError, match=r"weights\.bin: .*sha256"):
        write_web_bundle(damaged, tmp_path / "web")
    assert not (tmp_path / "web").exists()


def test_bundles_that_browsers_cannot_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="leave out k100-s100-q8, the dense action"):
        write_web_bundle(GOLDEN, tmp_path / "web", bits=(4,))
    with pytest.raises(BundleError, match="no such folder"):
        write_web_bundle(tmp_path / "nothing", tmp_path / "web")
    monkeypatch.setattr(web, "LARGEST_FILE", 1000)
    with pytest.raises(BundleError, match="GB of weights, expected at most"):
        write_web_bundle(GOLDEN, tmp_path / "web")
    assert not (tmp_path / "web").exists()


def test_the_command_copies_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "web"
    command = ["export", "--target", "web", "-m", str(GOLDEN), "-o", str(output), "--bits", "8,4"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(output)
    assert "for browsers: 2 graphs, 2 actions, no policy" in told.err
    assert [entry.action.tag for entry in Bundle.open(output).config.actions] == ["k100-s100-q8", "k100-s100-q4"]
    assert main(command) == 2
    assert "already exists; pass --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    capsys.readouterr()
    assert main([*command, "--force", "-c", "64", "--kv", "int8"]) == 2
    assert "--ctx-size and --kv: " in capsys.readouterr().err
    # of a checkpoint, too, it is said before the export
    checkpoint = tmp_path / "small"
    checkpoint.mkdir()
    assert main([*command[:4], str(checkpoint), *command[5:]]) == 2
    assert "web already exists; pass --force" in capsys.readouterr().err
    assert main(["export", "--target", "phone", "-m", str(GOLDEN)]) == 2
    assert "--target phone: expected native, web or gpu" in capsys.readouterr().err
