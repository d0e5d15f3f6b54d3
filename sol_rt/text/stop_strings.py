"""Ends a text before a stop string, even if the stop string arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from sol_rt.errors import UsageError


class StopStrings:
    """Passes text through until a stop string appears. Holds back text that may be the beginning of a stop string."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        if not all(self._strings):
            raise UsageError("stop string: got an empty one, expected at least one character")
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Adds text. Returns the text that may be shown now, and whether a stop string was found.

        The stop string and all text after it are never returned.
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
        """Returns the text that is still held back. Call it at the end of a text that no stop string ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Length of the longest suffix of `text` that `string` begins with; shorter than `string` itself."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
