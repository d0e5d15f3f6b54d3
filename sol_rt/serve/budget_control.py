"""Sets the budgets of the answers that run, by load, deadlines, and battery and heat.

The rule: what a client asks for, by dial or by effort, is a ceiling. Load, or a proxy that knows of load elsewhere, may
lower it to the operator's minimum, unless the request has `service_tier: "priority"`. A deadline lowers its own answer
alone, and the governor lowers all. A client that asked for less than the minimum keeps what it asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from statistics import median
from typing import Protocol

from sol_rt.budget.dial import sensible_budget
from sol_rt.budget.governor import GovernorSettings, GovernorState, Reading, default_lowest, next_budget
from sol_rt.generate.model import SolModel
from sol_rt.generate.results import GeneratedToken
from sol_rt.generate.stream import Stream
from sol_rt.serve.answer_dial import AnswerDial, Reason
from sol_rt.serve.deadline import DeadlineImpossibleError, Pace, budget_in_time, estimate
from sol_rt.serve.load import Load, LoadSettings, LoadState, next_state
from sol_rt.serve.request import Asked, FieldError

_READING_SECONDS, _GOVERNOR_SECONDS = 0.05, 1.0
_CONTEXT = 512  # tokens for which the least sensible budget is taken
_NEWEST = 0.1
"""Weight of the newest time in a mean."""
_LEAST_TIMES = 4
"""Steps of each answer, after its budget moved, from which on the time between tokens counts."""


class Runs(Protocol):
    """A job, as the control sees it."""

    dial: AnswerDial
    background: bool


def least_budget(model: SolModel) -> float:
    """The operator's minimum where none is given: the least sensible budget, as far as losses were measured."""
    return default_lowest() if model.hull is None else sensible_budget(model.hull, _CONTEXT)


