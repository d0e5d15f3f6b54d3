"""Keeps the special tokens that a user types from becoming control tokens.

The content of messages is text, whatever it says. Only the template's own text makes special tokens. So before a
template is rendered, the first character of every special token in the messages is replaced by a mark: a character of
a private-use plane that the messages do not have. The marks show in the rendered prompt what came from the messages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_FIRST_MARK = 0xF0000  # of a plane of 65,534 private-use characters


class UserText:
    """Marks special tokens in the values of a rendering.

    Args:
        special: the tokenizer's special tokens as text.
        values: what the template will see, made of strings, numbers, lists and mappings.

    Attributes:
        marked: `values` with marks.
    """

    def __init__(self, special: Collection[str], values: Any) -> None:
        self._special = tuple(token for token in special if token)
        taken = {character for text in _texts(values) for character in text if ord(character) >= _FIRST_MARK}
        free = (chr(code) for code in range(_FIRST_MARK, 0x110000) if chr(code) not in taken)
        self._marks = dict(zip(sorted({token[0] for token in self._special}), free, strict=False))
        self._originals = str.maketrans({mark: first for first, mark in self._marks.items()})
        # a look-ahead finds tokens that overlap, too
        self._pattern = re.compile(f"(?={'|'.join(map(re.escape, self._special))})") if self._special else None
        self.marked = self._replaced(values)

    def marks(self, text: str) -> bool:
        """Whether a text has a mark."""
        return any(mark in text for mark in self._marks.values())

    def restored(self, text: str) -> str:
        """The text without marks, as the messages had it."""
        return text.translate(self._originals)

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._with_marks(value)
        if isinstance(value, Mapping):
            return {self._replaced(key): self._replaced(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._replaced(item) for item in value]
        return value

    def _with_marks(self, text: str) -> str:
        starts = [found.start() for found in self._pattern.finditer(text)] if self._pattern else []
        if not starts:
            return text
        characters = list(text)
        for start in starts:
            characters[start] = self._marks[characters[start]]
        return "".join(characters)


def _texts(value: Any) -> list[str]:
    """Every string in a value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _texts(part)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return []
