"""Generations whose budget moves.

`--governor` follows battery, heat and speed, `--tokens-per-second` the time that steps take.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sol_rt.cli.run.sensors import Sensors
from sol_rt.errors import QualityWarning, UsageError

if TYPE_CHECKING:
    from sol_rt.generate.model import SolModel
    from sol_rt.generate.results import GeneratedToken
    from sol_rt.generate.stream import Stream

EVERY = 16
"""Tokens from one reading to the next."""
_RATE_EVERY = 8  # tokens between two corrections of a rate
_RATE_HORIZON = 32  # tokens within which a rate makes up for what it was late, as far as _RATE_SWING allows
_RATE_SWING = 0.2
_CONTEXT = 512  # tokens for which a loss is turned into the lowest budget


class Governor:
    """Moves the budget of streams.

    Args:
        model: the model.
        sensors: battery and temperatures.
        highest: the highest budget, 1 by default.
        wanted_rate: tokens per second to keep, or None.
        max_loss: share by which perplexity may rise at the lowest budget, after 512 tokens; None for the least
            sensible budget, or for `default_lowest` if the export measured no losses.

    Attributes:
        max_loss: as given.

    Warns with QualityWarning of a loss whose budget is under the least sensible one. Raises UsageError if the machine
    reports nothing to govern by, or a budget or a rate is out of range. Also for a loss that the export did not measure
    or that `highest` does not keep.
    """

    def __init__(
        self,
        model: SolModel,
        sensors: Sensors,
        highest: float | None,
        wanted_rate: float | None,
        max_loss: float | None,
    ) -> None:
        from sol_rt.budget.dial import below_sensible
        from sol_rt.budget.governor import GovernorState

        self._sensors = sensors
        if wanted_rate is None and sensors.battery()[0] is None and sensors.headroom() is None:
            raise UsageError(
                "--governor: this machine tells neither battery nor temperature; give --tokens-per-second as the rate "
                "to keep, or leave --governor out"
            )
        self.max_loss, self._least = max_loss, _least_budget(model, max_loss)
        if model.hull is not None and (line := below_sensible(self._least, model.hull, _CONTEXT)):
            warnings.warn(line, QualityWarning, stacklevel=2)
        if max_loss is not None and highest is not None and highest < self._least - 0.005:
            raise UsageError(
                f"--budget {highest:g}: loses more than --max-loss {100 * max_loss:g}% allows; the least budget that "
                f"keeps it is {self._least:.2f}, so raise one of the two"
            )
        self._wanted_rate = wanted_rate
        self.limit(highest)
        self._state = GovernorState(self._settings.highest)

    def limit(self, highest: float | None) -> None:
        """Sets the highest budget, 1 by default. Raises UsageError for one out of range."""
        from sol_rt.budget.governor import GovernorSettings

        highest = 1.0 if highest is None else highest
        self._settings = GovernorSettings(min(self._least, highest), highest, self._wanted_rate)

    @property
    def budget(self) -> float:
        """The budget of the next step."""
        return min(max(self._state.budget, self._settings.lowest), self._settings.highest)

    def govern(self, run: Stream, tokens: Iterator[GeneratedToken]) -> Iterator[GeneratedToken]:
        """The tokens of `run`, whose budget moves meanwhile."""
        from sol_rt.budget.governor import Reading, next_budget

        milliseconds: list[float] = []
        for count, token in enumerate(tokens):
            yield token
            if count:  # the first one took the time of the prompt
                milliseconds.append(token.ms)
            if len(milliseconds) < EVERY or token.finish_reason is not None:
                continue
            battery, charging = self._sensors.battery()
            rate = 1e3 * len(milliseconds) / sum(milliseconds) if sum(milliseconds) > 0 else None
            reading = Reading(battery, charging, self._sensors.headroom(), rate)
            self._state = next_budget(self._state, reading, self._settings)
            run.budget = self.budget
            milliseconds.clear()

    def told(self) -> str:
        """One line: the budget now, and its bounds."""
        settings = self._settings
        return f"governor: budget {self.budget:.2f}, between {settings.lowest:.2f} and {settings.highest:.2f}"


class Rate:
    """Keeps runs at a rate: what their steps take corrects the measured times.

    Args:
        wanted: tokens per second.

    Attributes:
        wanted: as given.
    """

    def __init__(self, wanted: float) -> None:
        self.wanted = wanted
        self._slowness: float | None = None  # measured time of a step over that of the cost model

    def follow(self, run: Stream, tokens: Iterator[GeneratedToken]) -> Iterator[GeneratedToken]:
        """The tokens of `run`, which holds the rate by the cost model. Its costs are milliseconds.

        What it was late or early so far is made up for, at a fifth over or under the rate.
        """
        if self._slowness is not None:
            run.tokens_per_second = self.wanted * self._slowness
        step = 1e3 / self.wanted
        late = 0.0
        recent: list[float] = []
        for count, token in enumerate(tokens):
            yield token
            if not count:  # it took the time of the prompt
                continue
            late += token.ms - step
            recent.append(token.ms / token.cost)
            if len(recent) < _RATE_EVERY or token.finish_reason is not None:
                continue
            median = statistics.median(recent)  # a stall makes one step late, not all of them
            recent.clear()
            if median == 0:  # the clock is too coarse
                continue
            self._slowness = median if self._slowness is None else (self._slowness + median) / 2
            share = min(max(1 - late / step / _RATE_HORIZON, 1 - _RATE_SWING), 1 + _RATE_SWING)
            run.tokens_per_second = self.wanted * self._slowness / share


def _least_budget(model: SolModel, max_loss: float | None) -> float:
    """The lowest budget of a governor. Raises UsageError for a loss where the export measured none."""
    from sol_rt.budget.dial import Dial, budget_of_loss, sensible_budget
    from sol_rt.budget.governor import default_lowest

    if max_loss is not None:
        model.check(Dial(max_loss=max_loss))
    if model.hull is None:
        return default_lowest()
    return sensible_budget(model.hull, _CONTEXT) if max_loss is None else budget_of_loss(max_loss, model.hull, _CONTEXT)


def check_governable(settings: Mapping[str, Any], wanted_rate: float | None, max_loss: float | None) -> None:
    """Raises UsageError for settings of `SolModel.stream` that hold something else than a budget, and for a rate that
    no machine can keep. Also for a loss that the schedule does not keep.
    """
    from sol_rt.cli.loading import check_rate

    check_rate(wanted_rate)
    check_keeps_loss(settings.get("schedule"), max_loss)
    if wrong := _ungovernable(settings):
        names = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise UsageError(f"--governor: moves a budget; leave out {names}")


def check_keeps_loss(schedule: str | None, max_loss: float | None) -> None:
    """Raises UsageError for a schedule that moves with the budget and keeps no loss, where there is a loss to keep."""
    from sol_rt.budget.dial import KEEP_LOSS
    from sol_rt.budget.schedules import is_constant

    if max_loss is None or schedule is None or schedule in KEEP_LOSS or is_constant(schedule):
        return
    raise UsageError(f"--max-loss: the schedule {schedule} keeps no loss; leave out one of the two")


def is_governable(settings: Mapping[str, Any]) -> bool:
    """True if a run with these settings of `SolModel.stream` holds a budget."""
    return not _ungovernable(settings)


def _ungovernable(settings: Mapping[str, Any]) -> list[str]:
    from sol_rt.budget.schedules import is_constant

    wrong = [name for name in ("max_loss", "kv_density", "channel_density", "bits") if settings.get(name) is not None]
    schedule = settings.get("schedule")
    if schedule is not None and is_constant(schedule):
        wrong.append("schedule")
    if settings.get("replay") is not None:
        wrong.append("replay")
    if settings.get("lossless"):
        wrong.append("lossless")
    return wrong
