"""Deadlines of answers: what meeting one takes, and which budget keeps it. Pure functions; times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from sol_rt.errors import SolError
from sol_rt.serve.request import FieldError

SPARE = 0.05
"""Share of the time left that is kept for what takes longer than it was measured to."""


class DeadlineImpossibleError(FieldError):
    """A deadline that the lowest budget does not meet.

    Attributes:
        field: `deadline_ms`.
        code: for programs.
    """

    code = "deadline_impossible"

    def __init__(self, deadline_ms: float, left: float, estimate: Estimate) -> None:
        got = f"got {deadline_ms:g}, of which {1e3 * left:.0f} are left"
        super().__init__("deadline_ms", f"{got}; expected at least {estimate}; ask for fewer tokens")


class DeadlineMissedError(SolError):
    """A deadline that passed before the first token."""

    def __init__(self) -> None:
        super().__init__("deadline_ms: it passed before the first token; ask again with more time or a shorter prompt")


@dataclass(frozen=True)
class Pace:
    """Times as this server measured them; None for what was not measured yet, which counts as nothing.

    Attributes:
        dense_ms: milliseconds of a dense step.
        prompt_rate: tokens of prompts a second.
        answer_seconds: time of an answer, from its session to its end.
    """

    dense_ms: float | None = None
    prompt_rate: float | None = None
    answer_seconds: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Time that an answer takes.

    Attributes:
        queue, prompt, tokens: seconds of the parts.
        budget: the budget of the tokens.
    """

    queue: float
    prompt: float
    tokens: float
    budget: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.queue + self.prompt + self.tokens

    def __str__(self) -> str:
        return (
            f"{1e3 * self.seconds:.0f} ms: queue {self.queue:.2f} s, prompt {self.prompt:.2f} s, tokens "
            f"{self.tokens:.2f} s at budget {self.budget:.2f}"
        )


def estimate(
    pace: Pace, *, ahead: int, sessions: int, prompt: int, tokens: int, budget: float, others: float
) -> Estimate:
    """Time of an answer that has not begun.

    Args:
        pace: times so far.
        ahead: answers that wait before it, and 1 where no session is free.
        sessions: answers that run at a time.
        prompt: tokens of the prompt that have to be read.
        tokens: tokens of the answer.
        budget: its budget.
        others: what the others cost in a round, in dense steps.
    """
    return Estimate(
        ahead / sessions * (pace.answer_seconds or 0.0),
        prompt / pace.prompt_rate if pace.prompt_rate else 0.0,
        max(tokens - 1, 0) * (budget + others) * (pace.dense_ms or 0.0) / 1e3,  # the prompt gives the first token
        budget,
    )


def budget_in_time(left: float, tokens: int, dense_ms: float, others: float) -> float:
    """The budget at which `tokens` more come within `left` seconds; under 0 where none does.

    `others` is what the others cost in a round, in dense steps.
    """
    round_ms = 1e3 * left * (1 - SPARE) / max(tokens, 1)
    return round_ms / dense_ms - others
