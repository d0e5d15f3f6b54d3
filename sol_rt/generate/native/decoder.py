"""Decode steps of given tokens, one by one, whose actions the core picks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from ctypes import byref, sizeof
from typing import NamedTuple

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.engine.step import StepOutput
from sol_rt.errors import BusyError, UsageError, brief
from sol_rt.generate.native.callbacks import raising_of
from sol_rt.generate.native.options import Options
from sol_rt.generate.native.session import Session, is_whole
from sol_rt.generate.prompt import token_ids
from sol_rt.native import structs
from sol_rt.native.library import core


class StepRecord(NamedTuple):
    """Record of a decode step.

    Attributes:
        action: the action that ran.
        context: tokens in the cache before the step.
        cost: what it cost, the policy's run included, in the cost model's unit.
        relative: the same in dense steps.
    """

    action: Action
    context: int
    cost: float
    relative: float


class Decoder:
    """One run of decode steps: the core picks the action, runs it and charges it.

    A session has one at a time, the newest. Its cache may be anyone's in between: `prefill` and `rewind` take it back.

    Args:
        session: the session; its cache is used.
        options: the dial.
        prompt_action: the action that runs the prompt.

    Attributes:
        actions: decode steps by action tag.
        output: the last run's output, in arrays of its own; its distribution is that of the next token.
        achieved, requested: cost of the steps so far, and what was asked for, as shares of their dense cost. Before the
            first step they are 1 and the dial's budget, 1 where it has none.
        floored: whether, at some step so far, even the cheapest action cost more than was asked for.
        steps: number of steps so far.

    Raises UsageError for contradictory or unreachable requests.
    """

    def __init__(self, session: Session, options: Options, prompt_action: Action) -> None:
        self._session, self._options, self._prompt_action = session, options, prompt_action
        self.actions: Counter[str] = Counter()
        self.output: StepOutput
        budget = options.struct.budget  # not a number where something else is asked for
        self.achieved, self.requested = 1.0, 1.0 if math.isnan(budget) else float(budget)
        self.floored = False
        self.steps = 0
        self._changes = -1  # the session's count after this decoder's last run
        with session.exclusive():
            core().sol_session_plan(session.handle, byref(options.struct))
            session.displace()
            session.planned = self

    def prefill(self, tokens: Sequence[int], *, reuse: bool = False) -> None:
        """Runs the prompt. The account continues, and the schedule's step count begins anew.

        With `reuse`, the tokens that the cache begins with are not run again, but for the last one.
        """
        session = self._session
        with session.exclusive():
            self._require_plan()
            kept = common_prefix(session.tokens, tokens[:-1]) if reuse else 0
            session.truncate(kept)
            self.output = session.forward(tokens[kept:], self._prompt_action)
            self._take()

    def rewind(self, length: int, output: StepOutput) -> None:
        """Continues after the first `length` tokens in the cache, whoever ran them.

        The account continues, too: what was spent before counts towards the budget. The schedule's step count begins
        anew.

        Args:
            length: tokens to keep, 1 or more.
            output: the output of the last of them.
        """
        logits = np.ascontiguousarray(output.logits[-1], np.float32)
        hidden = np.ascontiguousarray(output.hidden[-1], np.float32)
        session = self._session
        with session.exclusive():
            self._require_plan()
            if not is_whole(length) or not 1 <= length <= session.length:
                raise UsageError(
                    f"rewind: got {brief(length)}, expected 1 to {session.length}, the tokens in the cache"
                )
            session.displace()
            core().sol_session_resume(
                session.handle, length, logits.ctypes.data, logits.size, hidden.ctypes.data, hidden.size
            )
            self._take()
        self.output = output

    def step(self, token: int) -> StepRecord:
        """Processes one token. `output` then holds the distribution of the next token.

        Raises UsageError, ContextError, NumericError; BusyError if anyone else has used the session since.
        """
        session = self._session
        (token,) = token_ids("step", [token], session.bundle.config.model.vocab_size)
        done, results = structs.Step(size=sizeof(structs.Step)), session.results(1)
        with session.exclusive():
            if session.owner is not self or session.changes != self._changes:
                raise BusyError("this run was interrupted by another one on the same model; finish one first")
            with raising_of(self._options.own, session.turns), raising_of(session.host, session.turns):
                core().sol_session_step(session.handle, token, byref(results.rows), byref(results.seen), byref(done))
        self.output = results.output()
        action = Action.parse(done.action.decode())
        self.actions[action.tag] += 1
        self.achieved, self.requested = float(done.achieved_budget), float(done.requested_budget)
        self.floored = bool(done.floored)
        self.steps += 1
        return StepRecord(action, done.context, done.cost, done.relative_cost)

    def _require_plan(self) -> None:
        if self._session.planned is not self:
            raise BusyError("this run was interrupted by another one on the same model; finish one first")

    def _take(self) -> None:
        self._session.owner, self._changes = self, self._session.changes


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that the two begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
