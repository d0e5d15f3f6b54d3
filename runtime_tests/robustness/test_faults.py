"""Commands that are killed, full disks and weights that change: a few of the moments that `make faults` tries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import TESTS
from helpers.tools import preloaded
from sol_rt.ops import core_path

pytest.importorskip("torch")
pytest.importorskip("yaml")

SCRIPT = TESTS / "robustness" / "faults.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and a preloaded library of Linux")
@pytest.mark.parametrize("kind", ["--kill", "--full-disk"])
def test_nothing_is_lost_and_nothing_is_left(kind: str, tmp_path: Path) -> None:
    if kind == "--full-disk":
        preloaded("full_disk")  # skips without a compiler
    report = tmp_path / "faults.json"
    names = ["export", "pull", "profile", "chat", "trace", *(["session"] if core_path() else [])]
    trials = "3" if kind == "--kill" else "2"
    argv = [sys.executable, str(SCRIPT), kind, trials, "-o", str(report), "--commands", ",".join(names)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads(report.read_text(encoding="utf-8"))
    assert list(results) == names
    tried = [each for result in results.values() for each in result.values()]
    assert all(not each["failures"] for each in tried)
    # how many depends on the load of the machine
    assert sum(each.get("killed", each.get("refused")) for each in tried) >= 1


def test_a_disk_is_full_at_every_change_or_at_some_of_all() -> None:
    faults = pytest.importorskip("faults")
    assert faults.spread(58, 10**6) == list(range(58))
    assert faults.spread(58, 4) == [0, 19, 38, 57]
    assert faults.spread(1, 3) == [0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks of Linux")
def test_commands_that_need_the_core_are_skipped_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = pytest.importorskip("faults")
    monkeypatch.setattr(faults, "core_path", lambda: None)
    assert list(faults.runnable(["chat", "session", "trace"])) == ["chat", "trace"]
    assert capsys.readouterr().out == "session skipped: the native core is not built\n"
    monkeypatch.setattr(faults, "core_path", lambda: Path("libsol_rt.so"))
    assert list(faults.runnable(["session"])) == ["session"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks of Linux")
def test_weights_that_change_under_a_process_never_change_its_text(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    argv = [sys.executable, str(SCRIPT), "--changed-weights", "2", "-o", str(report)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads(report.read_text(encoding="utf-8"))["changed weights"]
    assert results["by renaming"]["went on"] == results["in place"]["refused"] == 2
