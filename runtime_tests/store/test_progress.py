"""Progress: several stages as one total, lines for a pipe, time left."""

from __future__ import annotations

import io
import time

import pytest

from sol_rt.cli.progress_bar import Shown, _Bar, _Lines, duration
from sol_rt.cli.progress_bar import progress as show
from sol_rt.progress import Stages

Call = tuple[str, float, float]


@pytest.fixture
def calls() -> list[Call]:
    return []


def test_stages_make_one_total(calls: list[Call]) -> None:
    stages = Stages(lambda *call: calls.append(call), {"read": 10, "work": 30, "write": 60})
    with stages("read") as progress:
        progress("read", 1, 2)
    with stages("work") as progress:
        progress("first half", 5, 10)
    with stages("write"):
        pass
    assert calls == [
        ("read", 0, 100),
        ("read", 5, 100),
        ("read", 10, 100),
        ("work", 10, 100),
        ("work: first half", 25, 100),
        ("work", 40, 100),
        ("write", 40, 100),
        ("write", 100, 100),
    ]


def test_a_stage_that_is_left_out_no_longer_counts(calls: list[Call]) -> None:
    stages = Stages(lambda *call: calls.append(call), {"read": 10, "fetch": 50, "work": 40})
    with stages("read"):
        pass
    with stages("work") as progress:
        progress("work", 1, 4)
    assert calls[1:] == [("read", 10, 100), ("work", 10, 50), ("work", 20, 50), ("work", 50, 50)]


def test_the_whole_never_goes_back_within_a_stage(calls: list[Call]) -> None:
    stages = Stages(lambda *call: calls.append(call), {"fetch": 1})
    with stages("fetch") as progress:
        for step in ("unpacking", "checking"):
            for done in (0, 3, 4, 9):
                progress(step, done, 4)
        progress("nothing to do", 0, 0)
    shares = [done / total for _, done, total in calls]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_stages_within_a_stage(calls: list[Call]) -> None:
    outer = Stages(lambda *call: calls.append(call), {"export": 8, "train": 2})
    with outer("export") as progress:
        inner = Stages(progress, {"quantize": 3, "measure": 1})
        with inner("quantize"):
            pass
        with inner("measure") as measuring:
            measuring("measure", 1, 2)
    assert ("export: quantize", 6, 10) in calls
    assert ("export: measure", 7, 10) in calls
    assert calls[-1] == ("export", 8, 10)


def test_a_stage_that_fails_is_not_done(calls: list[Call]) -> None:
    stages = Stages(lambda *call: calls.append(call), {"work": 1})
    with pytest.raises(ValueError, match="broken"), stages("work"):
        raise ValueError("broken")
    assert calls == [("work", 0, 1)]


def test_an_unknown_stage_is_a_mistake(calls: list[Call]) -> None:
    with pytest.raises(KeyError, match="wrok"), Stages(lambda *call: calls.append(call), {"work": 1})("wrok"):
        pass


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_follows_the_share_done() -> None:
    clock = Clock()
    shown = Shown(clock)
    shown("work", 20, 100)  # of an earlier run
    assert shown.seconds_left is None
    clock.now += 30
    shown("work", 40, 100)
    assert shown.seconds_left == pytest.approx(90)
    clock.now += 10  # no report since
    assert shown.seconds_left == pytest.approx(80)
    clock.now += 1000
    assert shown.seconds_left == 0
    shown("another total", 0, 7)
    assert shown.seconds_left is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (3540, "59 min"), (3599, "1 h 0 min"), (4800, "1 h 20 min")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_pipe_gets_a_line_a_stage_and_one_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = _Lines(clock, timed=True)
    shown.begin()
    stages = Stages(shown, {"read": 1, "work": 9})
    with stages("read") as progress:
        for done in range(5):
            progress("read", done, 5)
    clock.now += 100
    with stages("work") as progress:
        for done in range(100):
            progress("work", done, 100)
            clock.now += 10
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "read ..."
    assert lines[1].startswith("work ... 10%")
    assert len(lines) == 2 + 1000 // 60
    assert lines[-1] == "work ... 96%, 40 s left"


def test_a_pipe_gets_a_line_a_minute_without_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _Lines(seconds=0.02)
    shown.begin()
    shown("one long step", 0, 2)
    lines: list[str] = []
    deadline = time.monotonic() + 60
    while len(lines) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
        lines += capsys.readouterr().err.splitlines()
    shown.end()
    assert len(lines) >= 3
    assert set(lines) == {"one long step ..."}


@pytest.mark.parametrize("timed", [False, True])
def test_a_terminal_gets_one_bar(timed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")  # of a dumb terminal rich makes no bar
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr", screen)
    bar = _Bar(timed, transient=False)
    bar.begin()
    stages = Stages(bar, {"read": 1, "work": 3})
    with stages("read"):
        pass
    if timed:
        assert "read" in screen.getvalue()
        assert "25%" in screen.getvalue()
    with bar.paused():
        screen.write("a row of results\n")
    with stages("work") as progress:
        progress("second half", 1, 2)
    bar.end()
    assert "100%" in screen.getvalue().rsplit("work", 1)[1]
    assert bar._progress is not None
    assert len(bar._progress.tasks) == 1


def test_a_bar_for_short_work_never_appears(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with show(after=3600) as report:
        report("prompt", 1, 2)
    assert capsys.readouterr().err == ""
    with show(after=1e-9) as report:
        report("prompt", 1, 2)
        deadline = time.monotonic() + 60
        seen = ""
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
            seen = capsys.readouterr().err
    assert seen == "prompt ... 50%\n"
