"""The policy that turns the dial by load: which budget answers may have as more of them run and wait. Pure functions.

Budgets are shares of the dense cost, 0 to 1. The time between two tokens of an answer is the sum of one step of each
answer that runs. So the budget that keeps a target follows from the time of a dense step, without trial and error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sol_rt.errors import UsageError

RISE_AFTER = 10
"""Readings in a row that allow more, before the budget rises."""
RISE = 0.05
"""Budget by which it rises at most at a reading."""
BAND = 0.02
"""Differences up to this move nothing, but at the bounds."""


@dataclass(frozen=True)
class LoadSettings:
    """Bounds and targets of the operator.

    Attributes:
        lowest, highest: bounds of the budgets.
        target_latency_ms: time between two tokens of an answer that load may take; None for any.
        target_queue: answers that may wait before budgets fall; with twice as many the lowest holds. None for any.

    Raises UsageError for values out of range.
    """

    lowest: float
    highest: float = 1.0
    target_latency_ms: float | None = None
    target_queue: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest <= 1:
            raise UsageError(
                f"--budget-min {self.lowest:g} --budget-max {self.highest:g}: expected 0 to 1, the minimum first"
            )
        if self.target_latency_ms is not None and not self.target_latency_ms > 0:
            raise UsageError(f"--target-latency: got {self.target_latency_ms:g}, expected milliseconds over 0")
        if self.target_queue is not None and self.target_queue < 0:
            raise UsageError(f"--target-queue: got {self.target_queue}, expected 0 or more")

    @property
    def moves(self) -> bool:
        """True if load may lower budgets."""
        return self.target_latency_ms is not None or self.target_queue is not None


@dataclass(frozen=True)
class Running:
    """An answer that runs.

    Attributes:
        ceiling: the budget that it asked for.
        share: share of the rounds in which it takes a step, 0 to 1.
        movable: False where load may not lower its budget.
    """

    ceiling: float
    share: float = 1.0
    movable: bool = True


@dataclass(frozen=True)
class Load:
    """A reading.

    Attributes:
        running: answers that run.
        waiting: answers in the queue.
        dense_ms: time of a dense step; None before one was measured.
    """

    running: tuple[Running, ...]
    waiting: int
    dense_ms: float | None


@dataclass(frozen=True)
class LoadState:
    """State of the policy between readings.

    Attributes:
        budget: the most that load allows an answer; at first the highest budget.
        quiet: readings in a row that allow more.
    """

    budget: float
    quiet: int = 0


def wanted_budget(load: Load, settings: LoadSettings) -> float:
    """The most that an answer may have under this load. It never rises with an answer more, running or waiting."""
    found = settings.highest
    if settings.target_queue is not None and load.waiting > settings.target_queue:
        over = (load.waiting - settings.target_queue) / max(settings.target_queue, 1)
        found -= min(over, 1.0) * (settings.highest - settings.lowest)
    if settings.target_latency_ms is not None and load.dense_ms is not None and load.dense_ms > 0:
        found = min(found, _level(load.running, settings.target_latency_ms / load.dense_ms))
    return min(max(found, settings.lowest), settings.highest)


def next_state(state: LoadState, load: Load, settings: LoadSettings) -> LoadState:
    """The state after a reading. Its budget is never outside the bounds.

    A load that asks for less is followed at once. The budget rises step by step, and only where RISE_AFTER readings in
    a row allow it, so that an answer that comes and goes does not move it up and down.
    """
    held = min(max(state.budget, settings.lowest), settings.highest)
    wanted = wanted_budget(load, settings)
    if abs(wanted - held) <= BAND and settings.lowest < wanted < settings.highest:
        return LoadState(held)
    if wanted <= held:
        return LoadState(wanted)
    quiet = min(state.quiet + 1, RISE_AFTER)
    return LoadState(held if quiet < RISE_AFTER else min(wanted, held + RISE), quiet)


def _level(running: Sequence[Running], room: float) -> float:
    """The budget at which a round costs `room` dense steps, where answers have what they asked for or this budget."""
    room -= sum(each.share * each.ceiling for each in running if not each.movable)
    movable = sorted((each for each in running if each.movable), key=lambda each: each.ceiling)
    shares = sum(each.share for each in movable)
    for each in movable:
        if shares <= 0 or room <= shares * each.ceiling:
            break
        room -= each.share * each.ceiling
        shares -= each.share
    else:
        return 1.0 if room >= 0 else 0.0
    return min(max(room / shares, 0.0), 1.0) if shares > 0 else 1.0
