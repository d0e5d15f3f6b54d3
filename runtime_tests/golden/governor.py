"""Curves for the governor, and the budgets that it makes of them: governor.tsv, which every host repeats.

    python runtime_tests/golden/governor.py            # writes governor.tsv again

Ten fields a line, separated by tabs: curve, lowest, highest, wanted rate, battery, charging (0 or 1), headroom, rate,
then the budget after the reading and its calm count. `-` stands for an unknown number.
The state is fresh (budget = highest) where a curve begins. Lines that begin with `#` are comments.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sol_rt.budget.governor import GovernorSettings, GovernorState, Reading, next_budget

FILE = Path(__file__).resolve().with_name("governor.tsv")


class Curve(NamedTuple):
    """Readings under one setting."""

    name: str
    settings: GovernorSettings
    readings: list[Reading]


def curves() -> list[Curve]:
    """The curves; the same ones every time."""
    chooser = random.Random(1)

    def near(value: float, spread: float) -> float:
        return round(value + chooser.uniform(-spread, spread), 4)

    discharge = [Reading(battery=round(near(0.7 - 0.65 * i / 150, 0.004), 3)) for i in range(151)]
    plugged = [Reading(battery=round(0.1 + i / 400, 3), charging=20 <= i < 60) for i in range(90)]
    ramp = [*(0.4 + 0.7 * i / 50 for i in range(51)), *(1.1 - 0.7 * i / 50 for i in range(51)), *[0.45] * 60]
    heat = [Reading(headroom=near(value, 0.01)) for value in ramp]
    noisy = [Reading(tokens_per_second=near(20.0, 2.0)) for _ in range(120)]
    slow = [Reading(tokens_per_second=near(9.0, 0.5)) for _ in range(60)]
    slower_then_faster = [Reading(tokens_per_second=near(30 if 40 <= i < 100 else 12, 0.6)) for i in range(150)]
    everything = [
        Reading(
            battery=round(0.62 - i / 500, 3),
            charging=i >= 120,
            headroom=near(0.7 + 0.3 * math.sin(i / 25), 0.01),
            tokens_per_second=near(16, 2),
        )
        for i in range(160)
    ]
    odd = [
        Reading(), Reading(battery=math.nan, headroom=math.nan, tokens_per_second=math.nan), Reading(headroom=1.0),
        Reading(headroom=1.5), Reading(battery=0.0), Reading(battery=1.0), Reading(battery=1.2),
        Reading(tokens_per_second=0.0), Reading(tokens_per_second=1e-9), Reading(tokens_per_second=1e9),
        *[Reading()] * 8, Reading(battery=-0.5, charging=True), *[Reading(headroom=0.0)] * 4,
    ]  # fmt: skip
    plain, rated = GovernorSettings(0.4), GovernorSettings(0.4, wanted_rate=19.0)
    return [
        Curve("battery-falls", plain, discharge),
        Curve("plugged-in", plain, plugged),
        Curve("heat-up-and-down", plain, heat),
        Curve("rate-noisy", rated, noisy),
        Curve("rate-too-low", rated, slow),
        Curve("rate-changes", GovernorSettings(0.3, 0.9, 20.0), slower_then_faster),
        Curve("everything", GovernorSettings(0.45, 1.0, 15.0), everything),
        Curve("odd-readings", GovernorSettings(0.5, 0.8, 10.0), odd),
        Curve("one-budget", GovernorSettings(0.6, 0.6), heat[:20]),
    ]


def states(curve: Curve) -> Iterator[GovernorState]:
    """The state after each reading."""
    state = GovernorState(curve.settings.highest)
    for reading in curve.readings:
        state = next_budget(state, reading, curve.settings)
        yield state


def calm(state: GovernorState) -> int:
    """Readings in a row that allowed a rise: a part of the core's own state."""
    return int(state.own[1])


def content() -> str:
    """Content of governor.tsv."""
    lines = ["# curve lowest highest wanted_rate battery charging headroom rate | budget calm"]
    for curve in curves():
        settings = curve.settings
        for reading, state in zip(curve.readings, states(curve), strict=True):
            given = (settings.lowest, settings.highest, settings.wanted_rate, reading.battery)
            measured = (reading.headroom, reading.tokens_per_second)
            fields = [*map(_field, given), str(int(reading.charging)), *map(_field, measured)]
            lines.append("\t".join([curve.name, *fields, f"{state.budget:.17g}", str(calm(state))]))
    return "\n".join(lines) + "\n"


def _field(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else repr(value)


if __name__ == "__main__":
    FILE.write_text(content(), encoding="utf-8", newline="\n")
