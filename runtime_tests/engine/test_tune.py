"""Settings of the operators that depend on the processor: none changes a result, and the best ones are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.random_decoder import screenable
from helpers.tiny_bundle import write_bundle
from sol_rt.budget.cost.cost_table import MeasuredCost, cost_table_path, quick_path
from sol_rt.budget.cost.tune import candidates, choose, is_steady, tune, tune_copies
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import Screen
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.hardware import reads, tuning, usable_cores
from sol_rt.engine.hardware.reads import read_bytes
from sol_rt.engine.hardware.tuning import Tuned, Tuning
from sol_rt.errors import WriteError
from sol_rt.evaluation import doctor
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.engine import Engine
from sol_rt.ops import library_path
from sol_rt.progress import silent

FOUND = Tuned(Tuning(1, 49152, 2), 1.25, 27.5, 55.0, "a model", False, "2026-11-28T00:00:00+00:00")
LIBRARY = library_path()
needs_operators = pytest.mark.skipif(LIBRARY is None, reason="the native operators are not built")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    if LIBRARY is not None:
        Engine.set_tuning(Tuning())


def test_the_fastest_is_chosen_where_it_is_faster_in_most_rounds() -> None:
    rng = np.random.default_rng(0)
    times = 1e-3 * np.array([10.0, 8.0, 12.0])[None, :, None] * rng.uniform(0.99, 1.01, (20, 3, 2))
    assert choose(times)[0] == 1
    assert choose(times)[1] == pytest.approx(1.25, rel=0.02)
    slow = rng.uniform(1.0, 3.0, 20)[:, None, None]  # a machine that slows down for all
    assert choose(times * slow)[0] == 1


def test_the_default_stays_where_nothing_is_clearly_faster() -> None:
    rng = np.random.default_rng(0)
    assert choose(1e-3 * rng.uniform(0.99, 1.01, (20, 8, 2))) == (0, 1.0)
    noisy = 1e-3 * rng.uniform(0.5, 2.0, (20, 8, 2))
    assert choose(noisy) == (0, 1.0)


@pytest.mark.parametrize("rounds", [4, 6, 12])
@pytest.mark.parametrize("scatter", [0.05, 0.15])
def test_the_default_stays_on_a_busy_machine_however_few_the_rounds(rounds: int, scatter: float) -> None:
    rng = np.random.default_rng(0)
    left = [choose(np.exp(scatter * rng.normal(size=(rounds, 5, 2))))[0] != 0 for _ in range(400)]
    assert np.mean(left) < 0.06  # one in six where only the order of the times counts


def test_times_are_steady_if_the_gains_agree_from_round_to_round() -> None:
    rng = np.random.default_rng(0)
    quiet = np.exp(0.02 * rng.normal(size=(8, 5, 2))) * np.array([1.0, 0.8, 1.3, 1.0, 2.0])[None, :, None]
    assert is_steady(quiet)
    assert is_steady(quiet * rng.uniform(1.0, 3.0, 8)[:, None, None])  # a machine that slows down for all
    assert not is_steady(quiet * np.exp(0.2 * rng.normal(size=(8, 5, 2))))


def test_candidates_begin_with_the_default_and_differ() -> None:
    for threads in (1, 2, 8):
        found = candidates(threads)
        assert found[0] == Tuning()
        assert len(set(found)) == len(found)
        assert {each.members for each in found} == ({0, 4} if threads == 8 else {0})


def test_a_measurement_is_read_again_and_other_machines_stay(home: Path) -> None:
    assert tuning.stored("one") is None
    tuning.save("one", FOUND)
    other = replace(FOUND, gain=1.0, tuning=Tuning(copies=True))
    tuning.save("other", other)
    assert tuning.stored("one") == FOUND
    assert tuning.stored("other") == other
    assert tuning.stored("third") is None


@pytest.mark.parametrize(
    "change",
    [
        {"tuning": {**asdict(FOUND.tuning), "cache_level": 3}},
        {"tuning": {**asdict(FOUND.tuning), "row_bytes_ahead": 1 << 30}},
        {"tuning": {**asdict(FOUND.tuning), "members": -1}},
        {"tuning": {**asdict(FOUND.tuning), "members": True}},
        {"tuning": {**asdict(FOUND.tuning), "copies": 1}},
        {"tuning": {**asdict(FOUND.tuning), "more": 1}},
        {"tuning": {"cache_level": 2}},
        {"tuning": None},
        {"gain": "fast"},
        {"gain": None},
        {"gain": 10**400},
        {"gain": float("nan")},
        {"step_gb_per_second": 0},
        {"plain_gb_per_second": 0},
    ],
)
def test_a_damaged_entry_is_not_used(home: Path, change: dict[str, object]) -> None:
    path = tuning.save("one", FOUND)
    document = json.loads(path.read_text())
    document["machines"]["one"].update(change)
    path.write_text(json.dumps(document))
    assert tuning.stored("one") is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "sol_rt.tuning", "format_version": 1, "machines": []}'])
def test_a_damaged_file_is_not_used_and_replaced(home: Path, text: str) -> None:
    home.mkdir()
    (home / tuning.FILE).write_text(text)
    assert tuning.stored("one") is None
    tuning.save("one", FOUND)
    assert tuning.stored("one") == FOUND


def test_gains_of_copies_are_kept_beside_the_settings(home: Path) -> None:
    assert tuning.gains_of_copies("one") == {}
    tuning.save("one", FOUND)
    tuning.save_gain_of_copies("one", "small", 1.0)
    path = tuning.save_gain_of_copies("one", "large", 1.2)
    tuning.save_gain_of_copies("other", "large", 1.5)
    assert tuning.gains_of_copies("one") == {"small": 1.0, "large": 1.2}
    tuning.save("one", replace(FOUND, gain=1.3))
    assert tuning.gains_of_copies("one") == {"small": 1.0, "large": 1.2}
    assert tuning.gains_of_copies("other") == {"large": 1.5}
    assert tuning.stored("one") == replace(FOUND, gain=1.3)
    document = json.loads(path.read_text())
    assert document["copies"] == {"one": {"small": 1.0, "large": 1.2}, "other": {"large": 1.5}}
    document["copies"]["one"] = {"a": "fast", "b": 0.5, "c": True, "d": 1.1, "e": 10**400, "f": math.nan, "g": None}
    document["copies"]["other"] = {"large": 1.5, "a newer version's": {"gain": 1.4}}
    document["copies"]["third"] = 1.5
    path.write_text(json.dumps(document))
    assert tuning.gains_of_copies("one") == {"d": 1.1}
    assert tuning.gains_of_copies("other") == {"large": 1.5}
    assert tuning.gains_of_copies("third") == {}
    tuning.save_gain_of_copies("one", "small", 1.0)
    kept = json.loads(path.read_text())
    assert kept["copies"] == {**document["copies"], "one": {"d": 1.1, "small": 1.0}}
    assert kept["machines"] == document["machines"]
    document["copies"] = []
    path.write_text(json.dumps(document))
    assert tuning.gains_of_copies("one") == {}
    assert tuning.stored("one") == replace(FOUND, gain=1.3)


def test_a_home_that_cannot_be_written_is_said(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(WriteError):
        tuning.save("one", FOUND)


@pytest.mark.parametrize(
    ("quick", "steady", "minutes", "served"),
    [(True, False, 5, True), (True, False, 70, False), (True, True, 70, True), (False, False, 70, True)],
)
def test_quick_settings_whose_times_scattered_serve_for_an_hour(
    home: Path, quick: bool, steady: bool, minutes: int, served: bool
) -> None:
    created = (datetime.now(timezone.utc) - timedelta(minutes=minutes)).isoformat()
    tuning.save("one", replace(FOUND, quick=quick, steady=steady, created=created))
    assert (tuning.stored("one") is not None) == served


@needs_operators
def test_no_setting_changes_a_result(tmp_path: Path) -> None:
    assert LIBRARY is not None
    engine = Engine(bundle := _bundle(tmp_path), provider="cpu")
    actions = [entry.action for entry in bundle.config.actions]
    expected: list[bytes] = []
    for setting in [*candidates(8), Tuning(copies=True), Tuning(row_bytes_ahead=0), Tuning(members=1)]:
        Engine.set_tuning(setting)
        engine.reset()
        engine.forward(range(40), bundle.config.dense)
        got = [engine.forward([7], action).logits.tobytes() for action in actions]
        assert got == (expected := expected or got)


@pytest.mark.slow
@needs_operators
def test_a_first_load_takes_copies_where_a_profile_found_them_faster(tmp_path: Path) -> None:
    assert LIBRARY is not None
    folder = write_bundle(tmp_path / "tiny", losses=True)
    key, name = tuning.machine_key(usable_cores(), LIBRARY), Bundle.open(folder).config.model.name
    for gain in (1.1, 1.0):
        tuning.save_gain_of_copies(key, name, gain)
        cost = SolModel.from_pretrained(folder, provider="cpu").cost
        assert isinstance(cost, MeasuredCost)
        assert cost.cost_table.tuning is not None
        assert cost.cost_table.tuning.copies == (gain > 1)
        quick_path(cost_table_path(Bundle.open(folder), "cpu", usable_cores(), True)).unlink()


@needs_operators
def test_the_operators_tell_their_settings() -> None:
    assert LIBRARY is not None
    for setting in (Tuning(1, 64, 3), Tuning(copies=True), Tuning()):
        Engine.set_tuning(setting)
        assert Engine.tuning() == setting


@needs_operators
def test_tuning_leaves_an_empty_cache_and_reports_its_progress(tmp_path: Path) -> None:
    assert LIBRARY is not None
    engine = Engine(_bundle(tmp_path), provider="cpu")
    shares: list[float] = []
    found = tune(engine, lambda what, done, total: shares.append(done / total), seconds=0.1)
    assert engine.length == 0
    assert shares == sorted(shares)
    assert found.tuning in candidates(engine.threads)
    assert found.gain >= 1


@needs_operators
def test_copies_are_taken_where_steps_gain_and_memory_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    heads: dict[str, Any] = {"lm_head_bits": {8: 8, 4: 8}, "screens": {4: Screen(20, 0.5, 3)}}
    bundle = Bundle.open(write_bundle(tmp_path / "tiny", decoder=screenable("llama"), bits=(8, 4), **heads))
    bases = sum(entry.bytes for name, entry in bundle.config.tensors.items() if entry.dtype == "uint4")
    (places,) = bundle.config.tensors["embed.screen.output_scale"].shape
    needed = bases * 19 // 16 + places * bundle.config.model.hidden_size * 13 // 32  # 3 bits, and 8 for each block
    assert tuning.copied_bytes(bundle.config.tensors) == needed > bases * 19 // 16 > 0
    name, key = bundle.config.model.name, tuning.machine_key(usable_cores(), LIBRARY)

    def step(engine: Engine, length: int, action: Action, repeats: int) -> float:
        assert action.tag == "k100-s100-q4"
        return 1.0 if Engine.tuning().copies else 1.06

    engine = Engine(bundle, provider="cpu")
    monkeypatch.setattr("sol_rt.budget.cost.tune._step", step)
    assert tune_copies(engine, seconds=0.05) == pytest.approx(1.06)
    assert Engine.tuning().copies
    monkeypatch.setattr("sol_rt.budget.cost.tune._LEAST_GAIN_OF_COPIES", 1.07)
    assert tune_copies(engine, seconds=0.05) == 1.0
    assert not Engine.tuning().copies

    tuning.save_gain_of_copies(key, name, 1.06)
    for share, room in ((4, True), (3.9, False)):
        monkeypatch.setattr(tuning, "available_memory", lambda share=share: int(share * needed))
        Engine(bundle, provider="cpu")
        assert Engine.tuning() == Tuning(copies=room)
    assert tune_copies(engine, seconds=0.05) is None  # no room to try
    tuning.save_gain_of_copies(key, name, 1.0)
    monkeypatch.setattr(tuning, "available_memory", lambda: 1 << 40)
    Engine.set_tuning(Tuning())
    Engine(bundle, provider="cpu")
    assert not Engine.tuning().copies


@needs_operators
def test_a_model_too_slow_for_the_time_keeps_the_defaults(tmp_path: Path) -> None:
    assert LIBRARY is not None
    found = tune(Engine(_bundle(tmp_path), provider="cpu"), silent, seconds=0)
    assert (found.tuning, found.gain) == (Tuning(), 1.0)


@pytest.mark.slow
@needs_operators
def test_a_context_of_one_token_is_enough(tmp_path: Path) -> None:
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny", losses=True), provider="cpu", max_context=2)
    assert model.cost.unit == "milliseconds"


@needs_operators
def test_plain_reads_are_measured_beside_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    engine, seen = Engine(_bundle(tmp_path), provider="cpu"), []

    def noted(data: np.ndarray) -> int:
        seen.append(data.nbytes)
        return read_bytes(data)

    monkeypatch.setattr(reads, "read_bytes", noted)
    found = tune(engine, silent, seconds=1.0)
    assert found.plain_gb_per_second > 0
    size = (engine.bundle.path / engine.bundle.config.weights_file).stat().st_size
    assert sum(seen) % size == 0  # whole passes
    assert sum(seen) >= 4 * size


@needs_operators
def test_doctor_shows_what_was_measured() -> None:
    assert LIBRARY is not None
    (nothing,) = doctor._tuning()
    assert (nothing.state, "sol-rt profile" in nothing.detail) == ("missing", True)
    key = tuning.machine_key(usable_cores(), LIBRARY)
    tuning.save(key, FOUND)
    (found,) = doctor._tuning()
    assert found.state == "ok"
    assert "48 KB ahead into cache level 1, 2 threads a step" in found.detail
    assert "a dense step of a model read 27.5 GB/s; plain reads of the weights at that time: 55.0 GB/s" in found.detail
    assert "scattered" not in found.detail
    tuning.save(key, replace(FOUND, steady=False))
    (busy,) = doctor._tuning()
    assert busy.detail.endswith("run sol-rt profile while no other program runs")


def _bundle(folder: Path) -> Bundle:
    return Bundle.open(write_bundle(folder / "tiny"))
