"""What commands print beside their result: notes, tables and progress, all on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class ProgressCall(Protocol):
    """How long-running functions report: the step's name, how much is done and how much there is."""

    def __call__(self, description: str, done: float, total: float) -> None: ...


def stderr() -> Console:
    """A console on stderr, plain where it is no terminal or NO_COLOR is set."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One line of information on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """The one JSON object, or list of them, of a command, on stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_table(table: Table) -> None:
    """A result table on stdout; wide enough not to be cut where stdout is a pipe."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)


@contextmanager
def progress(timed: bool = False) -> Iterator[ProgressCall]:
    """A bar for each step reported. Where stderr is no terminal, one line when a step begins.

    With `timed` the bar is drawn only when something is reported, so that it takes no time from what is measured
    between, and goes at the end.
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
