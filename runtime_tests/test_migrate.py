"""Graphs written anew from a bundle's config and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import tiny_bundle
from helpers.random_decoder import hf_config
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.errors import BundleError
from sol_rt.export.migrate import main, regraph


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_bundle_of_version_3_gets_the_graphs_of_today(family: str, tmp_path: Path) -> None:
    folder = tiny_bundle.write_bundle(tmp_path / "bundle", family, bits=(8, 4), lm_head_bits={4: 6})
    (folder / "config.json").write_text(json.dumps(hf_config(family)), encoding="utf-8")
    tiny_bundle.seal(folder, Bundle.open(folder).config)
    expected = {name: (folder / name).read_bytes() for name in ("model.q8.onnx", "model.q4.onnx")}
    for name in expected:
        (folder / name).write_bytes(b"graph of another version")
    config = folder / CONFIG_NAME
    document = json.loads(config.read_text(encoding="utf-8")) | {"format_version": 3}
    config.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"got 3, expected 4; python -m sol_rt.export.migrate '{folder}'"):
        Bundle.open(folder)
    assert sorted(regraph(folder)) == sorted(expected)
    Bundle.open(folder)  # compares sizes and hashes
    assert {name: (folder / name).read_bytes() for name in expected} == expected


def test_weights_of_an_older_format_are_refused(tmp_path: Path) -> None:
    folder = tiny_bundle.write_bundle(tmp_path / "bundle", prunes=(100,), bits=(4,))
    config = folder / CONFIG_NAME
    document = json.loads(config.read_text(encoding="utf-8")) | {"format_version": 2}
    config.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match=r"format_version: got 2, expected 3 to 4; export the bundle again"):
        regraph(folder)
    assert json.loads(config.read_text(encoding="utf-8")) == document


@pytest.mark.parametrize(
    ("missing", "content", "said"),
    [
        ("sol_config.json", None, "sol_config.json: got no such file"),
        ("config.json", None, "config.json: got no such file"),
        ("config.json", "[1]", "config.json: got no JSON object"),
        ("config.json", "{}", "architecture"),
    ],
)
def test_what_cannot_be_rewritten_is_one_line_and_stays(
    missing: str,
    content: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_bundle.write_bundle(tmp_path / "bundle", prunes=(100,), bits=(4,))
    (folder / "config.json").write_text(json.dumps(hf_config("llama")), encoding="utf-8")
    (folder / missing).unlink()
    if content is not None:
        (folder / missing).write_text(content, encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("sys.argv", ["regraph", str(folder)])
    assert main() == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
