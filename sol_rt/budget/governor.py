"""The governor: moves the budget between two bounds, as battery, heat and speed ask. The native core computes it.

docs/reference/decode-loop.md section 8 has the table. A host takes a reading every few tokens and sets the budget that
comes out.
"""

from __future__ import annotations

import math
from ctypes import byref, sizeof
from dataclasses import dataclass

from sol_rt.native import structs
from sol_rt.native.library import core


@dataclass(frozen=True)
class GovernorSettings:
    """Settings of the governor.

    Attributes:
        lowest, highest: the bounds of the budget, shares of the dense cost, 0 to 1.
        wanted_rate: tokens per second to keep; None if any rate will do.

    Raises UsageError for values out of range.
    """

    lowest: float
    highest: float = 1.0
    wanted_rate: float | None = None

    def __post_init__(self) -> None:
        given, state = self.struct(), structs.GovernorState(size=sizeof(structs.GovernorState))
        core().sol_governor_begin(byref(given), byref(state))

    def struct(self) -> structs.GovernorSettings:
        """The `sol_governor_settings`."""
        size = sizeof(structs.GovernorSettings)
        return structs.GovernorSettings(size, self.lowest, self.highest, _or_nan(self.wanted_rate))


def default_lowest() -> float:
    """The lower bound of the budget where nothing is known of a bundle's losses."""
    made = structs.GovernorSettings()
    core().sol_governor_settings_init(byref(made), sizeof(made))
    return float(made.lowest_budget)


@dataclass(frozen=True)
class Reading:
    """Readings of a device. None and NaN stand for what the device does not report.

    Attributes:
        battery: its level, 0 to 1.
        charging: whether the device is plugged in.
        headroom: thermal headroom as Android has it: 1 where the device throttles, less where it is cooler.
        tokens_per_second: the rate since the last reading.
    """

    battery: float | None = None
    charging: bool = False
    headroom: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class GovernorState:
    """State of the governor between readings.

    Attributes:
        budget: the budget to hold; at first the highest, or whatever is held already.
        own: the core's part of the state; zeros before the first reading.
    """

    budget: float
    own: tuple[float, ...] = (0.0,) * 7


def next_budget(state: GovernorState, reading: Reading, settings: GovernorSettings) -> GovernorState:
    """The state after a reading. Its budget is never outside the bounds.

    Everything that asks for less is followed at once, by one step. The budget rises by one smaller step where for
    a few readings nothing has spoken against it.
    """
    held, seen = structs.GovernorState(size=sizeof(structs.GovernorState)), structs.GovernorReading()
    held.budget, held.reserved[:] = state.budget, state.own
    core().sol_governor_reading_init(byref(seen), sizeof(seen))
    seen.battery, seen.charging = _or_nan(reading.battery), int(reading.charging)
    seen.thermal, seen.tokens_per_second = _or_nan(reading.headroom), _or_nan(reading.tokens_per_second)
    core().sol_governor_step(byref(settings.struct()), byref(seen), byref(held))
    return GovernorState(held.budget, tuple(held.reserved))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
