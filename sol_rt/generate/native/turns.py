"""Locks of an engine: it has one KV cache, so it runs one generation at a time, whatever thread asks for one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sol_rt.errors import BusyError


class Turns:
    """Lets one generation of an engine run at a time.

    A whole run (`generate`, `score`) is one turn, and other threads wait for its end. A stream takes a turn for each
    token, and stays open from its first token until it ends, is closed or is dropped. While a stream is open, other
    threads get a BusyError. So does a function of the caller's that a call asks. The thread that took the stream's last
    token may start something else: the stream then ends with a BusyError at its next token.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open: weakref.ref[object] | None = None
        self._thread = threading.current_thread()
        self._asking: int | None = None  # the thread in which a call asks a function of the caller's

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Lock for a whole run. Raises BusyError if a stream is open in another thread.

        An open stream of the same thread stays open until the run takes over the cache: `end_stream` ends it.
        """
        with self._held():
            self._require_free()
            yield

    def end_stream(self) -> None:
        """Ends an older stream, because the first step of a whole run comes now. Call it under `generation`."""
        self._open = None

    @contextmanager
    def step(self, stream: object, *, first: bool) -> Iterator[None]:
        """Lock for one token of `stream`.

        Args:
            stream: the stream.
            first: True if this is the stream's first token. It opens the stream.

        Raises BusyError if another stream is open in another thread.
        """
        with self._held():
            if first:
                self._require_free()
                self._open = weakref.ref(stream)
            if self._open is not None and self._open() is stream:
                self._thread = threading.current_thread()
            yield

    @contextmanager
    def closing(self, stream: object) -> Iterator[None]:
        """Lock in which `stream` ends. After it the stream is not open."""
        with nullcontext() if self._asks_here() else self._lock:  # who asks holds the lock until the answer
            try:
                yield
            finally:
                if self._open is not None and self._open() is stream:
                    self._open = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Lock between two tokens: waits for the token in progress."""
        with self._held():
            yield

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Marks that a call asks a function of the caller's, in this thread.

        The function gets a BusyError where it would wait for the end of that call.
        """
        before, self._asking = self._asking, threading.get_ident()
        try:
            yield
        finally:
            self._asking = before

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other threads out while several calls have to see the same cache. Raises BusyError if one is in."""
        self._require_outside()
        if not self._lock.acquire(blocking=False):
            raise BusyError("this engine is busy in another thread; wait for it, or make an engine for each thread")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _held(self) -> Iterator[None]:
        self._require_outside()
        with self._lock:
            yield

    def _asks_here(self) -> bool:
        return self._asking == threading.get_ident()

    def _require_outside(self) -> None:
        if self._asks_here():
            raise BusyError("this model is busy: it asks this function in the middle of a call; use it after that call")

    def _require_free(self) -> None:
        running = None if self._open is None else self._open()
        if running is not None and self._thread is not threading.current_thread() and self._thread.is_alive():
            raise BusyError(
                f"this model is busy: thread {self._thread.name!r} has a stream open; finish or close it, or open the "
                "bundle a second time (both share the memory of the weights)"
            )
