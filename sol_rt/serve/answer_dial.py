"""The dial of one answer: what its client asked for, what holds it lower, and what it says of that at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sol_rt.budget.dial import DEFAULT_MAX_LOSS, KEEP_LOSS, budget_of_loss
from sol_rt.budget.losses import nats_of_share, share_of_nats
from sol_rt.generate.model import SolModel
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
        ceiling: the budget that its dial comes to, which nothing raises.
        asked: the request; None for one without any wish.

    Attributes:
        stream, ceiling: as given.
        priority: load does not lower it.
        most: the budget that load before this server leaves it.
        deadline_ms: the deadline as it was asked for; None for any.
        deadline: time of the monotonic clock by which the answer is to be complete, seconds; None for any.
        limit: tokens of the answer at most; None where only the context or the deadline ends it.
        made: tokens so far.
        held: the budget that was set; None while it has the dial that it asked for.
    """

    def __init__(self, stream: Stream, ceiling: float = 1.0, asked: Asked | None = None) -> None:
        asked = asked or Asked("", {})
        self.stream, self.ceiling, self.priority = stream, ceiling, asked.priority
        self.most = 1.0 if asked.priority else asked.most_budget
        self.deadline_ms = asked.deadline_ms
        self.deadline = None if asked.deadline_ms is None else asked.arrived_at + asked.deadline_ms / 1e3
        self.limit, self.made = asked.max_tokens, 0
        self.held: float | None = None
        self._asked = {name: value for name, value in asked.arguments.items() if name in DIAL}
        self._reason: Reason = "effort" if asked.by_effort else "asked"
        self._lowest = ceiling
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
            self._asked, self._reason, self.held = {"budget": budget}, "asked", None

    def begin(self, model: SolModel) -> None:
        """Takes what the prompt is expected to lose from what the ceiling allows; after the first token."""
        with self._moving:
            prompt_loss = self.stream.expected_loss or 0.0
            self.ceiling = ceiling_of(model, self._asked, self.stream.prompt_tokens, prompt_loss)
            self._lowest = min(self._lowest, self.ceiling)

    def needs_dense_prompt(self, model: SolModel) -> bool:
        """True if no cheaper variant may have read the prompt's tokens."""
        asked = self._asked
        if model.prefill != model.bundle.config.dense:  # the operator chose the run
            return False
        if model.hull is None or "lossless" in asked or "tokens_per_second" in asked:
            return True
        if asked.get("schedule", KEEP_LOSS[0]) not in KEEP_LOSS:
            return True
        return bool(asked.get("budget", 0.0) >= 1 or asked.get("max_loss", DEFAULT_MAX_LOSS) <= 0)

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


def ceiling_of(model: SolModel, arguments: Mapping[str, Any], context: int, prompt_loss: float = 0.0) -> float:
    """The budget that a request's dial comes to at a context of tokens, 0 to 1; 1 where that is not known.

    `prompt_loss`, nats a token, is what a prompt's run that the dial chose takes of the loss that is allowed.
    """
    if (budget := arguments.get("budget")) is not None:
        return float(budget)
    if (rate := arguments.get("tokens_per_second")) is not None:
        return min(1e3 / rate / model.cost.dense(context), 1.0)
    fixed = "schedule" in arguments or "lossless" in arguments
    max_loss = arguments.get("max_loss", None if fixed else DEFAULT_MAX_LOSS)
    if max_loss is None or model.hull is None:
        return 1.0
    if model.prefill == model.bundle.config.dense:  # else the operator chose the run
        max_loss = share_of_nats(nats_of_share(max_loss) - prompt_loss)
    return min(budget_of_loss(max_loss, model.hull, context), 1.0)
