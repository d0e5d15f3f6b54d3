"""`NativeSession`: one KV cache of the native core, with runs and scores of given tokens."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, byref, c_float, c_int32, c_size_t, c_void_p, cast, sizeof
from typing import Any

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.distribution import Distribution, SoftmaxSums
from sol_rt.engine.step import StepOutput
from sol_rt.errors import UsageError, brief
from sol_rt.generate.native import structs
from sol_rt.generate.native.callbacks import raising_of
from sol_rt.generate.native.host_engine import CacheEngine, HostEngine
from sol_rt.generate.native.library import core, model_info
from sol_rt.generate.prompt import token_ids


class NativeSession:
    """A KV cache in the core, and runs on it. One thread at a time uses it; a second one gets a BusyError.

    Args:
        model: the `sol_model`, which the core keeps as long as the session.
        bundle: the bundle that it was loaded from.
        engine: as in `NativeModel.session`.

    Attributes:
        bundle: as given.
        native: True if native operators run, False if the function bodies in the graphs do.
        max_context: tokens that the cache may hold at most.
        handle: the `sol_session`.
        host: the callbacks of `engine`, or None.
    """

    def __init__(self, model: c_void_p, bundle: Bundle, engine: CacheEngine | None = None) -> None:
        info = model_info(model)
        self.bundle, self.native, self.max_context = bundle, bool(info.native), int(info.max_context)
        self.host = None if engine is None else HostEngine(engine, bundle.config.model)
        self.handle = c_void_p()
        if self.host is None:
            core().sol_session_create(model, byref(self.handle))
        else:
            core().sol_session_create_on(model, byref(self.host.struct), byref(self.handle))
        self._release = weakref.finalize(self, core().sol_session_release, self.handle)

    @property
    def tokens(self) -> list[int]:
        """The tokens in the cache."""
        held = (c_int32 * self.length)()
        core().sol_session_tokens(self.handle, held, len(held), byref(c_size_t()))
        return list(held)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        count = c_size_t()
        core().sol_session_tokens(self.handle, None, 0, byref(count))
        return count.value

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens of the cache. Raises UsageError if there are fewer."""
        if not _is_whole(length) or not 0 <= length <= self.length:
            raise UsageError(f"truncate: got {brief(length)}, expected 0 to {self.length}, the tokens in the cache")
        core().sol_session_rewind(self.handle, int(length))

    def reset(self) -> None:
        """Forgets all tokens. The cache keeps its capacity."""
        self.truncate(0)

    def forward(self, tokens: Sequence[int] | np.ndarray, action: Action, *, num_logits: int = 1) -> StepOutput:
        """Appends tokens to the cache and returns the output of the last `num_logits` of them, in arrays of its own.

        Arguments are those of `Engine.forward`. One token with one row of results is a decode step under `action`;
        several tokens run in chunks through the action's variant, with attention to all tokens.

        Raises UsageError, ContextError, NumericError, BusyError.
        """
        if not isinstance(action, Action):
            raise UsageError(f"forward: got {brief(action)}, expected an Action; Action.parse reads a tag")
        model = self.bundle.config.model
        ids = token_ids("forward", tokens, model.vocab_size)
        if not _is_whole(num_logits) or not 1 <= num_logits <= len(ids):
            raise UsageError(
                f"forward: num_logits: got {brief(num_logits)} for {len(ids)} tokens, expected 1 to {len(ids)}"
            )
        results = self.results(num_logits)
        given = (c_int32 * len(ids))(*ids)
        with raising_of(self.host):
            core().sol_session_forward(
                self.handle, given, len(ids), action.tag.encode(), byref(results.rows), byref(results.seen)
            )
        return results.output()

    def results(self, num_logits: int) -> Results:
        """Room for the results of so many tokens."""
        model = self.bundle.config.model
        return Results(num_logits, model.vocab_size, model.hidden_size)

    def set_active_channels(self, variant_key: str, counts_by_name: Mapping[str, Sequence[int]]) -> None:
        """Changes a variant's active channels in this session, as `Engine.set_active_channels` does.

        Raises UsageError for counts that are out of range or too few.
        """
        model = self.bundle.config.model
        if not isinstance(counts_by_name, Mapping):
            raise UsageError(f"active channels: got {brief(counts_by_name)}, expected counts by name")
        for name, counts in counts_by_name.items():
            if name not in model.channels:
                raise UsageError(f"active channels: got {brief(name)}, expected one of {', '.join(model.channels)}")
            sized = isinstance(counts, (Sequence, np.ndarray)) and len(counts) == model.num_layers
            if not sized or not all(_is_whole(count) and abs(int(count)) < 2**31 for count in counts):
                raise UsageError(f"{name}: got {brief(counts)}, expected {model.num_layers} whole numbers, one a layer")
        arrays = [
            (c_int32 * model.num_layers)(*map(int, counts_by_name[name])) if name in counts_by_name else None
            for name in ("active_up", "active_down", "active_qkv", "active_o")
        ]
        core().sol_session_set_active_channels(self.handle, variant_key.encode(), *arrays, model.num_layers)

    def score(
        self, tokens: Sequence[int], context: int, options: structs.GenerateOptions, *, hidden: bool = False
    ) -> Scored:
        """Log-probabilities of the tokens after the first `context` under the dial of `options`.

        Ctrl-C ends it where the main thread calls it. Raises UsageError, ContextError, NumericError, SolError.
        """
        count, model = len(tokens) - context, self.bundle.config.model
        logprobs = np.empty(count, np.float64)
        states = np.empty((count, model.hidden_size), np.float32) if hidden else None
        scores = structs.Scores(
            size=sizeof(structs.Scores), logprobs=logprobs.ctypes.data, logprobs_length=logprobs.size
        )
        if states is not None:
            scores.hidden, scores.hidden_length = states.ctypes.data, states.size
        ids = (c_int32 * len(tokens))(*tokens)
        with raising_of(self.host):
            interruptible(
                self.handle,
                lambda: core().sol_session_score(self.handle, ids, len(tokens), context, byref(options), byref(scores)),
            )
        return Scored(logprobs, states, scores)


