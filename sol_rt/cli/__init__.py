"""The command line `sol-rt`: one module a subcommand. stdout carries results, stderr everything else.

May import: everything; sol_rt.export and sol_rt.train only in cli/make, inside functions.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `sol-rt` and returns its exit code: 0, 1 for run-time errors, 2 for usage, 130 after Ctrl-C.

    Args:
        argv: arguments without the program's name; the process's own by default.

    Raises SystemExit after a request to end.
    """
    try:
        _open_standard_streams()
        with _ended_cleanly():
            from sol_rt.cli.app import run  # here, because most of the start is imports, and Ctrl-C ends those too

            return run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        print("sol-rt: stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """Lets SIGTERM and a closed terminal end the program by an exception, so that half-written files are removed."""
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only there Python runs handlers
    # one that is ignored already, as under nohup, stays so
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is signal.SIG_DFL}

    def end(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the clearing up short
        print("sol-rt: stopped by " + signal.Signals(number).name, file=sys.stderr)
        raise SystemExit(128 + number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_standard_streams() -> None:
    """Gives a process that was started with closed streams empty ones.

    Python has None for them, and the next file opened would take their number and get what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for the whole process
