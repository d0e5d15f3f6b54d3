"""Opening, finding and verifying bundles: what is wrong is said in one line, with the file and the next step."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest

from helpers.places import TINY
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME, SolConfig
from sol_rt.bundle.config_reader import read_config
from sol_rt.bundle.graph_file import external_tensors
from sol_rt.bundle.verify import verify_bundle
from sol_rt.errors import BundleError, NumericError, UsageError
from sol_rt.generate.native.engine import Engine
from sol_rt.store import home

GRAPH = "model.q8.onnx"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", channel_densities=(1.0,), bits=(8, 4), policy=True)


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def _config(bundle: Path) -> SolConfig:
    return read_config(bundle / CONFIG_NAME)


def _fails(bundle: Path, *parts: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    _one_line(caught.value, *parts)


def _one_line(error: BaseException, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


def test_a_bundle_opens(bundle: Path) -> None:
    opened = Bundle.open(str(bundle))
    assert opened.file(GRAPH) == bundle / GRAPH
    assert len(opened.identity) == 64
    with pytest.raises(BundleError, match=r"other\.txt"):
        opened.file("other.txt")


def test_the_tokenizer_is_the_one_whose_hash_was_compared(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone replaces the file right after the comparison."""
    opened = Bundle.open(bundle)
    expected = opened.tokenizer().encode("w1 w2")
    path = bundle / "tokenizer.json"
    original = path.read_bytes()
    swapped = original.replace(b'"w1"', b'"w0x"').replace(b'"w2"', b'"w1"').replace(b'"w0x"', b'"w2"')
    assert swapped != original

    class Replacing:
        """A hash after whose end the file is another one."""

        def __init__(self, content: bytes = b"") -> None:
            self._hash = sha256(content)
            self.update = self._hash.update

        def hexdigest(self) -> str:
            path.write_bytes(swapped)
            return self._hash.hexdigest()

    monkeypatch.setattr("sol_rt.bundle.bundle.hashlib.sha256", Replacing)
    try:
        assert opened.tokenizer().encode("w1 w2") == expected
        with pytest.raises(BundleError, match="replaced: load it again"):
            opened.read("tokenizer.json")
    finally:
        path.write_bytes(original)


def test_folders_that_are_no_bundle(tmp_path: Path) -> None:
    _fails(tmp_path / "none", "no such folder")
    _fails(tmp_path, CONFIG_NAME, "no such file", "sol-rt export")
    (tmp_path / "file").write_text("")
    _fails(tmp_path / "file", "got a file", "a bundle folder")


@pytest.mark.parametrize("name", [GRAPH, "weights.bin", "tokenizer.json"])
def test_missing_truncated_and_oversized_files(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1])
    _fails(bundle, name, f"{len(content) - 1} bytes", f"expected {len(content)} bytes")
    (bundle / name).write_bytes(content + b" ")
    _fails(bundle, name, f"{len(content) + 1} bytes")
    (bundle / name).unlink()
    _fails(bundle, name, "no such file")
    (bundle / name).mkdir()
    _fails(bundle, name, "a folder")


def test_a_flipped_bit_in_a_small_file(bundle: Path) -> None:
    content = bytearray((bundle / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / GRAPH).write_bytes(content)
    _fails(bundle, GRAPH, "sha256", "changed or damaged")


@pytest.mark.parametrize("name", [CONFIG_NAME, "generation_config.json"])
def test_settings_too_large_to_be_parsed(tmp_path: Path, name: str) -> None:
    """60 MB of brackets once took 1.6 GB and a minute and a half."""
    bundle = shutil.copytree(TINY, tmp_path / "tiny")
    opened = Bundle.open(bundle, verify=False)
    (bundle / name).write_bytes(b"[" + b"[]," * (6 << 20) + b"[]]")
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle) if name == CONFIG_NAME else opened.read(name)
    _one_line(caught.value, name, "got more than 16 MB")


def test_weights_behind_a_link(bundle: Path, tmp_path: Path) -> None:
    (bundle / "weights.bin").rename(tmp_path / "blob")
    (bundle / "weights.bin").symlink_to(tmp_path / "blob")
    _fails(bundle, "weights.bin", "symbolic link")


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 91), ("hidden_size", 96), ("head_dim", 32), ("max_context", 512), ("num_heads", 8)],
)
def test_dims_that_are_not_the_weights(bundle: Path, key: str, value: int) -> None:
    config = _config(bundle)
    seal(bundle, replace(config, model=replace(config.model, **{key: value})))
    _fails(bundle, "shape", f"from model.{'num_heads' if key == 'head_dim' else key}")