class Results:
    """Arrays that the core fills.

    Attributes:
        rows: the arrays, as the core takes them.
        seen: the distribution of the next token, as the core reports it.
    """

    def __init__(self, num_logits: int, vocab_size: int, hidden_size: int) -> None:
        logits = self._logits = np.empty((num_logits, vocab_size), np.float32)
        hidden = self._hidden = np.empty((num_logits, hidden_size), np.float32)
        self.rows = structs.Rows(
            sizeof(structs.Rows), num_logits, logits.ctypes.data, logits.size, hidden.ctypes.data, hidden.size
        )
        self.seen = structs.Distribution(size=sizeof(structs.Distribution))

    def output(self) -> StepOutput:
        """The results, once the core has filled them."""
        return StepOutput(self._logits, self._hidden, distribution_of(self.seen, self._logits[-1]))


class Scored:
    """Result of `NativeSession.score`. N tokens were scored.

    Attributes:
        logprobs: float64 [N], nats.
        hidden: float32 [N, hidden], the output of the final norm from which each token was scored; None if not wanted.
        actions: tag of each of the N - 1 decode steps.
        costs: float64 [N - 1], of each step in the cost model's unit.
        achieved_budget: cost of the steps / their dense cost.
    """

    def __init__(self, logprobs: np.ndarray, hidden: np.ndarray | None, scores: structs.Scores) -> None:
        self.logprobs, self.hidden = logprobs, hidden
        self.actions: list[str] = [scores.actions[i].decode() for i in range(scores.num_actions)]
        self.costs = np.array(scores.costs[: scores.num_actions], np.float64)
        self.achieved_budget = float(scores.achieved_budget)


def distribution_of(seen: structs.Distribution, logits: np.ndarray) -> Distribution:
    """The distribution of logits float32 [vocab], with the sums that the core computed."""
    sums = SoftmaxSums(seen.top, seen.total, seen.moment, seen.second_logit, seen.top_logit)
    return Distribution(logits, lambda _: sums)


def floats(pointer: Any, *shape: int) -> np.ndarray:
    """A view of float32 numbers of the core."""
    return np.ctypeslib.as_array(cast(pointer, POINTER(c_float)), shape)


def interruptible(session: c_void_p, call: Callable[[], object]) -> None:
    """Runs a long call of the core. In the main thread the call runs in another one, so that Ctrl-C gets through."""
    if threading.current_thread() is not threading.main_thread():
        call()
        return
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=run)
    worker.start()
    try:
        worker.join()
    except BaseException:
        core().sol_session_cancel(session)
        worker.join()
        core().sol_session_stop(session)  # forgets a request that came too late to end this run
        raise
    if failed:
        raise failed[0]


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
