"""How commands print: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_PIPE_COLUMNS = 1000


class ProgressCall(Protocol):
    """Progress callback of a long-running function: the step's name, the amount done, and the amount in total."""

    def __call__(self, description: str, done: float, total: float) -> None: ...


def stderr() -> Console:
    """A console on stderr, without colours if stderr is not a terminal or NO_COLOR is set."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Prints one line of information on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Prints a command's JSON result, an object or a list of objects, on stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_table(table: Table) -> None:
    """Prints a result table on stdout. In a pipe the table is as wide as it needs, so that no cell is cut off."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    console.print(table)


@contextmanager
def progress(timed: bool = False) -> Iterator[ProgressCall]:
    """Draws a progress bar for each step. If stderr is not a terminal, prints one line when a step begins.

    With `timed`, the bar is redrawn only when the caller reports progress, and removed at the end. Drawing then takes
    no time from what the caller measures between two reports.
    """
    console = stderr()
    if not console.is_terminal:
        started: set[str] = set()

        def plain(description: str, done: float, total: float) -> None:
            if description not in started:
                started.add(description)
                note(f"{description} ...")

        yield plain
        return

    percent = TextColumn("{task.percentage:>3.0f}%")
    columns = TextColumn("{task.description}"), BarColumn(), percent, TimeRemainingColumn()
    with Progress(*columns, console=console, transient=timed, auto_refresh=not timed) as bars:
        tasks: dict[str, Any] = {}

        def bar(description: str, done: float, total: float) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=total)
            bars.update(tasks[description], completed=done, total=total, refresh=timed)

        yield bar
