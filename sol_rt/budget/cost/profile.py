"""Measures what decode steps cost on this device: the core times them and fits the lines of the measured cost model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import UsageError
from sol_rt.progress import Progress

if TYPE_CHECKING:
    from sol_rt.generate.native.engine import Engine

_LONGEST = 1e9  # seconds


@dataclass(frozen=True)
class Timing:
    """A measured step of one action.

    Attributes:
        action: the action.
        context: tokens in the cache before the step.
        milliseconds: lower quartile of the repeats.
        modelled: the same by the fitted line.
    """

    action: Action
    context: int
    milliseconds: float
    modelled: float

    @property
    def error(self) -> float:
        """modelled / measured - 1: relative error of the fitted line."""
        return self.modelled / self.milliseconds - 1

    def as_json(self) -> dict[str, Any]:
        """The row that `sol-rt profile --json` prints."""
        return {"tag": self.action.tag, "context": self.context, "ms": self.milliseconds, "model_ms": self.modelled}


@dataclass(frozen=True)
class Profile:
    """The fitted table and its timings."""

    table: CostTable
    rows: list[Timing]


def measure(
    engine: Engine,
    bundle: Bundle,
    contexts: Sequence[int],
    repeats: int,
    progress: Progress,
    *,
    seconds: float = math.inf,
) -> Profile:
    """Times every variant at every KV density of the bundle's actions.

    Args:
        engine: an engine of the bundle; its cache is overwritten.
        bundle: the bundle to measure.
        contexts: context lengths in tokens; those beyond the model's context are left out.
        repeats: timed steps of each action at each context.
        progress: progress callback.
        seconds: about how long to take. There are then fewer repeats, but at least 5, and lengths are left out if
            filling the cache to them would take more than 30% of this time.

    Raises:
        UsageError: no context length is usable.
    """
    room = bundle.config.model.max_context - 1
    lengths = sorted({length for length in contexts if 1 <= length <= room})
    if not lengths:
        raise UsageError(f"profile: got contexts {list(contexts)}, expected lengths from 1 to {room}")
    text, timings = engine.profile(lengths, repeats, min(seconds, _LONGEST), engine.device, progress)
    cost = MeasuredCost(bundle.config, CostTable.from_json(text))
    return Profile(cost.cost_table, [Timing(*timing, cost.step(*timing[:2])) for timing in timings])
