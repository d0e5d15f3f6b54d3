"""The governor: moves the budget between two bounds, as battery, heat and speed ask.

The governor is a pure function of a state and a reading, in plain arithmetic, so hosts in other languages have the same
one. docs/reference/decode-loop.md section 8 has the table. A host takes a reading every few tokens and sets the budget
that comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sol_rt.errors import UsageError


@dataclass(frozen=True)
class GovernorSettings:
    """Settings of the governor. Budgets are shares of the dense cost, 0 to 1.

    Attributes:
        lowest, highest: the bounds of the budget.
        wanted_rate: tokens per second to keep; None if any rate will do.
        battery_full, battery_empty: battery levels (0 to 1) from which on the budget may be the highest, and down to
            which it falls to the lowest; between them it follows the level. A device that charges has no such limit.
        hot, cool: thermal headroom (1 is where the device throttles) from which on the budget falls, and up to which it
            may rise; between them it stays.
        rate_slack: share by which the rate may miss `wanted_rate` before the budget moves.
        step_down, step_up: by how much one reading lowers and raises the budget.
        patience: readings in a row that must allow a rise before there is one.
        smoothing: weight of a new rate in the running mean.

    Raises UsageError for values out of range.
    """

    lowest: float = 0.4
    highest: float = 1.0
    wanted_rate: float | None = None
    battery_full: float = 0.5
    battery_empty: float = 0.15
    hot: float = 0.95
    cool: float = 0.8
    rate_slack: float = 0.05
    step_down: float = 0.05
    step_up: float = 0.025
    patience: int = 3
    smoothing: float = 0.25

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"governor: {field.name}: got {value}, expected a finite number")
        for name, good, expected in (
            ("lowest", 0 <= self.lowest <= self.highest <= 1, "0 <= lowest <= highest <= 1"),
            ("wanted_rate", self.wanted_rate is None or self.wanted_rate > 0, "a number over 0"),
            ("battery_empty", 0 <= self.battery_empty < self.battery_full <= 1, "0 <= empty < full <= 1"),
            ("cool", 0 < self.cool < self.hot <= 1, "0 < cool < hot <= 1"),
            ("rate_slack", 0 <= self.rate_slack < 1, "0 to less than 1"),
            ("step_up", 0 < self.step_up <= self.step_down <= 1, "0 < step_up <= step_down <= 1"),
            ("patience", self.patience >= 1, "a whole number from 1"),
            ("smoothing", 0 < self.smoothing <= 1, "over 0, up to 1"),
        ):
            if not good:
                raise UsageError(f"governor: {name}: got {getattr(self, name)}, expected {expected}")


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
        dense_rate: running mean of rate times budget, the rate that dense steps would have; 0 before the first rate.
        calm: readings in a row that allowed a rise.
    """

    budget: float
    dense_rate: float = 0.0
    calm: int = 0


def next_budget(state: GovernorState, reading: Reading, settings: GovernorSettings) -> GovernorState:
    """The state after a reading. Its budget is never outside the bounds.

    Everything that asks for less is followed at once, by one step. The budget rises by one smaller step where for
    `patience` readings nothing has spoken against it.
    """
    budget = min(max(state.budget, settings.lowest), settings.highest)
    battery, headroom, rate = map(_known, (reading.battery, reading.headroom, reading.tokens_per_second))

    # what the battery allows
    share = 1.0
    if battery is not None and not reading.charging:
        share = (battery - settings.battery_empty) / (settings.battery_full - settings.battery_empty)
        share = min(max(share, 0.0), 1.0)
    ceiling = settings.highest  # not by the formula, which may round to less
    if share < 1:
        ceiling = settings.lowest + (settings.highest - settings.lowest) * share

    # the budget at which the wanted rate is reached: a step takes time in proportion to its budget
    dense_rate = state.dense_rate
    measured = rate * budget if rate is not None and 0 < rate < math.inf else 0.0  # tokens over no time have no rate
    if measured > 0:  # a rate at no cost says nothing about dense steps
        dense_rate = measured if dense_rate == 0 else dense_rate + settings.smoothing * (measured - dense_rate)
    enough = math.inf
    if settings.wanted_rate is not None and dense_rate > 0:
        enough = dense_rate / settings.wanted_rate

    too_much = budget > ceiling or budget * (1 - settings.rate_slack) > enough
    too_hot = headroom is not None and headroom >= settings.hot
    if too_much or too_hot:
        step = settings.step_down * (2 if headroom is not None and headroom >= 1 else 1)
        return GovernorState(max(settings.lowest, budget - step), dense_rate, 0)

    raised = budget + settings.step_up
    may_rise = (
        budget < settings.highest
        and (share == 1.0 or budget + 2 * settings.step_up <= ceiling)
        and raised * (1 + settings.rate_slack) <= enough
        and (headroom is None or headroom <= settings.cool)
    )
    calm = state.calm + 1 if may_rise else 0
    if calm < settings.patience:
        return GovernorState(budget, dense_rate, calm)
    return GovernorState(min(settings.highest, raised), dense_rate, 0)


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
