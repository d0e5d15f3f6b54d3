"""The native core's governor gives the budgets that Python's gives."""

from __future__ import annotations

import math
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from golden.governor import FILE

from helpers.core_build import core_program
from sol_rt.budget.governor import GovernorSettings, GovernorState, Reading, next_budget
from sol_rt.errors import UsageError


@pytest.fixture(scope="module")
def program() -> Path:
    return core_program("governor")


def run(program: Path, lines: Sequence[str]) -> list[str]:
    text = "".join(f"{line}\n" for line in lines)
    return subprocess.run([program], input=text, capture_output=True, text=True, check=True).stdout.splitlines()


def test_golden_curves(program: Path) -> None:
    rows = [line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = run(program, ["\t".join(row[:8]) for row in rows])
    assert [line.split() for line in found] == [row[8:] for row in rows]


def test_random_curves(program: Path) -> None:
    chooser = random.Random(3)

    def number(*usual: float) -> float:
        return chooser.choice([chooser.uniform(*usual), chooser.uniform(*usual), math.nan, math.inf, -math.inf, 0.0])

    lines, expected = [], []
    for curve in range(200):
        lowest, highest = sorted((chooser.random(), chooser.random()))
        wanted = chooser.choice([None, chooser.uniform(1, 40)])
        settings, state = GovernorSettings(lowest, highest, wanted), GovernorState(highest)
        for _ in range(50):
            reading = Reading(number(0, 1), chooser.random() < 0.3, number(0.5, 1.1), number(5, 50))
            state = next_budget(state, reading, settings)
            charging = chooser.choice([0, -1]) if not reading.charging else 1
            fields = [lowest, highest, "-" if wanted is None else wanted, reading.battery, charging]
            lines.append("\t".join(map(str, [curve, *fields, reading.headroom, reading.tokens_per_second])))
            expected.append(f"{state.budget:.17g} {state.calm}")
    assert run(program, lines) == expected


@pytest.mark.parametrize(
    "settings", [(-0.1, 1.0, None), (0.5, 0.4, None), (0.5, 1.1, None), (math.nan, 1.0, None), (0.4, math.inf, None),
                 (0.4, 1.0, 0.0), (0.4, 1.0, -3.0), (0.4, 1.0, math.inf)]
)  # fmt: skip
def test_bad_settings(program: Path, settings: tuple[float, float, float | None]) -> None:
    with pytest.raises(UsageError) as told:
        GovernorSettings(*settings)
    fields = ["-" if value is None else str(value) for value in settings]
    assert run(program, ["\t".join(["curve", *fields, "-", "0", "-", "-"])]) == [f"1 {told.value}"]
