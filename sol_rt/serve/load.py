"""The policy that turns the dial by load: which budget answers may have as more of them run and wait. Pure functions.

Budgets are shares of the dense cost, 0 to 1. Answers that step together share reads of the weights, so a lower budget
may save less time than its share. The time between two tokens is therefore measured, and the budget follows it.
"""

from __future__ import annotations

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
class Load:
    """A reading.

    Attributes:
        waiting: answers in the queue.
        between_ms: median time between two tokens of an answer under the budget that holds; None before it is known.
    """

    waiting: int
    between_ms: float | None


@dataclass(frozen=True)
class LoadState:
    """State of the policy between readings.

    Attributes:
        budget: the most that load allows an answer; at first the highest budget.
        quiet: readings in a row that allow more.
    """

    budget: float
    quiet: int = 0


def wanted_budget(held: float, load: Load, settings: LoadSettings) -> float:
    """The most that an answer may have under this load.

    Args:
        held: the budget under which times were measured. Where they grow with it in proportion, the budget that is
            returned has the target's; where they grow less, more readings find it.
        load: the reading.
        settings: bounds and targets.
    """
    found = settings.highest
    if settings.target_queue is not None and load.waiting > settings.target_queue:
        over = (load.waiting - settings.target_queue) / max(settings.target_queue, 1)
        found -= min(over, 1.0) * (settings.highest - settings.lowest)
    if settings.target_latency_ms is not None:
        found = min(found, held * settings.target_latency_ms / load.between_ms if load.between_ms else held)
    return min(max(found, settings.lowest), settings.highest)


def next_state(state: LoadState, load: Load, settings: LoadSettings) -> LoadState:
    """The state after a reading. Its budget is never outside the bounds.

    A load that asks for less is followed at once. The budget rises step by step, and only where RISE_AFTER readings in
    a row allow it, so that an answer that comes and goes does not move it up and down.
    """
    held = min(max(state.budget, settings.lowest), settings.highest)
    wanted = wanted_budget(held, load, settings)
    if abs(wanted - held) <= BAND and settings.lowest < wanted < settings.highest:
        return LoadState(held)
    if wanted <= held:
        return LoadState(wanted)
    quiet = min(state.quiet + 1, RISE_AFTER)
    return LoadState(held if quiet < RISE_AFTER else min(wanted, held + RISE), quiet)
