"""`Session`: one KV cache of the native core, with runs and scores of given tokens."""

from __future__ import annotations

import _thread
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from ctypes import POINTER, byref, c_float, c_int32, c_int64, c_size_t, c_void_p, cast, sizeof
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.distribution import Distribution, SoftmaxSums
from sol_rt.engine.step import StepOutput
from sol_rt.errors import UsageError, brief
from sol_rt.generate.native.callbacks import Callbacks, raising_of
from sol_rt.generate.native.host_engine import CacheEngine, HostEngine
from sol_rt.generate.native.turns import Turns
from sol_rt.generate.prompt import token_ids
from sol_rt.native import structs
from sol_rt.native.library import core, model_info, path_bytes
from sol_rt.progress import Progress


class Displaced(Protocol):
    """A run of a session, until something else takes the session over."""

    @property
    def open(self) -> bool:
        """True until it has ended."""

    def interrupt(self) -> None:
        """Keeps the results so far, which the core is about to drop."""


class Session:
    """A KV cache in the core, and runs on it. One thread at a time uses it; a second one gets a BusyError.

    Args:
        model: the `sol_model`, which the core keeps as long as the session.
        bundle: the bundle that it was loaded from.
        engine: runs the graphs and holds the cache in place of the core; None for the core. Nobody else uses it
            meanwhile.

    Attributes:
        bundle: as given.
        native: True if native operators run, False if the function bodies in the graphs do.
        max_context: tokens that the cache may hold at most.
        handle: the `sol_session`.
        host: the callbacks of `engine`, or None.
        turns: decides which thread's generation runs.
        owner: the object that last filled the cache for itself, or None. It checks that it still is the owner.
        planned: the `Decoder` whose plan the session has, or None.
        changes: how often something took the session over.
    """

    def __init__(self, model: c_void_p, bundle: Bundle, engine: CacheEngine | None = None) -> None:
        info = model_info(model)
        self.bundle, self.native, self.max_context = bundle, bool(info.native), int(info.max_context)
        self.host = None if engine is None else HostEngine(engine, bundle.config.model)
        self.turns = Turns()
        self.owner: object = None
        self.planned: object = None
        self.changes = 0
        self._newest: weakref.ref[Displaced] | None = None
        self.handle = c_void_p()
        if self.host is None:
            core().sol_session_create(model, byref(self.handle))
        else:
            core().sol_session_create_on(model, byref(self.host.struct), byref(self.handle))
        weakref.finalize(self, core().sol_session_release, self.handle).atexit = False  # another thread may be in it

    @property
    def newest(self) -> Displaced | None:
        """The stream that runs in this session or did so last; None after `displace`, and if it was dropped."""
        return None if self._newest is None else self._newest()

    @newest.setter
    def newest(self, stream: Displaced) -> None:
        self._newest = weakref.ref(stream)

    @property
    def idle(self) -> bool:
        """True if neither a stream nor a `Decoder` is between two of its steps here."""
        newest = self.newest
        return (newest is None or not newest.open) and (self.planned is None or self.owner is not self.planned)

    def displace(self) -> None:
        """Says that something else is about to use the session: the core then ends what runs there."""
        newest, self._newest = self.newest, None
        if newest is not None:
            newest.interrupt()
        self.changes += 1

    @property
    def private_bytes(self) -> int:
        """Bytes of KV cache and buffers that only this session uses."""
        return int(core().sol_session_private_bytes(self.handle))

    @property
    def tokens(self) -> list[int]:
        """The tokens in the cache."""
        held, count = (c_int32 * self.max_context)(), c_size_t()
        core().sol_session_tokens(self.handle, held, len(held), byref(count))
        return held[: count.value]

    @property
    def dense_tokens(self) -> int:
        """The first tokens in the cache that no prompt's run by a cheaper variant read."""
        count = c_size_t()
        core().sol_session_dense_tokens(self.handle, byref(count))
        return count.value

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        count = c_size_t()
        core().sol_session_tokens(self.handle, None, 0, byref(count))
        return count.value

    def exclusive(self) -> AbstractContextManager[None]:
        """Keeps other threads out while several calls have to see the same cache. Raises BusyError if one is in."""
        return self.turns.exclusive()

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens of the cache. Raises UsageError if there are fewer."""
        with self.exclusive():
            held = self.length
            if not is_whole(length) or not 0 <= length <= held:
                raise UsageError(f"truncate: got {brief(length)}, expected 0 to {held}, the tokens in the cache")
            if length < held:
                self.displace()
                core().sol_session_rewind(self.handle, int(length))

    def reset(self) -> None:
        """Forgets all tokens. The cache keeps its capacity."""
        self.truncate(0)

    def save(self, path: Path) -> None:
        """Writes the tokens and the cache to a file, as a whole or not at all. Ends what runs here.

        Raises UsageError for a file that cannot be written, and where an engine of Python's holds the cache.
        """
        with self.exclusive():
            self.displace()
            core().sol_session_save(self.handle, path_bytes(path))

    def restore(self, path: Path) -> None:
        """Replaces the cache by one that `save` wrote for the same bundle. Ends what runs here.

        Raises BundleError for a file that is missing, damaged, or another bundle's; UsageError where an engine of
        Python's holds the cache.
        """
        with self.exclusive():
            self.displace()
            core().sol_session_restore(self.handle, path_bytes(path))

    def forward(self, tokens: Sequence[int] | np.ndarray, action: Action, *, num_logits: int = 1) -> StepOutput:
        """Appends tokens to the cache and returns the output of the last `num_logits` of them, in arrays of its own.

        One token with one row of results is a decode step under `action`; several tokens run in chunks through the
        action's variant, with attention to all tokens. A call that fails leaves a prefix of the tokens in the cache.
        Ctrl-C ends a run of several tokens where the main thread calls it.

        Args:
            tokens: token ids, [S].
            action: the action to run; its variant is in the bundle.
            num_logits: how many of the last tokens to return results for, 1 to S.

        Raises UsageError, ContextError, NumericError, BusyError.
        """
        if not isinstance(action, Action):
            raise UsageError(f"forward: got {brief(action)}, expected an Action; Action.parse reads a tag")
        ids = token_ids("forward", tokens, self.bundle.config.model.vocab_size)
        if not is_whole(num_logits) or not 1 <= num_logits <= len(ids):
            raise UsageError(
                f"forward: num_logits: got {brief(num_logits)} for {len(ids)} tokens, expected 1 to {len(ids)}"
            )
        results, tag = self.results(int(num_logits)), action.tag.encode()
        given = (c_int32 * len(ids))(*ids)
        with self.exclusive(), raising_of(self.host, self.turns):
            self.displace()

            def run() -> None:
                core().sol_session_forward(self.handle, given, len(ids), tag, byref(results.rows), byref(results.seen))

            if len(ids) > 1:
                interruptible(self.handle, run)
            else:
                run()
        return results.output()

    def results(self, num_logits: int) -> Results:
        """Room for the results of so many tokens."""
        model = self.bundle.config.model
        return Results(num_logits, model.vocab_size, model.hidden_size)

    def set_active_channels(self, variant_key: str, counts_by_name: Mapping[str, Sequence[int]]) -> None:
        """Changes a variant's active channels in this session.

        Args:
            variant_key: key of the variant.
            counts_by_name: active channels of every layer, by `active_up`, `active_down`, `active_qkv` and `active_o`;
                a name that is left out gets the bundle's own counts.

        Raises UsageError for counts that are out of range or too few, and where an engine of Python's runs the graphs,
        as on a GPU.
        """
        model = self.bundle.config.model
        if self.host is not None:
            raise UsageError("active channels: they can be changed on the CPU alone; use provider cpu")
        if not isinstance(counts_by_name, Mapping):
            raise UsageError(f"active channels: got {brief(counts_by_name)}, expected counts by name")
        for name, counts in counts_by_name.items():
            if name not in model.channels:
                raise UsageError(f"active channels: got {brief(name)}, expected one of {', '.join(model.channels)}")
            sized = isinstance(counts, (Sequence, np.ndarray)) and len(counts) == model.num_layers
            if not sized or not all(is_whole(count) and abs(int(count)) < 2**31 for count in counts):
                raise UsageError(f"{name}: got {brief(counts)}, expected {model.num_layers} whole numbers, one a layer")
        arrays = [
            (c_int32 * model.num_layers)(*map(int, counts_by_name[name])) if name in counts_by_name else None
            for name in ("active_up", "active_down", "active_qkv", "active_o")
        ]
        with self.exclusive():
            self.displace()
            core().sol_session_set_active_channels(self.handle, variant_key.encode(), *arrays, model.num_layers)

    @contextmanager
    def reporting(self, progress: Callable[[int, int], object] | None) -> Iterator[None]:
        """Meanwhile, calls `progress` after each part of a prompt with the tokens that are done and all of them.

        An exception of `progress` ends the run, and is raised at the end of the context.
        """
        if progress is None:
            yield
            return
        callbacks = Callbacks()

        def report(_: int | None, done: int, total: int) -> None:
            if not callbacks.answer(lambda: (progress(done, total), True)[1], False):
                core().sol_session_cancel(self.handle)

        callback = structs.PromptProgress(report)
        core().sol_session_set_progress(self.handle, callback, None)
        try:
            with callbacks.raising(self.turns):
                yield
        finally:
            core().sol_session_set_progress(self.handle, structs.PromptProgress(), None)

    def profile(
        self, contexts: Sequence[int], repeats: int, seconds: float, device: str, progress: Progress
    ) -> tuple[str, list[tuple[Action, int, float]]]:
        """Times every action at contexts in tokens, rising, and leaves the cache empty.

        Returns the text of a cost table, and (action, context, milliseconds) of each timing. Raises UsageError,
        NumericError.
        """

        def report(_: int | None, what: bytes, done: int, total: int) -> int:
            progress(what.decode(), done, total)
            return 0

        lengths = (c_int64 * len(contexts))(*contexts)
        asked = structs.Profile(sizeof(structs.Profile), repeats, lengths, len(lengths), seconds, device.encode())
        asked.progress = structs.Progress(report)
        with self.exclusive(), raising_of(self.host, self.turns):
            self.displace()
            interruptible(self.handle, lambda: core().sol_session_profile(self.handle, byref(asked)))
        tried = [Action.parse(asked.actions[index].decode()) for index in range(asked.num_actions)]
        places = itertools.product(contexts[: asked.num_measured], tried)
        return asked.table.decode(), [(action, at, asked.ms[i]) for i, (at, action) in enumerate(places)]

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
        self.displace()
        with raising_of(self.host, self.turns):
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
    """Result of `Session.score`. N tokens were scored.

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
    """Runs a long call of the core. In the main thread the call runs in another one, so that Ctrl-C gets through.

    The call has ended when this returns or raises, however often Ctrl-C is pressed.
    """
    if threading.current_thread() is not threading.main_thread():
        call()
        return
    failed: list[BaseException] = []
    ended = threading.Event()
    interrupted: BaseException | None = None

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    _thread.start_new_thread(run, ())  # Ctrl-C breaks off the waits of `Thread.start` and `Thread.join`
    while not ended.is_set():
        try:
            ended.wait()
        except BaseException as error:  # Ctrl-C, or what a signal's handler raises
            interrupted = interrupted or error
            core().sol_session_cancel(session)
    if interrupted is not None:
        core().sol_session_stop(session)  # forgets a request that came too late to end this run
        raise interrupted
    if failed:
        raise failed[0]


def is_whole(value: object) -> bool:
    """True for an integer of Python or NumPy that is no truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
