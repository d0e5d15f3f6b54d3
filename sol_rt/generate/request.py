"""A generation that was asked for, and its check before it runs."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ctypes import byref, c_int32, c_void_p, sizeof
from dataclasses import dataclass
from pathlib import Path

from sol_rt.errors import BusyError, UsageError, one_line
from sol_rt.generate.native.options import Options
from sol_rt.generate.native.session import Session
from sol_rt.generate.trace import Trace
from sol_rt.native import structs
from sol_rt.native.library import core, path_bytes
from sol_rt.text.tokenizer import TextStream


@dataclass(frozen=True)
class Request:
    """A generation that was asked for.

    Attributes:
        prompt: its tokens; empty in a replay of the trace's own prompt.
        options: everything else, as the core takes it.
        replay: the trace whose actions run again, or None.
        budget, tokens_per_second: what the steps are to hold; None for something else.
        text: turns tokens into text where the core has no tokenizer for the bundle, else None.
        progress: called after each part of the prompt with its tokens that are done and all of them, or None.
    """

    prompt: Sequence[int]
    options: Options
    replay: Trace | None = None
    budget: float | None = None
    tokens_per_second: float | None = None
    text: TextStream | None = None
    progress: Callable[[int, int], object] | None = None

    @property
    def trace_is_a_file(self) -> bool:
        """True if the trace may be opened twice: a pipe or a device would get its header twice."""
        name = self.options.struct.trace
        return name is not None and (os.path.isfile(name) or not os.path.exists(name))

    def start(self, session: c_void_p, *, trace: bool = True) -> None:
        """Checks everything and begins in a `sol_session`; with `trace`, opens the trace. Runs nothing.

        Raises SolError.
        """
        ids = (c_int32 * len(self.prompt))(*self.prompt)
        options = structs.GenerateOptions.from_buffer_copy(self.options.struct)
        if not trace:
            options.trace = None
        if self.replay is None:
            core().sol_session_start(session, ids, len(ids), options)
            return
        try:
            folder = tempfile.TemporaryDirectory()
            path = Path(folder.name) / "trace.jsonl"
            path.write_text(self.replay.to_jsonl(), encoding="utf-8", newline="")
        except OSError as error:
            raise UsageError(f"replay: {one_line(error)}; set TMPDIR to a folder that can be written") from None
        with folder:
            name = path_bytes(path)
            options.replay = name
            core().sol_session_start(session, ids, len(ids), options)


@dataclass(frozen=True)
class Checked:
    """Facts of a request that can run.

    Attributes:
        fixed: why the dial cannot be moved while it runs: texts by `budget` and `tokens_per_second`. A name whose value
            can be set is left out.
        asked_budget: the budget that the dial comes to after this prompt; None under targets on the axes.
        dense_prompt: of the cache, the prompt keeps only tokens that the dense variant read.
    """

    fixed: Mapping[str, str]
    asked_budget: float | None
    dense_prompt: bool


def result_of(session: c_void_p) -> structs.Result:
    """The core's summary of the generation in a session."""
    result = structs.Result(size=sizeof(structs.Result))
    core().sol_session_result(session, byref(result))
    return result


class Checks:
    """Checks requests without disturbing what runs. Any thread may call it, also while a generation runs.

    Args:
        session: checks them while nothing runs there.
        open_spare: makes a session for the other times, when first needed.
    """

    def __init__(self, session: Session, open_spare: Callable[[], Session]) -> None:
        self._session, self._open_spare = session, open_spare
        self._spare: Session | None = None
        self._lock = threading.Lock()

    def check(self, request: Request) -> Checked:
        """Checks a request. Raises SolError for one that cannot run."""
        with self._session_for_check() as session:
            request.start(session, trace=request.trace_is_a_file)
            fixed, started = {}, result_of(session)
            for name, change in (
                ("budget", core().sol_session_set_budget),
                ("tokens_per_second", core().sol_session_set_tokens_per_second),
            ):
                try:
                    change(session, 1.0)
                except UsageError as error:
                    fixed[name] = str(error)
            core().sol_session_stop(session)
            budget = None if math.isnan(started.asked_budget) else started.asked_budget
            return Checked(fixed, budget, bool(started.dense_prompt))

    def write_empty_trace(self, request: Request) -> None:
        """Writes the trace of a generation that ended without a token. Raises SolError."""
        with self._session_for_check() as session:
            request.start(session)
            core().sol_session_stop(session)

    @contextmanager
    def _session_for_check(self) -> Iterator[c_void_p]:
        with ExitStack() as stack:
            session = self._session
            try:
                stack.enter_context(session.exclusive())
                idle = session.idle
            except BusyError:
                idle = False
            if not idle:
                stack.close()
                stack.enter_context(self._lock)
                session = self._spare = self._spare or self._open_spare()
            yield session.handle
