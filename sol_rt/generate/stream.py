"""A running generation: what `SolModel.stream` returns."""

from __future__ import annotations

import ctypes
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, byref, c_size_t, c_void_p, pointer, sizeof

from sol_rt.budget.dial import as_number, check_budget
from sol_rt.bundle.actions import Action
from sol_rt.engine.hardware import peak_rss_mb
from sol_rt.errors import BusyError, SolError, UsageError
from sol_rt.generate.native.callbacks import raising_of
from sol_rt.generate.native.session import Session, interruptible
from sol_rt.generate.request import Checks, Request, result_of
from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.native import structs
from sol_rt.native.library import core, raise_error

_FINISH = {0: None, 1: "stop", 2: "length"}
_action = functools.lru_cache(maxsize=1024)(Action.parse)


class Stream(Iterator[GeneratedToken]):
    """The tokens of a running generation. `close` ends it early; Ctrl-C inside it does so too.

    `budget` and `tokens_per_second` may be set between any two tokens: what the steps before were allowed stays
    allowed, and the next steps are held to the new request. Setting either of them ends the hold on the other one, and
    on a loss.

    Any thread may take the next token, set the budget or the rate, and close the stream; all of these wait for the
    token in progress. A function of the caller's that a call asks gets a BusyError instead.

    Args:
        session: runs it.
        checks: checks the request, which begins in `session` at the first token.
        request: what was asked for.

    Raises UsageError, ContextError, SolError for a request that cannot run.
    """

    def __init__(self, session: Session, checks: Checks, request: Request) -> None:
        self._session, self._checks, self._request = session, checks, request
        self._turns = session.turns
        self._token = structs.Token(size=sizeof(structs.Token))
        self._tokens: list[GeneratedToken] = []
        self._result: Generation | None = None
        self._budget, self._rate = request.budget, request.tokens_per_second
        self._moved = False  # the dial, before the start
        self._mark = object()  # owns the session; the stream itself may be dropped
        self._begun = self._ended = self._running = self._closing = self._interrupted = False
        self._checked = checks.check(request)

    def __next__(self) -> GeneratedToken:
        return self._take(self._run_next)

    def _take(self, run: Callable[[], object]) -> GeneratedToken:
        """The next token, which `run` lets the core make."""
        if self._ended:
            raise StopIteration
        with self._turns.step(self, first=not self._begun):
            if self._ended:
                raise StopIteration
            try:
                self._enter()
                self._running = True
                asked, turns = self._request.options, self._turns
                host = self._session.host
                with raising_of(host, turns), raising_of(asked.own, turns), raising_of(asked.mask, turns):
                    if self._tokens:
                        run()
                    else:  # the prompt takes long
                        with self._session.reporting(self._request.progress):
                            interruptible(self._session.handle, run)
            except BaseException:
                self._running = False
                self._end()
                raise
            self._running = False
            token = self._read()
            self._tokens.append(token)
            if token.finish_reason is not None or self._closing:
                self._end()
            return token

    def read_prompt(self, most: int) -> int:
        """Begins, and runs at most `most` tokens of the prompt; only before the first token.

        Returns the tokens that are left, one at least, which the first token's step runs. Raises what `next` raises.
        """
        left = c_size_t()
        with self._turns.step(self, first=not self._begun):
            if self._ended:
                raise StopIteration
            handle = self._session.handle
            try:
                self._enter()
                self._running = True
                with raising_of(self._session.host, self._turns):
                    interruptible(handle, lambda: core().sol_session_read_prompt(handle, most, byref(left)))
            except BaseException:
                self._running = False
                self._end()
                raise
            self._running = False
            if self._closing:
                self._end()
        return left.value

    @property
    def open(self) -> bool:
        """True from the beginning, at the prompt's first tokens, until the generation has ended."""
        return self._begun and not self._ended and not self._interrupted

    def move_to(self, session: Session) -> None:
        """Runs in another session of the same model. Only before the first token."""
        assert not self._begun
        self._session, self._turns = session, session.turns

    @property
    def movable(self) -> bool:
        """True if its budget can be set, also where it holds something else at first."""
        return "budget" not in self._checked.fixed

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids of the prompt; empty in a replay of the trace's own."""
        return self._request.prompt

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        replay = self._request.replay
        return len(self._request.prompt or (() if replay is None else replay.header.prompt_tokens))

    @property
    def budget(self) -> float | None:
        """The budget that the next step holds, 0 to 1; None under a rate, a loss or axis targets, and where the action
        is fixed.

        Setting it raises UsageError for a value out of range, under axis targets, and where the action is fixed;
        BusyError if something else has taken over the session.
        """
        return self._budget

    @budget.setter
    def budget(self, budget: float) -> None:
        budget = as_number("budget", budget)
        check_budget(budget)
        self._move("budget", budget, None)

    @property
    def tokens_per_second(self) -> float | None:
        """The rate that the next step holds; None if none is held.

        Setting it raises UsageError for a value out of range, without measured costs, under axis targets, and where the
        action is fixed; BusyError if something else has taken over the session.
        """
        return self._rate

    @tokens_per_second.setter
    def tokens_per_second(self, rate: float) -> None:
        rate = as_number("tokens_per_second", rate)
        if not (math.isfinite(rate) and rate > 0):
            raise UsageError(f"--tokens-per-second: got {rate}, expected a number over 0")
        self._move("tokens_per_second", None, rate)

    def close(self) -> None:
        """Ends the generation. The trace is then complete, and the model ready for the next generation.

        In a signal's handler it returns at once, and the generation ends after the token in progress.
        """
        self._end()

    def interrupt(self) -> None:
        """Says that something else takes over the session: the next token is then a BusyError. `Session` calls it."""
        if self.open:
            self._result = self._summary()
            self._interrupted = True

    @property
    def result(self) -> Generation | None:
        """The summary once the generation has ended; None before, and where it ended without a token."""
        return self._result if self._ended else None

    @property
    def asked_budget(self) -> float | None:
        """The budget that the dial of the request comes to after its prompt, 0 to 1; None under axis targets.

        Once the prompt has begun, what the cache kept of it counts.
        """
        if self.open:
            with self._turns.paused():
                if self.open:
                    return _number(result_of(self._session.handle).asked_budget)
        return self._checked.asked_budget

    @property
    def dense_prompt(self) -> bool:
        """True if the prompt keeps only those cached tokens that the dense variant read."""
        return self._checked.dense_prompt

    def _enter(self) -> None:
        """Begins in the session, in place of what ran there; later, raises BusyError if something else took it over."""
        if self._begun:
            self._require_undisturbed()
            return
        session = self._session
        session.displace()
        self._begun = True
        with raising_of(session.host, self._turns):  # it asks what the cache holds
            self._request.start(session.handle)
        session.newest, session.owner = self, self._mark
        if self._moved:
            self._set_dial()

    def _require_undisturbed(self) -> None:
        """Raises BusyError if something else took over the session."""
        if not self._interrupted:
            return
        if self._session.owner is self._mark:
            raise BusyError(
                "this generation was interrupted by a call of its engine; finish or close it before such a call"
            )
        raise BusyError("this generation was interrupted by another one on the same model; finish or close one first")

    def _move(self, name: str, budget: float | None, rate: float | None) -> None:
        """Holds the next steps to a budget or a rate. A stream that has not begun does so at its start."""
        if name in self._checked.fixed:
            raise UsageError(self._checked.fixed[name])
        with self._turns.paused():
            if not self._ended:
                self._require_undisturbed()
            before = self._budget, self._rate
            self._budget, self._rate = budget, rate
            if not self._begun:
                self._moved = True
            elif not self._ended:
                try:
                    self._set_dial()
                except UsageError:
                    self._budget, self._rate = before
                    raise

    def _set_dial(self) -> None:
        if self._budget is not None:
            core().sol_session_set_budget(self._session.handle, self._budget)
        else:
            core().sol_session_set_tokens_per_second(self._session.handle, self._rate)

    def _run_next(self) -> None:
        core().sol_session_next(self._session.handle, byref(self._token))

    def _read(self) -> GeneratedToken:
        token = self._token
        finish = _FINISH[token.finish]
        text = ctypes.string_at(token.text, token.text_length).decode("utf-8", "replace")
        if (own := self._request.text) is not None:
            mask = self._request.options.mask
            ends = finish == "stop" and not (mask is not None and mask.complete)
            text = "" if ends else own.add(token.token)
            text += "" if finish is None else own.flush()
        return GeneratedToken(
            token=token.token,
            text=text,
            action=_action(token.action.decode()),
            logprob=token.logprob,
            cost=token.cost,
            relative_cost=token.relative_cost,
            achieved_budget=token.achieved_budget,
            ms=token.milliseconds,
            finish_reason=finish,
            top_logprobs=tuple((token.top_tokens[i], token.top_logprobs[i]) for i in range(token.num_top)),
        )

    def _end(self) -> None:
        with self._turns.closing(self):
            if self._ended:
                return
            if self._running:  # a signal's handler closes in the middle of a token: the stream ends after it
                self._closing = True
                return
            self._ended = True
            if self._interrupted:
                return
            if not self._begun:
                if self._request.options.struct.trace:
                    self._checks.write_empty_trace(self._request)
            elif self._session.newest is self:
                try:
                    core().sol_session_stop(self._session.handle)
                finally:
                    self._result = self._summary()

    def _summary(self) -> Generation | None:
        if not self._tokens:
            return None
        result = result_of(self._session.handle)
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
            drafted_tokens=result.drafted_tokens,
            accepted_tokens=result.accepted_tokens,
            first_difference=None if result.first_difference < 0 else result.first_difference,
            logprobs=[token.logprob for token in self._tokens],
            top_logprobs=[token.top_logprobs for token in self._tokens],
        )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def next_of_each(streams: Sequence[Stream]) -> list[GeneratedToken | Exception]:
    """Takes the next token of each of several streams, none twice: the token or the error of `next`, in their order.

    Streams of one model read the weights once for all of them, where their actions have the same bits and channels.
    Two threads may not call this for the same streams at a time.
    """
    made: list[GeneratedToken | Exception] = [StopIteration()] * len(streams)
    errors = (c_void_p * len(streams))()
    joined: list[Stream] = []
    failed: list[Exception] = []

    def run() -> None:
        handles = (c_void_p * len(joined))(*(stream._session.handle.value for stream in joined))
        tokens = (POINTER(structs.Token) * len(joined))(*(pointer(stream._token) for stream in joined))
        try:
            core().sol_batch_next(handles, len(joined), tokens, errors)
        except SolError as error:  # of the call itself: nothing has run
            failed.append(error)

    def join(place: int) -> None:
        """Lets the streams from a place on join, each inside the one before; the last one runs the round."""
        if place == len(streams):
            return run()
        seat = len(joined)

        def take() -> None:
            joined.append(streams[place])
            join(place + 1)
            if failed:
                raise failed[0]
            raise_error(errors[seat])

        try:
            made[place] = streams[place]._take(take)
        except Exception as error:
            made[place] = error
            if len(joined) == seat:  # it has not got to its part: the others go on without it
                join(place + 1)

    join(0)
    return made
