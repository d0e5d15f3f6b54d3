"""The command line `sol-rt`: one module a subcommand. stdout carries results, stderr everything else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `sol-rt` and returns its exit code: 0, 1 for run-time errors, 2 for usage, 130 after Ctrl-C.

    Args:
        argv: arguments without the program's name; the process's own by default.
    """
    try:
        _open_standard_streams()
        from sol_rt.cli.app import run  # here, because most of the start is imports, and Ctrl-C ends those too

        return run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        print("sol-rt: stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED


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
