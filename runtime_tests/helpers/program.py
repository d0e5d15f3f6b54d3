"""The command line as a process that signals can end, however the tests themselves were started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGHUP, SIGINT, SIGTERM, Signals
from typing import Any

_LAUNCHER = """
import os, signal, sys
for number in map(int, sys.argv[1].split(",")):
    signal.signal(number, signal.SIG_IGN if sys.argv[2] == str(number) else signal.SIG_DFL)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def started(*argv: str, ignored: Signals | None = None, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`sol-rt` with `argv`, as a terminal starts it; `streams` go to Popen. Killed where the block leaves it running.

    A process inherits the signals that its parent ignores: SIGINT from a shell's background job, SIGHUP from nohup.
    So a launcher gives SIGINT, SIGHUP and SIGTERM their default actions before it becomes the program, except that
    the signal `ignored` is ignored.
    """
    numbers = ",".join(str(int(number)) for number in (SIGINT, SIGHUP, SIGTERM))
    program = [sys.executable, "-m", "sol_rt", *argv]
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, numbers, str(int(ignored or 0))]
    with subprocess.Popen([*launcher, *program], start_new_session=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()  # a process that has ended is left alone; one that waits would keep the tests waiting
