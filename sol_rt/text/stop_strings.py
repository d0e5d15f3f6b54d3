"""Ending a text before a stop string, also where it arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from sol_rt.errors import UsageError


class StopStrings:
    """Passes text through until one of the strings appears; holds back what may be the beginning of one."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        if not all(self._strings):
            raise UsageError("stop string: got an empty one, expected at least one character")
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Takes more text. Returns what may be shown now, and whether a stop string came: then nothing after it is
        shown.
        """
        text = self._held + text
        found = [at for at in (text.find(string) for string in self._strings) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What is still held back; call at the end of a text that no stop string ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that `string` begins with."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
