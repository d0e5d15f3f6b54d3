"""How commands print: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sol_rt.errors import plain

if TYPE_CHECKING:
    from rich.table import Table

    from sol_rt.cli.progress_bar import Shown

_PIPE_COLUMNS = 1000


def note(text: str) -> None:
    """Prints information on stderr, without characters that a terminal would obey."""
    print("\n".join(map(plain, text.split("\n"))), file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Prints a command's JSON result, an object or a list of objects, on stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def progress(timed: bool = False, after: float = 0.0) -> AbstractContextManager[Shown]:
    """Shows how far a command is: see `progress_bar.progress`."""
    from sol_rt.cli.progress_bar import progress as shown

    return shown(timed, after)


def print_table(table: Table) -> None:
    """Prints a result table on stdout. In a pipe the table is as wide as it needs, so that no cell is cut off."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    console.print(table)