class BudgetControl:
    """Sets budgets between rounds, in the scheduler's thread.

    Args:
        model: runs the answers.
        load: bounds and targets.
        sensors: reads battery and heat; None for no governor.
        background_share: share of the rounds in which answers in the background take a step beside others.

    Attributes:
        pace: times so far.
    """

    def __init__(
        self, model: SolModel, load: LoadSettings, sensors: Callable[[], Reading] | None, background_share: float
    ) -> None:
        self._model, self._load, self._sensors, self._background_share = model, load, sensors, background_share
        self.pace = Pace(model.cost.dense(_CONTEXT) if model.cost.name == "measured" else None)
        self._state, self._read_at, self._counts = LoadState(load.highest), 0.0, (0, 0)
        self._between: list[float] = []
        self._governed, self._governed_at = GovernorState(load.highest), 0.0

    def dial(self, stream: Stream, asked: Asked) -> AnswerDial:
        """The dial of an answer that is about to wait. Raises FieldError for one that no budget moves."""
        load = self._load
        moves = load.moves or load.highest < 1 or self._sensors is not None or asked.deadline_ms is not None
        fixed = next((name for name in ("schedule", "lossless") if name in asked.arguments), None)
        if moves and fixed is not None and not stream.movable:
            raise FieldError(fixed, "this server moves budgets; ask for a budget")
        dial = AnswerDial(stream, asked)
        if dial.limit is not None:
            dial.limit = min(dial.limit, self._model.engine.max_context - stream.prompt_tokens)
        return dial

    def took(self, token: GeneratedToken, seconds: float) -> None:
        """Notes the time of a decode step, whose token says what it cost."""
        if token.relative_cost > 0:
            dense_ms = _mean(self.pace.dense_ms, 1e3 * seconds / token.relative_cost)
            self.pace = Pace(dense_ms, self.pace.prompt_rate, self.pace.answer_seconds)

    def waited(self, seconds: float) -> None:
        """Notes the time between two tokens of an answer."""
        if self._load.target_latency_ms is not None:
            self._between.append(seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """Notes the time of a part of a prompt."""
        if seconds > 0:
            prompt_rate = _mean(self.pace.prompt_rate, tokens / seconds)
            self.pace = Pace(self.pace.dense_ms, prompt_rate, self.pace.answer_seconds)

    def ended(self, seconds: float) -> None:
        """Notes the time of an answer that has ended."""
        self.pace = Pace(self.pace.dense_ms, self.pace.prompt_rate, _mean(self.pace.answer_seconds, seconds))

    def admit(self, dial: AnswerDial, running: Sequence[Runs], *, ahead: int, sessions: int, prompt: int) -> None:
        """Raises DeadlineImpossibleError for an answer's deadline that the lowest budget does not meet.

        Args:
            dial: of the answer.
            running: the others.
            ahead: answers that wait before it, and 1 where no session is free.
            sessions: answers that run at a time.
            prompt: tokens of the prompt that have to be read.
        """
        assert dial.deadline is not None
        assert dial.deadline_ms is not None
        left = dial.deadline - time.monotonic()
        least = max(min(self._load.lowest, dial.ceiling), self._cheapest(dial.stream.prompt_tokens))
        others = sum(self._share(job, len(running)) * min(job.dial.ceiling, self._load.lowest) for job in running)
        tokens = 1 if dial.limit is None else dial.limit
        found = estimate(
            self.pace, ahead=ahead, sessions=sessions, prompt=prompt, tokens=tokens, budget=least, others=others
        )
        if left < found.seconds or left <= 0:
            raise DeadlineImpossibleError(dial.deadline_ms, left, found)

    def turn(self, jobs: Sequence[Runs], waiting: int) -> None:
        """Sets the budgets of the answers that run, before a round."""
        now, load = time.monotonic(), self._load
        own = any(job.dial.deadline is not None or job.dial.most < 1 for job in jobs)
        if not (load.moves or self._sensors or own or load.highest < 1):
            return
        self._follow_load(jobs, waiting, now)
        self._follow_sensors(now)
        for job in jobs:
            budget, reason = self._budget_of(job, jobs, now)
            job.dial.hold(budget, reason)

    def _budget_of(self, job: Runs, jobs: Sequence[Runs], now: float) -> tuple[float, Reason]:
        """The lowest of all budgets that hold an answer, and the reason of that one."""
        dial, load = job.dial, self._load
        held: list[tuple[float, Reason]] = [(min(dial.ceiling, load.highest), "asked")]
        if load.moves and not dial.priority:
            held.append((self._state.budget, "load"))
        if dial.most < 1:
            held.append((max(dial.most, load.lowest), "load"))
        if self._sensors is not None:
            held.append((self._governed.budget, "governor"))
        if dial.deadline is not None and dial.limit is not None and self.pace.dense_ms:
            others = sum(self._share(each, len(jobs)) * each.dial.budget for each in jobs if each is not job)
            needed = budget_in_time(dial.deadline - now, dial.limit - dial.made, self.pace.dense_ms, others)
            held.append((max(needed, load.lowest), "deadline"))
        return min(held, key=lambda each: each[0])

    def _follow_load(self, jobs: Sequence[Runs], waiting: int, now: float) -> None:
        counts = len(jobs), waiting
        if not self._load.moves or (counts == self._counts and now - self._read_at < _READING_SECONDS):
            return
        self._counts, self._read_at = counts, now
        known = len(self._between) >= _LEAST_TIMES * max(len(jobs), 1)
        # no budget of steps changes what prompts between them take, so the middle counts, not the mean
        between_ms = 1e3 * median(self._between) if known else None
        before, self._state = self._state, next_state(self._state, Load(waiting, between_ms), self._load)
        if known or before.budget != self._state.budget:
            self._between = []

    def _follow_sensors(self, now: float) -> None:
        if self._sensors is None or now - self._governed_at < _GOVERNOR_SECONDS:
            return
        self._governed_at = now
        settings = GovernorSettings(self._load.lowest, self._load.highest)
        with suppress(Exception):  # a reading that fails keeps the last one
            self._governed = next_budget(self._governed, self._sensors(), settings)

    def _share(self, job: Runs, count: int) -> float:
        return self._background_share if job.background and count > 1 else 1.0

    def _cheapest(self, context: int) -> float:
        """Relative cost of the cheapest action; 0 where that is not known."""
        return 0.0 if self._model.hull is None else self._model.hull.corners(context)[0].cost


def _mean(before: float | None, newest: float) -> float:
    return newest if before is None else before + _NEWEST * (newest - before)
