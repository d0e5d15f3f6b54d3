"""The dial of one answer: what its client asked for, what holds it lower, and what it says of that at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sol_rt.generate.results import Generation
from sol_rt.generate.stream import Stream
from sol_rt.serve.request import DIAL, Asked

Reason = Literal["asked", "effort", "load", "deadline", "governor"]
_TOUCH = 0.01
"""Budgets closer than this are one."""


@dataclass(frozen=True)
class Served(Generation):
    """The summary of an answer of a server.

    Attributes:
        asked: the dial of the request, or of its effort; empty where it had none.
        reason: what held the lowest budget.
        deadline_met: the answer was complete in time; None where it had no deadline.
    """

    asked: Mapping[str, Any] = field(default_factory=dict)
    reason: Reason = "asked"
    deadline_met: bool | None = None

    @property
    def told(self) -> dict[str, Any]:
        """The part of the object `sol` that the server adds."""
        told = {"asked": dict(self.asked), "reason": self.reason}
        return told if self.deadline_met is None else {**told, "deadline_met": self.deadline_met}


class AnswerDial:
    """The dial of an answer that waits or runs.

    Args:
        stream: the answer.
        asked: the request; None for one without any wish.

    Attributes:
        stream: as given.
        ceiling: the budget that its dial comes to, which nothing but its client raises.
        priority: load does not lower it.
        most: the budget that load before this server leaves it.
        deadline_ms: the deadline as it was asked for; None for any.
        deadline: time of the monotonic clock by which the answer is to be complete, seconds; None for any.
        limit: tokens of the answer at most; None where only the context or the deadline ends it.
        made: tokens so far.
        held: the budget that was set; None while it has the dial that it asked for.
    """

    def __init__(self, stream: Stream, asked: Asked | None = None) -> None:
        asked = asked or Asked("", {})
        self.stream, self.ceiling, self.priority = stream, _ceiling_of(stream), asked.priority
        self.most = 1.0 if asked.priority else asked.most_budget
        self.deadline_ms = asked.deadline_ms
        self.deadline = None if asked.deadline_ms is None else asked.arrived_at + asked.deadline_ms / 1e3
        self.limit, self.made = asked.max_tokens, 0
        self.held: float | None = None
        self._asked = {name: value for name, value in asked.arguments.items() if name in DIAL}
        self._reason: Reason = "effort" if asked.by_effort else "asked"
        self._lowest, self._moved = self.ceiling, False
        self._cut = False
        self._moving = threading.Lock()  # between a client that asks and the scheduler, which holds

    @property
    def budget(self) -> float:
        """The budget of the next step."""
        return self.ceiling if self.held is None else self.held

    def ask(self, budget: float) -> None:
        """Moves the dial for the client. Raises UsageError as `Stream.budget`."""
        with self._moving:
            self.stream.budget = budget
            self.ceiling = self._lowest = budget
            self._asked, self._reason, self.held, self._moved = {"budget": budget}, "asked", None, True

    def begin(self) -> None:
        """Takes what the prompt is expected to lose from what the ceiling allows; after the first token."""
        with self._moving:
            if not self._moved:
                self.ceiling = _ceiling_of(self.stream)
                self._lowest = min(self._lowest, self.ceiling)

    def hold(self, budget: float, reason: Reason) -> None:
        """Holds the next steps to a budget at most the ceiling."""
        with self._moving:
            budget = min(budget, self.ceiling)
            at_ceiling = budget > self.ceiling - _TOUCH
            if not self.stream.movable or (self.held is None and at_ceiling):
                return
            if budget < self._lowest - _TOUCH:
                self._lowest, self._reason = budget, reason
            if self.held is None or abs(budget - self.held) >= _TOUCH or (at_ceiling and self.held != self.ceiling):
                self.held = self.ceiling if at_ceiling else budget
                self.stream.budget = self.held

    def late(self, spare: float = 0.0) -> bool:
        """True once the deadline is past, or nearer than `spare` seconds."""
        return self.deadline is not None and time.monotonic() + spare > self.deadline

    def cut(self) -> None:
        """Says that the deadline ends the answer."""
        self._cut = True

    def served(self, result: Generation) -> Served:
        """The summary with what the server knows of it."""
        found = {each.name: getattr(result, each.name) for each in fields(Generation)}
        complete = not self._cut or self.limit is None
        met = None if self.deadline is None else complete and not self.late()
        finish = "length" if self._cut else result.finish_reason
        return Served(**(found | {"finish_reason": finish}), asked=self._asked, reason=self._reason, deadline_met=met)


def _ceiling_of(stream: Stream) -> float:
    budget = stream.asked_budget
    return 1.0 if budget is None else budget
