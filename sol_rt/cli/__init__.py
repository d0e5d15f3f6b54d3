"""The command line `sol-rt`: one module a subcommand. stdout carries results, stderr everything else."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `sol-rt` and returns its exit code: 0, 1 for run-time errors, 2 for usage, 130 after Ctrl-C.

    Args:
        argv: arguments without the program's name; the process's own by default.
    """
    from sol_rt.cli.app import run

    return run(sys.argv[1:] if argv is None else list(argv))
