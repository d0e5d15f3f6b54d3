"""Bundles of older formats brought to the present one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import tiny_bundle
from helpers.greedy import greedy
from helpers.random_decoder import THREE_BIT_LAYERS, hf_config, screenable
from sol_rt.budget.cost.bytes_model import Line
from sol_rt.budget.cost.calibration_table import CalibrationTable, calibration_path
from sol_rt.bundle import selection
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, THREE, Screen
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME, SolConfig
from sol_rt.cli import main
from sol_rt.engine.engine import Engine
from sol_rt.errors import BundleError
from sol_rt.export import migrate as module
from sol_rt.export.migrate import migrate
from sol_rt.export.quantize.codebook import unpack_codes
from sol_rt.export.sources.chat_segments import FILE as CHAT_SEGMENTS
from sol_rt.store.home import remember_source, remembered_source

_OLD_KEYS = {
    "active_up": "keep_in",
    "active_down": "keep_mid",
    "active_qkv": "keep_qkv",
    "active_o": "keep_o",
    "lm_head_bits": "head_bits",
    "layer_bits": "layer_widths",
}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))


def old(document: dict[str, Any], version: int) -> dict[str, Any]:
    """A config as version 3 or 4 had it."""
    document = json.loads(json.dumps(document).replace("qmix", "q5")) | {"format_version": version}
    document["refresh"] = {"default": False, "episode": 16}
    for entry in document["variants"].values():
        for new, before in _OLD_KEYS.items():
            if new in entry:
                entry[before] = entry.pop(new)
        entry["prune"] = round(100 * entry.pop("channel_density"))
        entry["bits"] = 5 if entry["bits"] == "mixed" else entry["bits"]
    return document


def old_bundle(folder: Path, version: int, family: str = "llama") -> tuple[SolConfig, dict[str, bytes]]:
    """Writes a bundle of version 3 or 4 whose graphs are damaged; returns config and graphs of the present one."""
    tiny_bundle.write_bundle(folder, family, bits=(8, MIXED, 4), lm_head_bits={4: 6}, policy=True)
    (folder / "config.json").write_text(json.dumps(hf_config(family)), encoding="utf-8")
    (folder / "README.md").write_text("| `k100-s100-qmix` |", encoding="utf-8")
    tiny_bundle.seal(folder, Bundle.open(folder).config)
    config = Bundle.open(folder).config
    graphs = {variant.file: (folder / variant.file).read_bytes() for variant in config.variants.values()}
    for name in graphs:
        (folder / name).unlink()
        (folder / name.replace("qmix", "q5")).write_bytes(b"graph of another version")
    (folder / "README.md").write_text("| `k100-s100-q5` |", encoding="utf-8")
    document = old(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")), version)
    (folder / CONFIG_NAME).write_text(json.dumps(document), encoding="utf-8")
    return config, graphs


@pytest.mark.parametrize(("family", "version"), [("llama", 3), ("phi", 4)])
def test_an_old_bundle_becomes_the_present_one(family: str, version: int, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    config, graphs = old_bundle(folder, version, family)
    with pytest.raises(BundleError, match=rf"got {version}, expected 5 or 7; run `sol-rt migrate '{folder}'`"):
        Bundle.open(folder)
    done = migrate(folder)
    assert (done.version, sorted(done.graphs)) == (version, sorted(graphs))
    made = Bundle.open(folder).config
    config.files[CHAT_SEGMENTS] = made.files[CHAT_SEGMENTS]  # which the old one lacks
    assert made == config  # compares sizes and hashes, too
    assert {name: (folder / name).read_bytes() for name in graphs} == graphs
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG_NAME, *config.files])
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def planes_of_version_6(codes: np.ndarray) -> dict[str, np.ndarray]:
    """`low` and `high` of codes [N, K], written output by output."""
    rows, channels = codes.shape
    low, high = np.zeros((channels, rows // 4), np.uint8), np.zeros((channels, rows // 8), np.uint8)
    for output in range(rows):
        tile, place = divmod(output, 32)
        low[:, 8 * tile + place % 8] += (codes[output] % 4) << 2 * (place // 8)
        high[:, output // 8] += (codes[output] // 4) << output % 8
    return {"low": low, "high": high}


def old_three_bits(folder: Path, version: int) -> tuple[SolConfig, bytes]:
    """Writes a bundle with codes of 3 bits as version 6 had them; returns config and weights of the present one.

    Version 5 has them in the matrix that screens the LM head alone.
    """
    levels = {"bits": (8, 4, THREE), "three_bit_layers": THREE_BIT_LAYERS} if version == 6 else {"bits": (8, 4)}
    heads = {"lm_head_bits": {8: 8, 4: 8}, "screens": {4: Screen(30, 0.5, THREE)}}
    tiny_bundle.write_bundle(folder, "phi", decoder=screenable("phi"), **levels, **heads)
    (folder / "config.json").write_text(json.dumps(hf_config("phi") | {"vocab_size": 96}), encoding="utf-8")
    tiny_bundle.seal(folder, Bundle.open(folder).config)
    migrate(folder)  # adds the chat segments
    config, path = Bundle.open(folder).config, folder / "weights.bin"
    weights = path.read_bytes()
    changed = bytearray(weights)
    for matrix in config.coded_matrices:
        entries = {part: config.tensors[f"{matrix}.{part}"] for part in ("low", "high")}
        planes = (np.frombuffer(weights, np.uint8, e.bytes, e.offset).reshape(e.shape) for e in entries.values())
        for part, plane in planes_of_version_6(unpack_codes(*planes)).items():
            changed[entries[part].offset : entries[part].offset + entries[part].bytes] = plane.tobytes()
    assert changed != weights
    path.write_bytes(changed)
    tiny_bundle.seal(folder, config)
    document = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")) | {"format_version": version}
    (folder / CONFIG_NAME).write_text(json.dumps(document), encoding="utf-8")
    return config, weights


@pytest.mark.parametrize("version", [5, 6])
def test_codes_of_three_bits_are_brought_to_the_present_layout(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in turn, so that memory is bounded; whoever has the old weights mapped keeps them."""
    folder = tmp_path / "bundle"
    config, weights = old_three_bits(folder, version)
    layers = {name for name in config.coded_matrices if name.startswith("layers.")}
    assert (len(config.coded_matrices) - len(layers), bool(layers)) == (1, version == 6)
    with pytest.raises(BundleError, match=rf"format_version: got {version}.*; run `sol-rt migrate '{folder}'`"):
        Bundle.open(folder)
    mapped = np.memmap(folder / "weights.bin", np.uint8, "r")
    before = mapped.tobytes()
    monkeypatch.setattr(module, "_CODES_AT_ONCE", 5000)
    assert migrate(folder).version == version
    assert Bundle.open(folder).config == config
    assert json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["format_version"] == 7
    assert (folder / "weights.bin").read_bytes() == weights
    assert mapped.tobytes() == before != weights
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_old_codes_in_damaged_weights_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file's hash would say that they are whole."""
    folder = tmp_path / "bundle"
    config, _ = old_three_bits(folder, 6)
    path = folder / "weights.bin"
    whole = path.read_bytes()

    def refused(said: str) -> None:
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(BundleError, match=said):
            migrate(folder)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(r"weights.bin: sha256: got .*; the file was changed or damaged: pull or export the bundle again$")
    path.unlink()
    refused("weights.bin: got no such file")
    path.write_bytes(whole)
    raw = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    high = f"{config.coded_matrices[0]}.high"
    raw["weights"]["tensors"][high] |= {"shape": [1], "bytes": 1}
    (folder / CONFIG_NAME).write_text(json.dumps(raw), encoding="utf-8")
    refused(rf"tensors\.{high}: got uint8 \[1\], expected uint8")


