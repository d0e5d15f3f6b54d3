"""`NativeDecoder`: decode steps of given tokens in the native core, which picks their actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import byref, sizeof

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.engine.step import StepOutput
from sol_rt.errors import UsageError, brief
from sol_rt.generate.loop import StepRecord
from sol_rt.generate.native import structs
from sol_rt.generate.native.callbacks import raising_of
from sol_rt.generate.native.library import core
from sol_rt.generate.native.own_schedule import OwnSchedule
from sol_rt.generate.native.session import NativeSession


class NativeDecoder:
    """One run of decode steps, as `Decoder` is one: the core picks the action, runs it and charges it.

    The session has one decoder at a time: a newer one takes over. Runs of anyone else on the session come between; the
    next step then raises UsageError, until `prefill` or `rewind`.

    Args:
        session: the session; its cache is used.
        options: the dial.
        prompt_action: the action that runs the prompt.
        own: the schedule of the caller's in `options`, or None.

    Attributes:
        actions: decode steps by action tag.
        output: the last run's output, in arrays of its own; its distribution is that of the next token.
        achieved, requested: cost of the steps so far, and what was asked for, as shares of their dense cost.
        floored: whether, at some step so far, even the cheapest action cost more than was asked for.

    Raises UsageError for contradictory or unreachable requests.
    """

    def __init__(
        self,
        session: NativeSession,
        options: structs.GenerateOptions,
        prompt_action: Action,
        own: OwnSchedule | None = None,
    ) -> None:
        self._session, self._prompt_action, self._own = session, prompt_action, own
        self.actions: Counter[str] = Counter()
        self.output: StepOutput
        self.achieved = self.requested = 1.0
        self.floored = False
        core().sol_session_plan(session.handle, byref(options))

    def prefill(self, tokens: Sequence[int]) -> None:
        """Runs the prompt on an empty cache. The account continues, and the schedule's step count begins anew."""
        self._session.reset()
        self.output = self._session.forward(tokens, self._prompt_action)

    def rewind(self, length: int, output: StepOutput) -> None:
        """Continues after the first `length` tokens in the cache, whoever ran them.

        Args:
            length: tokens to keep, 1 or more.
            output: the output of the last of them.
        """
        logits = np.ascontiguousarray(output.logits[-1], np.float32)
        hidden = np.ascontiguousarray(output.hidden[-1], np.float32)
        if not 1 <= length <= self._session.length:
            raise UsageError(
                f"rewind: got {brief(length)}, expected 1 to {self._session.length}, the tokens in the cache"
            )
        core().sol_session_resume(
            self._session.handle,
            length,
            logits.ctypes.data,
            logits.size,
            hidden.ctypes.data,
            hidden.size,
        )
        self.output = output

    def step(self, token: int) -> StepRecord:
        """Processes one token. `output` then holds the distribution of the next token.

        Raises UsageError, ContextError, NumericError, BusyError.
        """
        done = structs.Step(size=sizeof(structs.Step))
        results = self._session.results(1)
        with raising_of(self._own), raising_of(self._session.host):
            core().sol_session_step(self._session.handle, token, byref(results.rows), byref(results.seen), byref(done))
        self.output = results.output()
        action = Action.parse(done.action.decode())
        self.actions[action.tag] += 1
        self.achieved, self.requested = float(done.achieved_budget), float(done.requested_budget)
        self.floored = bool(done.floored)
        return StepRecord(action, done.context, done.cost, done.relative_cost)
