"""Stored calibrations: the same bundle without measuring, and what they are bound to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting comes with the extra export")
from test_export import export, fails, policy_for

from sol_rt.budget.cost.cost_table import CostTable
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import SolError, UsageError
from sol_rt.export import pipeline
from sol_rt.export.actions.stored import RULES, StoredCalibration, checkpoint_hash, is_stored
from sol_rt.export.policy_file import write_policy
from sol_rt.store.recipes.recipe import Recipe, aliases

TEXT = "The old man of the sea told a tale of ships, of storms and of the stars above the bay."


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(TEXT.split(), 6000)
    path.write_text(" ".join(words), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def measured(llama_checkpoint: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle that was calibrated on a text, and the calibration that its export stored."""
    folder = tmp_path_factory.mktemp("measured")
    stored = folder / "tiny.calibration.json"
    export(llama_checkpoint, folder / "bundle", calibration=text_file, save_calibration=stored)
    return folder / "bundle", stored


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_stored_calibration_gives_the_same_bundle_and_measures_nothing(
    llama_checkpoint: Path, measured: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, stored = measured
    steps: list[str] = []
    report = export(
        llama_checkpoint, tmp_path / "out", calibration=stored, progress=lambda step, *_: steps.append(step)
    )
    told = {step.partition(":")[0] for step in steps}
    assert told == {"opening the source", "fitting weights", "hashing weights"}
    assert Bundle.open(tmp_path / "out").config.variants["s100-q4"].prompt_losses
    again = files(tmp_path / "out")
    for name, content in files(bundle).items():
        assert again.pop(name) == content, name
    assert not again
    assert "calibration: tiny.calibration.json, measured on text.txt" in report.lines()


@pytest.mark.slow
def test_a_calibration_is_read_as_it_was_written(measured: tuple[Path, Path], tmp_path: Path) -> None:
    found = StoredCalibration.read(measured[1])
    found.write(tmp_path / "again.calibration.json")
    assert StoredCalibration.read(tmp_path / "again.calibration.json") == found
    assert (tmp_path / "again.calibration.json").read_bytes() == measured[1].read_bytes()
    assert is_stored(measured[1])
    assert [path.name for path in tmp_path.iterdir()] == ["again.calibration.json"]


def test_a_stored_calibration_of_any_name_is_no_text(measured: tuple[Path, Path], tmp_path: Path) -> None:
    named = tmp_path / "measured.txt"
    named.write_bytes(measured[1].read_bytes())
    assert is_stored(named)
    named.write_text("A text about calibration.")
    assert not is_stored(named)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kv": "int8"}, "kv: it has float16, got int8"),
        ({"bits": (8,)}, "bits: it has 8, 4, got 8"),
        ({"channel_density": (1.0, 0.75)}, "channel density: it has 1.0, 0.5, got 1.0, 0.75"),
        ({"kv_density": (1.0,)}, "kv density: it has 1.0, 0.25, got 1.0"),
        ({"max_context": 900}, "max context: it has 1024, got 900"),
    ],
)
def test_other_settings_are_named(
    changed: dict[str, Any], message: str, llama_checkpoint: Path, measured: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = rf"calibration .*tiny\.calibration\.json: {message}; leave --calibration out to measure"
    fails(llama_checkpoint, tmp_path / "out", UsageError, expected, calibration=measured[1], **changed)


def test_other_rules_are_named(llama_checkpoint: Path, measured: tuple[Path, Path], tmp_path: Path) -> None:
    stored = json.loads(measured[1].read_text())
    stored["settings"]["rules"] = RULES + 1
    other = tmp_path / "other.calibration.json"
    other.write_text(json.dumps(stored))
    message = f"rules: it has {RULES + 1}, got {RULES}; leave --calibration out to measure"
    fails(llama_checkpoint, tmp_path / "out", UsageError, message, calibration=other)


def test_another_checkpoint_is_named(llama_checkpoint: Path, measured: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in llama_checkpoint.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert checkpoint_hash(other) == checkpoint_hash(llama_checkpoint)
    for name in ("model.onnx.data", "model.onnx_data"):
        before = checkpoint_hash(other)
        (other / name).write_bytes(b"weights")
        assert checkpoint_hash(other) != before
        (other / name).unlink()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    message = r"it is for another checkpoint: sha256 [0-9a-f]{12}…, got [0-9a-f]{12}…; leave --calibration out"
    fails(other, tmp_path / "out", UsageError, message, calibration=measured[1])


def test_a_policys_actions_must_be_measured(
    llama_checkpoint: Path, measured: tuple[Path, Path], tmp_path: Path
) -> None:
    write_policy(tmp_path / "policy.safetensors", policy_for(("k100-s100-q8", "k060-s050-q8")))
    given = {"policy": tmp_path / "policy.safetensors", "calibration": measured[1]}
    fails(llama_checkpoint, tmp_path / "out", UsageError, "the policy picks k060-s050-q8, not measured", **given)


@pytest.mark.parametrize(
    "damage",
    [
        {"format_version": 0},
        {"fitted": [["a"]]},
        {"settings": {"checkpoint": ""}},
        {"losses": {"512": {"fast": [1, 2, 3]}}},
        {"lm_head_bits": {"9": 4}},
        {"lm_head_bits": {}},
        {"active_channels": {"s050-q4": {"active_up": [1]}}},
        "a count of no channel",
        "a count beyond the matrix",
        "a loss that is not finite",
        "no dense action",
        None,
    ],
)
def test_a_damaged_file_is_one_line(
    damage: dict[str, Any] | str | None, llama_checkpoint: Path, measured: tuple[Path, Path], tmp_path: Path
) -> None:
    path, text = tmp_path / "bad.json", measured[1].read_text(encoding="utf-8")
    document = json.loads(text)
    if isinstance(damage, str):
        counts = next(iter(document["active_channels"].values()))["active_o"]
        losses = next(iter(document["losses"].values()))
        if damage == "no dense action":
            del losses["k100-s100-q8"]
        elif "loss" in damage:
            losses["k100-s100-q8"][1] = math.nan
        else:
            counts[0] = 0 if "no channel" in damage else 100_000
    path.write_text(
        text[: len(text) // 2]
        if damage is None
        else json.dumps(document if isinstance(damage, str) else {**document, **damage})
    )
    fails(llama_checkpoint, tmp_path / "out", UsageError, r"calibration.*: got a file that", calibration=path)


def test_a_device_table_is_no_calibration_of_an_export(llama_checkpoint: Path, tmp_path: Path) -> None:
    table = CostTable("b" * 64, "this one", "2026-01-01T00:00:00", 0.0, {})
    (tmp_path / "table.json").write_text(table.to_json())
    message = r"calibration .*table\.json: a table of this device's speed, which sol-rt profile wrote, expected quick"
    fails(llama_checkpoint, tmp_path / "out", UsageError, message, calibration=tmp_path / "table.json")


def test_nothing_is_stored_where_nothing_is_measured(llama_checkpoint: Path, tmp_path: Path) -> None:
    given = {"calibration": "none", "save_calibration": tmp_path / "c.json"}
    fails(
        llama_checkpoint,
        tmp_path / "out",
        UsageError,
        "save calibration: got --calibration none, with which nothing is measured, expected quick, full or a text file",
        **given,
    )
    given = {"calibration": "quick", "save_calibration": tmp_path / "no" / "c.json"}
    fails(llama_checkpoint, tmp_path / "out", UsageError, "save calibration .*: no such folder", **given)


@pytest.mark.slow
def test_an_alias_brings_its_own_and_measures_where_it_does_not_fit(
    llama_checkpoint: Path, measured: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe("known", "", "", hub="someone/known", calibration=str(measured[1]))
    monkeypatch.setattr(pipeline, "aliases", lambda: {"known": recipe})
    monkeypatch.setattr(pipeline, "resolve", lambda source, progress: (llama_checkpoint, "known"))
    report = export(Path("known"), tmp_path / "out", calibration=None)
    assert report.calibration.startswith("stored with known, measured on text.txt")
    report = export(Path("known"), tmp_path / "two", calibration=None, kv="int8")
    said = "a short text of the model's own: known has a stored calibration, but kv: it has float16, got int8"
    assert report.calibration == said
    selection = report.selection
    assert selection is not None
    assert selection.text == "the model's own text and the package's samples"
    monkeypatch.setattr(pipeline, "aliases", lambda: {"known": replace(recipe, calibration="gone.calibration.json")})
    fails(Path("known"), tmp_path / "three", SolError, "gone.calibration.json is missing; install", calibration=None)


@pytest.mark.parametrize("name", [name for name, recipe in aliases().items() if recipe.calibration])
def test_calibrations_of_aliases_are_small_and_their_own(name: str) -> None:
    recipe = aliases()[name]
    path = recipe.calibration_path()
    assert path is not None
    assert path.stat().st_size < 100_000
    found = StoredCalibration.read(path)
    assert recipe.hub is not None or found.settings.checkpoint == recipe.sha256
    assert sorted(found.measured.fronts) == [512, 2048, 4096]
    dense = max(found.measured.fronts[512])
    for front in found.measured.fronts.values():
        assert front[dense].loss == 0.0
    assert {"k100-s075-q4", "k100-s050-q4"} <= {action.tag for action in found.measured.fronts[512]}


def test_the_bundle_with_a_stored_calibration_opens(measured: tuple[Path, Path]) -> None:
    for entry in Bundle.open(measured[0]).config.actions:
        assert entry.losses