def test_a_graph_of_a_bundle_with_other_weights(bundle: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", "qwen2", channel_densities=(1.0,), bits=(8, 4))
    shutil.copy(other / GRAPH, bundle / GRAPH)
    seal(bundle, _config(bundle))
    with pytest.raises(BundleError) as caught:
        Engine(Bundle.open(bundle), provider="cpu").forward([1], Action(1.0, 1.0, 8))
    _one_line(caught.value, GRAPH, "another bundle")


def test_a_graph_of_a_bundle_with_another_cache(bundle: Path) -> None:
    config = _config(bundle)
    seal(bundle, replace(config, kv=replace(config.kv, dtype="int8")))
    with pytest.raises(BundleError) as caught:
        Engine(Bundle.open(bundle), provider="cpu").forward([1], Action(1.0, 1.0, 8))
    _one_line(caught.value, GRAPH, ": past_", "expected tensor(", "another bundle")


def test_a_graph_that_is_no_graph(bundle: Path) -> None:
    for content in (b"", b"hello", bytes(range(256))):
        (bundle / GRAPH).write_bytes(content)
        seal(bundle, _config(bundle))
        with pytest.raises(BundleError) as caught:
            Engine(Bundle.open(bundle), provider="cpu").forward([1], Action(1.0, 1.0, 8))
        _one_line(caught.value, GRAPH)


def test_a_graph_of_unknown_operators(bundle: Path) -> None:
    content = (bundle / GRAPH).read_bytes()
    (bundle / GRAPH).write_bytes(content.replace(b"RMSNormalization", b"RMXNormalization"))
    seal(bundle, _config(bundle))
    engine = Engine(Bundle.open(bundle), provider="cpu", native_ops=False)
    with pytest.raises(BundleError) as caught:
        engine.forward([1], Action(1.0, 1.0, 8))
    _one_line(caught.value, GRAPH, "ONNX Runtime refuses")


def test_graph_weights_are_listed_as_onnx_lists_them(bundle: Path) -> None:
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    expected = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            expected[tensor.name] = (tuple(tensor.dims), int(entries["offset"]), int(entries["length"]))
    found = {tensor.name: (tensor.shape, tensor.offset, tensor.length) for tensor in external_tensors(bundle / GRAPH)}
    assert found == expected
    assert found


class TestSplitThatEndsTheProcess:
    """ONNX Runtime aborts while it infers the shapes of a Split with another `num_outputs` than it has outputs."""

    NUMBER = b"\x0a\x0bnum_outputs\x18\x01"
    EMPTY = b"\x3a\x03\x12\x01g"  # a model with an empty graph

    def _field(self, number: int, content: bytes) -> bytes:
        """A length-delimited field of a protobuf message."""
        size = len(content)
        return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content

    def _graph(self, attribute: bytes = NUMBER) -> bytes:
        outputs = self._field(2, b"a") + self._field(2, b"b")
        return self._field(1, outputs + self._field(4, b"Split") + self._field(5, attribute))

    def _refused(self, path: Path, model: bytes) -> None:
        path.write_bytes(model)
        with pytest.raises(BundleError, match="bytes that are not an ONNX model"):
            external_tensors(path)

    @pytest.mark.parametrize("field", [6, 11])
    @pytest.mark.parametrize("depth", [0, 1, 5, 200])
    def test_in_subgraphs(self, tmp_path: Path, field: int, depth: int) -> None:
        graph = self._graph()
        for _ in range(depth):
            graph = self._field(1, self._field(5, self._field(field, b"") + self._field(field, graph)))
        assert depth > 30 or "num_outputs" in str(onnx.GraphProto.FromString(graph))
        self._refused(tmp_path / "a.onnx", self._field(7, graph))
        function = b"\xca\x01" + self._field(7, graph.replace(graph[:1], b"\x3a", 1))[1:]  # fields 25, and 7 for nodes
        self._refused(tmp_path / "a.onnx", self.EMPTY + function)

    def test_in_fields_that_only_protobuf_reads(self, tmp_path: Path) -> None:
        path = tmp_path / "a.onnx"
        second = self.EMPTY + self._field(7, self._graph())
        # tag of field 7 with a bit beyond the 32 that protobuf keeps
        far = self.EMPTY + b"\xba\x80\x80\x80\x10" + self._field(7, self._graph())[1:]
        # the right number, but in a field of 4 bytes, which is none of an attribute
        other = self._field(7, self._graph(self.NUMBER + b"\x1d\x02\0\0\0"))
        # a number in the field of the name
        name = self._field(7, self._graph(self.NUMBER + b"\x08\0"))
        for model in (second, other, name):
            [attribute] = onnx.ModelProto.FromString(model).graph.node[0].attribute
            assert (attribute.name, attribute.i) == ("num_outputs", 1)
        for model in (second, far, other, name):
            self._refused(path, model)
        path.write_bytes(self.EMPTY)
        assert external_tensors(path) == []


def test_verify_passes_and_reports_progress(bundle: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_bundle(bundle, lambda done, total: seen.append((done, total)))
    size = (bundle / "weights.bin").stat().st_size
    assert seen[-1] == (size, size)
    assert report.files == len(_config(bundle).files)
    assert report.tensors == len(_config(bundle).tensors)


def test_verify_finds_a_flipped_bit_in_the_weights(bundle: Path) -> None:
    content = bytearray((bundle / "weights.bin").read_bytes())
    content[5000] ^= 1
    (bundle / "weights.bin").write_bytes(content)
    Bundle.open(bundle)
    with pytest.raises(BundleError) as caught:
        verify_bundle(bundle)
    _one_line(caught.value, "weights.bin", "sha256")


def test_verify_finds_a_graph_of_another_bundle(bundle: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", "qwen2", channel_densities=(1.0,), bits=(8, 4))
    shutil.copy(other / GRAPH, bundle / GRAPH)
    seal(bundle, _config(bundle))
    with pytest.raises(BundleError) as caught:
        verify_bundle(bundle)
    _one_line(caught.value, GRAPH, "another bundle")


def test_verify_finds_a_tokenizer_of_another_model(bundle: Path) -> None:
    path = bundle / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["vocab"] |= {f"extra{index}": 90 + index for index in range(10)}
    path.write_text(json.dumps(document), encoding="utf-8")
    seal(bundle, _config(bundle))
    with pytest.raises(BundleError) as caught:
        verify_bundle(bundle)
    _one_line(caught.value, "tokenizer.json", "100 tokens")


def _prompt_and_step(engine: Engine) -> None:
    for tokens in ([1, 2, 3], [4]):
        engine.forward(tokens, engine.bundle.config.dense)


@pytest.mark.parametrize("native", [True, False])
def test_non_finite_weights(bundle: Path, native: bool) -> None:
    config = _config(bundle)
    entry = config.tensors["layers.0.qkv.scale"]
    content = np.fromfile(bundle / "weights.bin", np.uint8)
    content[entry.offset : entry.offset + entry.bytes].view(np.float16)[3] = np.nan
    content.tofile(bundle / "weights.bin")
    seal(bundle, config)
    with pytest.raises(BundleError) as caught:
        verify_bundle(bundle)
    _one_line(caught.value, "layers.0.qkv.scale", "nan at element 3")
    engine = Engine(Bundle.open(bundle), provider="cpu", native_ops=native)
    with pytest.raises(NumericError) as numeric:
        _prompt_and_step(engine)
    _one_line(numeric.value, "s100-q8", "sol-rt verify")
    assert engine.length in (0, 3)


class TestHome:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("SOL_RT_MODEL", raising=False)
        monkeypatch.chdir(tmp_path)

    def _make(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / CONFIG_NAME).write_text(json.dumps({}))
        return folder

    def test_a_folder_comes_before_a_name(self, tmp_path: Path) -> None:
        named = self._make(home.bundles_dir() / "tiny")
        assert home.find_bundle("tiny") == named
        self._make(tmp_path / "tiny")
        assert home.find_bundle("tiny").resolve() == tmp_path / "tiny"
        assert home.bundle_names() == ["tiny"]

    def test_without_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UsageError, match="sol-rt run smollm2-135m"):
            home.find_bundle(None)
        last = self._make(tmp_path / "last")
        home.remember_last_export(last)
        assert home.find_bundle(None) == last
        other = self._make(tmp_path / "other")
        monkeypatch.setenv("SOL_RT_MODEL", str(other))
        assert home.find_bundle(None) == other
        assert home.find_bundle("last").resolve() == last

    def test_a_last_export_that_is_gone(self, tmp_path: Path) -> None:
        last = self._make(tmp_path / "last")
        home.remember_last_export(last)
        shutil.rmtree(last)
        with pytest.raises(UsageError, match="is gone"):
            home.find_bundle(None)

    def test_an_unknown_name_names_the_nearest(self) -> None:
        self._make(home.bundles_dir() / "smollm2-135m")
        with pytest.raises(UsageError, match="did you mean 'smollm2-135m'"):
            home.find_bundle("smolm2-135m")
        with pytest.raises(UsageError, match="neither a bundle folder"):
            home.find_bundle(os.path.join("no", "such"))

    def test_names_do_not_leave_the_home(self, tmp_path: Path) -> None:
        self._make(tmp_path / "home" / "outside")
        with pytest.raises(UsageError):
            home.find_bundle("../outside")
