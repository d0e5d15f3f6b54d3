"""`--governor`: the sensors that psutil reads, and generations whose budget follows them."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers.cost_tables import store_costs
from helpers.places import TINY
from helpers.tiny_bundle import seal
from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME, ActionEntry
from sol_rt.bundle.config_reader import read_config
from sol_rt.cli import main
from sol_rt.cli.run.sensors import Sensors, hottest


def without_policy(folder: Path, loss: float | None) -> Path:
    """The tiny bundle without policy in a new folder. Each action loses `loss` nats times the share of the bytes that
    it saves; None is for no measured losses.
    """
    shutil.copytree(TINY, folder)
    config = read_config(folder / CONFIG_NAME)
    cost = BytesCost(config)
    saved = {entry.action: 1 - cost.step(entry.action, 512) / cost.dense(512) for entry in config.actions}
    actions = tuple(ActionEntry(action, None if loss is None else loss * share) for action, share in saved.items())
    (folder / "policy.onnx").unlink()
    seal(folder, replace(config, actions=actions, policy=None))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without losses costs are bytes, and the lowest budget is the governor's own."""
    return without_policy(tmp_path_factory.mktemp("governed") / "tiny", None)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with losses."""
    return without_policy(tmp_path_factory.mktemp("measured") / "tiny", 0.4)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOL_RT_MODEL", str(bundle))


def machine(
    monkeypatch: pytest.MonkeyPatch,
    battery: float | None = None,
    plugged: bool | None = False,
    temperatures: dict[str, list[Any]] | None = None,
) -> None:
    """This machine then has the battery (percent) and the temperatures."""
    fake = ModuleType("psutil")
    found = None if battery is None else SimpleNamespace(percent=battery, secsleft=-1, power_plugged=plugged)
    fake.sensors_battery = lambda: found  # type: ignore[attr-defined]
    fake.sensors_temperatures = lambda: temperatures or {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "psutil", fake)


def sensor(current: float, high: float | None = None, critical: float | None = None) -> SimpleNamespace:
    return SimpleNamespace(label="", current=current, high=high, critical=critical)


def budget_at_the_end(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[float, str]:
    options = ("generate", "-p", "One day, Anna found", "-n", "230", "--temperature", "0", "--governor")
    assert main([*options, *argv]) == 0
    err = capsys.readouterr().err
    found = re.search(r"governor: budget ([0-9.]+), between", err)
    assert found, err
    return float(found[1]), err


@pytest.mark.parametrize(
    ("sensors", "headroom"),
    [
        ([], None),
        ([(50.0, None, None)], None),
        ([(50.0, 0.0, 65261.85)], None),
        ([(math.nan, 80.0, None)], None),
        ([(80.0, 80.0, 100.0)], 1.0),
        ([(86.0, 80.0, 100.0)], 1.2),
        ([(65.0, None, 95.0)], 0.0),
        ([(20.0, 95.0, None), (74.0, 95.0, None), (60.0, 95.0, None)], 0.3),
    ],
)
def test_headroom_is_that_of_the_hottest_part(
    sensors: list[tuple[float | None, float | None, float | None]], headroom: float | None
) -> None:
    assert hottest(sensors) == (None if headroom is None else pytest.approx(headroom))


def test_this_machine_can_be_asked() -> None:
    pytest.importorskip("psutil", reason="psutil comes with the extra governor")
    sensors = Sensors()
    level, charging = sensors.battery()
    assert level is None or 0 <= level <= 1
    assert isinstance(charging, bool)
    headroom = sensors.headroom()
    assert headroom is None or headroom >= 0


def test_without_psutil(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert main(["generate", "-p", "a", "--governor"]) == 2
    assert "--governor needs psutil; run pip install 'sol-rt[governor]'" in capsys.readouterr().err


def test_a_machine_without_readings_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    assert main(["generate", "-p", "a", "--governor"]) == 2
    assert "this machine tells neither battery nor temperature" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [("--bits", "6"), ("--kv-density", "0.5"), ("--schedule", "fixed:k100-s100-q4")],
)
def test_options_that_hold_no_budget_are_refused_under_the_governor(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, battery=50)
    assert main(["generate", "-p", "a", "--governor", *options]) == 2
    assert f"--governor: moves a budget; leave out {options[0]}" in capsys.readouterr().err


def test_a_low_battery_lowers_the_budget(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, battery=5)
    low, err = budget_at_the_end(capsys)
    assert low == 0.4
    assert "requested 1.000" not in err
    machine(monkeypatch, battery=5, plugged=True)
    assert budget_at_the_end(capsys)[0] == 1.0


def test_heat_lowers_the_budget_from_the_one_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, temperatures={"coretemp": [sensor(60, 80), sensor(79, 80)]})
    found, err = budget_at_the_end(capsys, "--budget", "0.9")
    assert found == 0.4
    assert "between 0.40 and 0.90" in err
    machine(monkeypatch, temperatures={"coretemp": [sensor(60, 80)]})
    assert budget_at_the_end(capsys, "--budget", "0.9")[0] == 0.9


@pytest.mark.parametrize(
    ("options", "loss"),
    [((), 0.1), (("--max-loss", "10%"), 0.1), (("--max-loss", "5%"), 0.05), (("--max-loss", "0.15"), 0.15)],
)
def test_the_lowest_budget_is_that_of_the_loss(
    options: tuple[str, ...],
    loss: float,
    measured: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, battery=5)
    found, err = budget_at_the_end(capsys, "-m", str(measured), *options)
    assert found == pytest.approx(1 - math.log1p(loss) / 0.4, abs=0.006)
    assert ("expect broken text" in err) == (loss > 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_loss_that_cannot_be_kept_is_refused(
    command: str, measured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, battery=5)
    argv = [command, "-p", "a", "--governor", "--max-loss"]
    assert main([*argv, "5%"]) == 2
    assert "--max-loss: no losses of this bundle's actions were measured" in capsys.readouterr().err
    assert main([*argv, "-1"]) == 2
    assert "'--max-loss': expected a share of the dense perplexity from 0 to 1" in capsys.readouterr().err
    assert main([*argv, "5%", "--schedule", "uniform"]) == 2
    assert "--max-loss: the schedule uniform keeps no loss" in capsys.readouterr().err
    assert main([*argv, "5%", "-m", str(measured), "--budget", "0.01"]) == 2
    assert "--budget 0.01: loses more than --max-loss 5% allows" in capsys.readouterr().err


def test_a_rate_out_of_reach_leads_to_the_lowest_budget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    found, _ = budget_at_the_end(capsys, "--tokens-per-second", "1e9")
    assert found == 0.4
    assert budget_at_the_end(capsys, "--tokens-per-second", "0.001")[0] == 1.0


@pytest.mark.parametrize(("dense_ms", "rate", "fast"), [(1e-3, 5e5, False), (1e6, 0.5, True)])
def test_a_rate_follows_what_steps_take(
    dense_ms: float,
    rate: float,
    fast: bool,
    measured: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cost table says that steps take next to nothing, or very long, and neither is so."""
    monkeypatch.setenv("SOL_RT_COSTS", "profiled")
    bundle = Bundle.open(measured)
    dense = bundle.config.variants[bundle.config.dense.variant].weight_bytes
    store_costs(bundle, lambda variant: dense_ms * variant.weight_bytes / dense)
    argv = ("generate", "-m", str(measured), "-p", "One day, Anna found", "-n", "80", "--temperature", "0", "--json")
    assert main([*argv, "--tokens-per-second", str(rate)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cost_model"] == "measured"
    steps = len(result["tokens"]) - 1
    assert steps > 40
    assert (result["achieved_budget"] > 0.75) == fast, "0.39 or so is the cheapest, and 1 is dense"


def test_json_has_the_budget_that_it_came_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, battery=5)
    argv = ["generate", "-p", "One day,", "-n", "200", "--temperature", "0", "--governor", "--json"]
    assert main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["requested_budget"] < 1
    assert result["achieved_budget"] == pytest.approx(result["requested_budget"], abs=0.02)


def test_a_chat_reports_what_holds_its_budget(
    measured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, battery=5, plugged=True)
    lines = "/budget 0.9\n/budget\n/schedule hull\n/budget\n/budget 0.5\n/budget\n/schedule dense\n/budget\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["chat", "-m", str(measured), "--governor", "--max-loss", "5%"]) == 0
    told = capsys.readouterr().err.splitlines()[1::2]
    low, last = "governor: budget 0.50, between 0.50 and 0.50, schedule hull", "schedule dense"
    between = "governor: budget 0.90, between 0.88 and 0.90"
    assert told == [between, f"{between}, schedule hull", low, last]


@pytest.mark.slow
def test_a_schedule_that_keeps_no_loss_is_refused_in_a_chat(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, battery=5)
    argv = ["chat", "-m", str(measured), "--governor"]
    saved = tmp_path / "uniform.json"
    for wanted, code in (((), 0), (("--max-loss", "5%"), 1)):
        last = f"/save {saved}" if code == 0 else f"/load {saved}"
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"/schedule uniform\n{last}\n"))
        assert main([*argv, *wanted]) == code
    assert capsys.readouterr().err.count("--max-loss: the schedule uniform keeps no loss") == 2


def test_a_chat_keeps_the_budget_between_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, battery=5)
    lines = "One day,\n/stats\n/budget 0.8\nOne day,\n/budget\n/schedule dense\nOne day,\n/stats\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["chat", "-n", "80", "--temperature", "0", "--governor"]) == 0
    err = capsys.readouterr().err
    budgets = [float(found) for found in re.findall(r"governor: budget ([0-9.]+)", err)]
    assert len(budgets) == 3
    assert 1 > budgets[0] >= budgets[1] == budgets[2]
    assert "and 0.80" in err
    assert "(dense)" in err
