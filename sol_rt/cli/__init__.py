"""The command line `sol-rt`: one module per subcommand. stdout carries results, stderr everything else.

May import: everything; sol_rt.export and sol_rt.train only in cli/make, inside functions.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""
_RESTARTED = "_SOL_RT_RESTARTED"
"""Variable by which the new program knows that `_use_utf8` has started it."""
_WITHOUT_BLAS = (["generate"], ["chat"])
"""Commands that give numpy's linear algebra a few numbers at most."""
READER_GONE = 128 + 13
"""Exit code after the reader of stdout or stderr has left: what a shell says of a program that SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `sol-rt` and returns its exit code.

    It is 0, 1 for run-time errors, 2 for wrong usage, 130 after Ctrl-C, and 141 if the reader of the output left.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Raises SystemExit if SIGTERM or SIGHUP ends the program.
    """
    if argv is None:
        _use_utf8()
    try:
        _open_standard_streams()
        _encode_every_text()
        with _ended_cleanly():
            from sol_rt.cli.app import run  # imported here, so that Ctrl-C during the slow imports ends cleanly too

            code = run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        print("sol-rt: stopped by Ctrl-C", file=sys.stderr)
        code = INTERRUPTED
    return code


def program() -> NoReturn:
    """The program `sol-rt`. It ends without taking down interpreter and sessions, which takes a tenth of a second.

    What `atexit` holds is run, and the standard streams are flushed. Threads that still run are not waited for: none of
    them writes a file.
    """
    if sys.argv[1:2] in _WITHOUT_BLAS:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # importing numpy starts threads, which spin for 50 ms
    code = main()
    atexit._run_exitfuncs()  # os._exit leaves them out, and there is no public way to run them
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _use_utf8() -> None:
    """Begins anew in Python's UTF-8 mode if the locale has another encoding: prompts, text and paths are UTF-8.

    It does so once. A frozen program does not: its executable is the program itself, which takes no options of Python.
    """
    restarted = os.environ.pop(_RESTARTED, None) is not None
    wrong = sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode
    if wrong and not restarted and not getattr(sys, "frozen", False) and sys.platform != "win32" and sys.executable:
        os.environ[_RESTARTED] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into an exception, so that the program removes half-written files before it ends."""
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python runs signal handlers only in the main thread
    # a signal that is already ignored, as under nohup, stays ignored
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is signal.SIG_DFL}

    def end(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
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
    """Opens the null device for each standard stream that was closed when the process started.

    Python sets a closed stream to None. The next file that the program opens would get the stream's number, and
    libraries would print into that file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for the whole process


def _encode_every_text() -> None:
    """Lets stdout take every text: UTF-8 has the bytes of paths as they are, another encoding `?` for what it lacks."""
    from sol_rt.cli.console import is_utf8

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8(sys.stdout) else "replace")
