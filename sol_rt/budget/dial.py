"""The dial: what a caller asks of the decode steps. The native core holds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sol_rt.budget.cost.model import in_unit
from sol_rt.budget.hull import Hull
from sol_rt.budget.losses import nats_of_share
from sol_rt.budget.schedules import NAMES, Schedule
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import UsageError, brief

DEFAULT_MAX_LOSS = 0.005
"""The `Dial.max_loss` that applies if nothing is asked for."""
KEEP_LOSS = ("hull", "sol")
"""Schedules that lose no more than the hull does at the same budget."""
SENSIBLE_LOSS = 0.1
"""Share by which perplexity may rise at a bundle's sensible budgets. Long exact answers suffer before that."""

MakeSchedule = Callable[[Any], Schedule]
"""Makes a schedule for one run, of a `Controller`: it has the actions and reports which of them keep the budget."""


@dataclass(frozen=True)
class AxisTargets:
    """Mean settings to hold on the three axes; an axis without a target stays at its full value.

    Attributes:
        kv_density: mean share of the old cached tokens that attention reads, 0 to 1.
        channel_density: mean share of the layers' base-plane weights read, 0 to 1.
        bits: mean weight bits.
    """

    kv_density: float | None = None
    channel_density: float | None = None
    bits: float | None = None

    def any(self) -> bool:
        """True if any axis has a target."""
        return any(getattr(self, field.name) is not None for field in fields(self))


@dataclass(frozen=True)
class Dial:
    """Request for decode steps: at most one of a budget, axis targets, a rate, and a loss.

    Attributes:
        budget: share of the dense cost, 0 to 1; 1 is exactly dense. None if something else is asked for, or nothing:
            then DEFAULT_MAX_LOSS applies if the bundle's losses were measured, else the steps are dense.
        schedule: `sol`, `hull`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`; None for the bundle's
            default at the budget.
            Or a function that takes the run's controller and returns a schedule of your own.
        kv_density, channel_density: mean share of old cached tokens, of base-plane weights.
        bits: mean weight bits.
        tokens_per_second: decode rate to hold by the times of the cost model. The commands correct these as they go.
        max_loss: share by which perplexity may rise, for example 0.01; the cheapest mix of actions within it runs.
        seed: seed of the schedule `random`; None draws a fresh one.
    """

    budget: float | None = None
    schedule: str | MakeSchedule | None = None
    kv_density: float | None = None
    channel_density: float | None = None
    bits: float | None = None
    tokens_per_second: float | None = None
    seed: int | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for values of another type; the core checks their range."""
        for name in ("budget", "kv_density", "channel_density", "bits", "tokens_per_second", "max_loss"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_number(name, value))
        if self.schedule is not None and not isinstance(self.schedule, str) and not callable(self.schedule):
            raise UsageError(f"--schedule: got {brief(self.schedule)}, expected a name or a function that makes one")
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or self.seed < 0
        ):
            raise UsageError(f"--seed: got {brief(self.seed)}, expected a whole number from 0")

    @property
    def axis_targets(self) -> AxisTargets:
        """The axis targets, each None where it is not asked for."""
        return AxisTargets(self.kv_density, self.channel_density, self.bits)

    @property
    def is_set(self) -> bool:
        """True if the dial asks for anything but a schedule and dense steps."""
        return self.budget not in (None, 1.0) or self.asks_for_no_budget

    @property
    def is_empty(self) -> bool:
        """True if the dial asks for nothing but a schedule."""
        return self.budget is None and not self.asks_for_no_budget

    @property
    def asks_for_no_budget(self) -> bool:
        """True if the dial asks for something in place of a budget."""
        return self.axis_targets.any() or self.tokens_per_second is not None or self.max_loss is not None


def as_number(name: str, value: object) -> float:
    """The value of an option as a float. Raises UsageError for another type."""
    refused = UsageError(f"--{name.replace('_', '-')}: got {brief(value)}, expected a number")
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise refused
    try:
        return float(value)
    except OverflowError:
        raise refused from None


def check_budget(budget: float) -> None:
    """Raises UsageError for a budget out of range, before the core has a run that it could check it for."""
    if not (math.isfinite(budget) and 0 <= budget <= 1):
        raise UsageError(f"--budget: got {budget}, expected a share of the dense cost from 0 to 1")


def sensible_budget(hull: Hull, context: int) -> float:
    """The least budget at which perplexity is at most SENSIBLE_LOSS over dense, as measured."""
    return budget_of_loss(SENSIBLE_LOSS, hull, context)


def budget_of_loss(max_loss: float, hull: Hull, context: int) -> float:
    """The least budget at which perplexity rises by at most the share `max_loss` over dense, as measured."""
    return hull.cost_at(nats_of_share(max_loss), context)


def below_sensible(asked: float, hull: Hull, context: int) -> str:
    """A line for the user if a budget is below the least sensible one; empty otherwise."""
    least = sensible_budget(hull, context)
    if asked >= least - 0.005:
        return ""
    return (
        f"this asks for {asked:.2f} of the dense cost {in_unit(hull.cost_model)}; below {least:.2f} this bundle's "
        f"perplexity is more than {SENSIBLE_LOSS:.0%} over dense: expect broken text "
        "(sol-rt inspect lists the sensible budgets)"
    )


def untried_states(config: SolConfig, dial: Dial | None = None) -> str:
    """A line for the user if cheap steps may run on layers with a state; empty otherwise.

    Without a dial it is about a policy that is trained.
    """
    if not config.kv.convolving:
        return ""
    if dial is None:
        instead = "the policy with fixed actions"
    else:
        keeps_loss = dial.is_empty and config.losses_measured and dial.schedule in (None, *KEEP_LOSS)
        own = dial.schedule is not None and dial.schedule not in ("dense", f"fixed:{config.dense.tag}", *NAMES)
        if not (dial.is_set or keeps_loss or own):
            return ""
        instead = "with --budget 1"
    return (
        "what cheap steps do to the states of short convolutions was measured on random weights only "
        f"(docs/reference/models.md); compare {instead}"
    )
