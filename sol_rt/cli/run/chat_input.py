"""Reads the messages of a chat: lines, and messages of several lines.

A line that ends with a backslash goes on in the next one. Three quotation marks begin a message, which goes on until
three quotation marks end a line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from sol_rt.cli.console import note
from sol_rt.cli.run.interrupts import Interrupts
from sol_rt.errors import UsageError

QUOTES = '"""'


class Entry(NamedTuple):
    """Input of a user: a message, or a command if it begins with a slash and was not in quotation marks."""

    text: str
    command: bool


def entries(interactive: bool, interrupts: Interrupts) -> Iterator[Entry]:
    """The messages and commands, until the input ends. Empty ones are left out.

    Ctrl-C at the prompt drops what was typed. Where the input is no terminal, it raises KeyboardInterrupt, and
    a message whose closing quotation marks are missing raises UsageError.
    """
    if interactive:
        _edit_lines()
    while True:
        interrupts.forget()
        try:
            with interrupts.heeded():
                entry = _entry(interactive)
        except KeyboardInterrupt:
            note("")
            if not interactive:
                raise
            continue
        if entry is None:
            return
        if entry.text.strip():
            yield entry


def _edit_lines() -> None:
    """Gives input() line editing and history; a pasted text of several lines then is one message."""
    try:
        import readline
    except ImportError:  # Windows edits lines itself
        return
    readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off


def _entry(interactive: bool) -> Entry | None:
    """The next message or command; None at the end of the input."""
    line = _line(interactive, "> ")
    if line is None:
        return None
    if line.lstrip().startswith(QUOTES):
        return Entry(_quoted(line.lstrip().removeprefix(QUOTES), interactive), command=False)
    lines = []
    while line is not None and line.endswith("\\"):
        lines.append(line.removesuffix("\\"))
        line = _line(interactive, "... ")
    text = "\n".join(lines if line is None else [*lines, line])
    return Entry(text, command=text.startswith("/"))


def _quoted(line: str, interactive: bool) -> str:
    lines = []
    while not line.rstrip().endswith(QUOTES):
        lines.append(line)
        more = _line(interactive, "... ")
        if more is None:
            if interactive:
                return ""
            raise UsageError(f"chat: the input ended within a message; end the message with {QUOTES}")
        line = more
    return "\n".join([*lines, line.rstrip().removesuffix(QUOTES)]).strip("\n")


def _line(interactive: bool, prompt: str) -> str | None:
    try:
        return input(prompt) if interactive else next(sys.stdin).rstrip("\n")
    except (EOFError, StopIteration):
        return None