def test_a_migrated_bundle_runs(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    config, _ = old_bundle(folder, 4)
    migrate(folder)
    engine = Engine(Bundle.open(folder), provider="cpu", native_ops=False)
    for action in (config.dense, Action(0.3, 0.5, MIXED)):
        assert len(greedy(engine, [3, 4, 5], action, 4).tokens) == 4


def test_a_selection_by_times_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    old_bundle(folder, 4)
    (folder / selection.SELECTION).write_text('{"format": "sol_rt.selection", "format_version": 1}', encoding="utf-8")
    path = folder / CONFIG_NAME
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["files"][selection.SELECTION] = {"bytes": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(raw), encoding="utf-8")
    migrate(folder)
    assert not (folder / selection.SELECTION).exists()
    assert selection.Selection.of(Bundle.open(folder)) is None


def test_its_calibration_is_removed_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bundle"
    old_bundle(folder, 4)
    lines = {"s100-q8": {1.0: Line(1.0, 0.0, 0.0)}}
    from sol_rt.bundle.bundle import sha256

    own = calibration_path(Bundle(folder, Bundle.open(other_bundle(tmp_path)).config, ""), "cpu", 1, True)
    CalibrationTable(sha256(folder / CONFIG_NAME), "device", "now", 0.0, lines).save(own)
    other = own.with_name("other-cpu-0-1.json")
    CalibrationTable("of another bundle", "device", "now", 0.0, lines).save(other)
    assert main(["migrate", str(folder)]) == 0
    output = capsys.readouterr()
    assert output.out == f"{folder}\n"
    assert "format 4 became 5" in output.err
    assert "run sol-rt calibrate again" in output.err
    assert (own.exists(), other.exists()) == (False, True)


def test_a_migrated_bundle_remembers_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "bundles" / "small"
    folder.parent.mkdir(parents=True)
    old_bundle(folder, 4)
    remember_source(folder, "someone/small")
    assert main(["migrate", str(folder)]) == 0
    assert remembered_source(folder) == "someone/small"


def other_bundle(folder: Path) -> Path:
    return tiny_bundle.write_bundle(folder / "other", channel_densities=(1.0,), bits=(4,))


def test_an_interruption_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundle"
    old_bundle(folder, 4)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sol_rt.export.migrate.Bundle.open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            migrate(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_weights_of_an_older_format_are_refused(tmp_path: Path) -> None:
    folder = tiny_bundle.write_bundle(tmp_path / "bundle", channel_densities=(1.0,), bits=(4,))
    config = folder / CONFIG_NAME
    document = json.loads(config.read_text(encoding="utf-8")) | {"format_version": 2}
    config.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match=r"format_version: got 2, expected 3 to 7; export the bundle again"):
        migrate(folder)
    assert json.loads(config.read_text(encoding="utf-8")) == document


@pytest.mark.parametrize(
    ("missing", "content", "said"),
    [
        ("sol_config.json", "[]", "sol_config.json: got no JSON object"),
        ("config.json", None, "config.json: got no such file"),
        ("config.json", "[1]", "config.json: got no JSON object"),
        ("config.json", "{}", "architecture"),
        ("tokenizer.json", None, "tokenizer.json: got no such file"),
    ],
)
def test_a_bundle_that_cannot_be_migrated_is_one_line_and_stays(
    missing: str, content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    old_bundle(folder, 4)
    (folder / missing).unlink()
    if content is not None:
        (folder / missing).write_text(content, encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(["migrate", str(folder)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
