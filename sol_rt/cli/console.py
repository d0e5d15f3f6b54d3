"""Output of commands: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TextIO

from sol_rt.errors import plain

if TYPE_CHECKING:
    from rich.table import Table

    from sol_rt.cli.progress_bar import Shown

_PIPE_COLUMNS = 1000
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters of a model's text that a terminal would obey: controls but for line breaks and tabs, and those that turn
the direction of writing.
"""


def note(text: str) -> None:
    """Prints information on stderr, without characters that a terminal would obey."""
    print("\n".join(map(plain, text.split("\n"))), file=sys.stderr, flush=True)


def print_text(text: str) -> None:
    """Prints a piece of a model's text on stdout at once. A terminal gets escapes of the characters it would obey."""
    sys.stdout.write(_OBEYED.sub(lambda found: plain(found[0]), text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_json(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Prints a command's JSON result, an object or a list of objects, on stdout.

    Characters that the encoding of stdout lacks, or that a terminal would obey, are written as escapes of JSON.
    """
    text = json.dumps(value, ensure_ascii=not is_utf8(sys.stdout), allow_nan=False)
    if sys.stdout.isatty():
        text = _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    print(text)


def is_utf8(stream: TextIO) -> bool:
    """Returns whether a stream writes UTF-8. One in memory has no encoding, and takes every text as well."""
    return stream.encoding is None or codecs.lookup(stream.encoding).name == "utf-8"


def progress(timed: bool = False, after: float = 0.0) -> AbstractContextManager[Shown]:
    """Shows the progress of a command: see `progress_bar.progress`."""
    from sol_rt.cli.progress_bar import progress as shown

    return shown(timed, after)


def print_table(table: Table) -> None:
    """Prints a result table on stdout. In a pipe the table is as wide as it needs, so that no cell is cut off."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    console.print(table)
