"""Ctrl-C in an interactive chat stops what the user waits for, whenever it comes, and never the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Decides when Ctrl-C raises KeyboardInterrupt: inside `heeded`, once. Elsewhere it is kept for the next `heeded`.

    Outside of `installed`, and in a program that ignores Ctrl-C or handles it in its own way, nothing changes.
    """

    def __init__(self) -> None:
        self._installed = self._heeding = self._waiting = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Takes Ctrl-C over. It must be entered in the main thread, else nothing changes."""
        ours = threading.current_thread() is threading.main_thread()
        if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        self._installed = True
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Ctrl-C raises KeyboardInterrupt in here, also if it came before, since the last `forget`."""
        if not self._installed:
            yield
            return
        self._heeding = True
        try:
            if self._waiting:
                self._waiting = self._heeding = False
                raise KeyboardInterrupt
            yield
        finally:
            self._heeding = False

    def forget(self) -> None:
        """Forgets a Ctrl-C that is kept: what it was meant for is over."""
        self._waiting = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._heeding:
            self._waiting = True
            return
        self._heeding = False  # so that a second one does not interrupt what the first one leads to
        raise KeyboardInterrupt
