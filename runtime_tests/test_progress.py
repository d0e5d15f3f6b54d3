"""Progress: several stages as one total, lines for a pipe, time left."""

from __future__ import annotations

import pytest

from sol_rt.store.progress import Stages

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
