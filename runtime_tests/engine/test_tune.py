"""Settings of the operators that depend on the processor: none changes a result, and the best ones are taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.cost_tables import save_table
from helpers.tiny_bundle import write_bundle
from sol_rt.budget.cost.tune import tune
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.evaluation import doctor
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.engine import Engine
from sol_rt.ops import library_path
from sol_rt.progress import silent

needs_operators = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    if library_path() is not None:
        Engine.set_tuning(Tuning())


@needs_operators
def test_no_setting_changes_a_result(tmp_path: Path) -> None:
    engine = Engine(bundle := _bundle(tmp_path), provider="cpu")
    actions = [entry.action for entry in bundle.config.actions]
    expected: list[bytes] = []
    others = [Tuning(1, 49152), Tuning(members=4), Tuning(copies=True), Tuning(2, 0), Tuning(members=1)]
    for setting in [Tuning(), *others]:
        Engine.set_tuning(setting)
        engine.reset()
        engine.forward(range(40), bundle.config.dense)
        got = [engine.forward([7], action).logits.tobytes() for action in actions]
        assert got == (expected := expected or got)


@needs_operators
def test_the_operators_tell_their_settings() -> None:
    for setting in (Tuning(1, 64, 3), Tuning(copies=True), Tuning()):
        Engine.set_tuning(setting)
        assert Engine.tuning() == setting


@needs_operators
def test_a_profiled_table_brings_its_settings(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path)
    save_table(bundle, tuning=Tuning(1, 49152, 1))
    Engine(bundle, provider="cpu")
    assert Engine.tuning() == Tuning(1, 49152, 1)


@needs_operators
def test_tuning_applies_what_it_takes_and_reports_its_progress(tmp_path: Path) -> None:
    engine = Engine(_bundle(tmp_path), provider="cpu")
    shares: list[float] = []
    found = tune(engine, lambda what, done, total: shares.append(done / total), seconds=0.1)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert found.tuning == Engine.tuning()
    assert found.gain >= 1
    assert found.gain_of_copies is None or found.gain_of_copies >= 1
    assert found.tuning.copies == ((found.gain_of_copies or 1) > 1)
    assert found.step_gb_per_second > 0
    assert found.plain_gb_per_second > 0


@needs_operators
def test_a_model_too_slow_for_the_time_keeps_the_defaults(tmp_path: Path) -> None:
    found = tune(Engine(_bundle(tmp_path), provider="cpu"), silent, seconds=0)
    assert (found.tuning, found.gain, found.gain_of_copies) == (Tuning(), 1.0, None)


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
@needs_operators
def test_a_context_of_one_token_is_enough(tmp_path: Path) -> None:
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny", losses=True), provider="cpu", max_context=2)
    assert model.cost.unit == "milliseconds"


@needs_operators
def test_doctor_shows_what_was_measured_last(tmp_path: Path) -> None:
    (nothing,) = doctor._tuning()
    assert (nothing.state, "sol-rt profile" in nothing.detail) == ("missing", True)
    bundle, made = _bundle(tmp_path), "2026-11-28T00:00:00+00:00"
    save_table(bundle, created="2026-11-27T00:00:00+00:00", tuning=Tuning())
    path = save_table(bundle, created=made, tuning=Tuning(1, 49152, 2), quick=True)
    save_table(bundle, device="another processor", created="2026-11-29T00:00:00+00:00", tuning=Tuning())
    (path.parent / "damaged.json").write_text("{")
    (found,) = doctor._tuning()
    assert (found.state, f"measured {made}" in found.detail) == ("ok", True)
    assert "48 KB ahead into cache level 1, 2 threads a step" in found.detail
    assert "scattered" not in found.detail
    path.write_text(json.dumps({**json.loads(path.read_text()), "steady": False}))
    (busy,) = doctor._tuning()
    assert busy.detail.endswith("run sol-rt profile while no other program runs")


def _bundle(folder: Path) -> Bundle:
    return Bundle.open(write_bundle(folder / "tiny"))
