"""A running generation of the native core: what `NativeModel.stream` returns."""

from __future__ import annotations

import ctypes
import functools
import math
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from ctypes import byref, sizeof
from typing import TYPE_CHECKING

from sol_rt.budget.controller.base import as_number
from sol_rt.bundle.actions import Action
from sol_rt.engine.hardware import peak_rss_mb
from sol_rt.errors import BusyError, UsageError
from sol_rt.generate.native import structs
from sol_rt.generate.native.callbacks import raising_of
from sol_rt.generate.native.library import core
from sol_rt.generate.native.own_schedule import OwnSchedule
from sol_rt.generate.native.session import NativeSession, interruptible
from sol_rt.generate.results import GeneratedToken, Generation

if TYPE_CHECKING:
    from sol_rt.generate.native.model import NativeModel

_FINISH = {0: None, 1: "stop", 2: "length"}
_action = functools.lru_cache(maxsize=1024)(Action.parse)


class SessionTurns:
    """The locks of a session, which several streams have one after another.

    Attributes:
        token: held while a token is computed and while a generation begins or ends.
        owner: held while a generation begins and while a stream sets its dial. Whoever wants both takes `token` first.
    """

    def __init__(self) -> None:
        self.token = threading.RLock()
        self.owner = threading.RLock()  # a signal handler may set the dial inside either


class NativeStream(Iterator[GeneratedToken]):
    """The tokens of a running generation. `close` ends it early; Ctrl-C inside it does so too.

    Args:
        model: the model, which is kept alive.
        session: its session, in which the generation has been started.
        turns: the session's locks.
        own: the schedule of the caller's that the core asks, or None.
    """

    def __init__(
        self, model: NativeModel, session: NativeSession, turns: SessionTurns, own: OwnSchedule | None = None
    ) -> None:
        self.reference = weakref.ref(self)
        self._model, self._session, self._turns, self._own = model, session.handle, turns, own
        self._token = structs.Token(size=sizeof(structs.Token))
        self._tokens: list[GeneratedToken] = []
        self._result: Generation | None = None
        self._ended = False
        self._interrupted = False
        self._budget: float | None = None
        self._rate: float | None = None

    def __next__(self) -> GeneratedToken:
        with self._turns.token:
            self._require_turn()
            if self._ended:
                raise StopIteration
            try:
                with raising_of(self._own):
                    if self._tokens:
                        self._run_next()
                    else:  # the prompt takes long
                        interruptible(self._session, self._run_next)
            except BaseException:
                self._end()
                raise
            token = self._read()
            self._tokens.append(token)
            if token.finish_reason is not None:
                self._end()
            return token

    def _run_next(self) -> None:
        core().sol_session_next(self._session, byref(self._token))

    @property
    def budget(self) -> float | None:
        """The budget that was set last in this run; None if none was, or a rate came after it.

        Setting it holds another budget from the next decode step on, from any thread. Raises UsageError for a value out
        of range, under axis targets, and where the action is fixed.
        """
        return self._budget

    @budget.setter
    def budget(self, budget: float) -> None:
        budget = as_number("budget", budget)
        with self._turns.owner:
            self._require_running("budget")
            core().sol_session_set_budget(self._session, budget)
            self._budget, self._rate = budget, None

    @property
    def tokens_per_second(self) -> float | None:
        """The rate that was set last in this run; None if none was, or a budget came after it.

        Setting it holds a rate from the next decode step on, as `budget` does. It needs measured costs.
        """
        return self._rate

    @tokens_per_second.setter
    def tokens_per_second(self, rate: float) -> None:
        rate = as_number("tokens_per_second", rate)
        with self._turns.owner:
            self._require_running("tokens-per-second")
            core().sol_session_set_tokens_per_second(self._session, rate)
            self._budget, self._rate = None, rate

    def close(self) -> None:
        """Ends the generation. The trace is then complete, and the model ready for the next generation."""
        with self._turns.token:
            if not self._ended and not self._interrupted:
                try:
                    core().sol_session_stop(self._session)
                finally:
                    self._end()

    def interrupt(self) -> None:
        """Says that another generation takes over the session: the next token is then a BusyError."""
        self._interrupted = not self._ended

    @property
    def result(self) -> Generation | None:
        """The summary once the generation has ended; None before, and where it ended without a token."""
        return self._result

    def _require_turn(self) -> None:
        if self._interrupted:
            raise BusyError(
                "this generation was interrupted by another one on the same model; finish or close one first"
            )

    def _require_running(self, flag: str) -> None:
        """The session may be another generation's by now, whose dial this one must not move."""
        self._require_turn()
        if self._ended:
            raise UsageError(f"--{flag}: no generation is running; start one first")

    def _read(self) -> GeneratedToken:
        token = self._token
        likeliest = tuple((token.top_tokens[i], token.top_logprobs[i]) for i in range(token.num_top))
        return GeneratedToken(
            token=token.token,
            text=ctypes.string_at(token.text, token.text_length).decode("utf-8", "replace"),
            action=_action(token.action.decode()),
            logprob=token.logprob,
            cost=token.cost,
            relative_cost=token.relative_cost,
            achieved_budget=token.achieved_budget,
            ms=token.milliseconds,
            finish_reason=_FINISH[token.finish],
            top_logprobs=likeliest,
        )

    def _end(self) -> None:
        self._ended = True
        if self._tokens:
            self._result = self._summary()

    def _summary(self) -> Generation:
        result = structs.Result(size=sizeof(structs.Result))
        core().sol_session_result(self._session, byref(result))
        return Generation(
            text="".join(token.text for token in self._tokens),
            tokens=[token.token for token in self._tokens],
            schedule=result.schedule.decode(),
            requested_budget=result.requested_budget,
            achieved_budget=result.achieved_budget,
            cost_model=result.cost_model.decode(),
            prefill=self._tokens[0].action.variant,
            prompt_tokens_per_second=result.prompt_tokens_per_second,
            tokens_per_second=result.tokens_per_second,
            time_to_first_token_ms=result.time_to_first_token_ms,
            actions=dict(Counter(token.action.tag for token in self._tokens[1:])),
            peak_rss_mb=peak_rss_mb(),
            finish_reason=self._tokens[-1].finish_reason or "closed",
            floored=bool(result.floored),
            fastest_tokens_per_second=_number(result.fastest_tokens_per_second),
            dense_tokens_per_second=result.tokens_per_second * result.achieved_budget,
            expected_loss=_number(result.expected_loss),
            prompt_tokens=result.prompt_tokens,
            cached_tokens=result.cached_tokens,
            first_difference=None if result.first_difference < 0 else result.first_difference,
            logprobs=[token.logprob for token in self._tokens],
            top_logprobs=[token.top_logprobs for token in self._tokens],
        )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
