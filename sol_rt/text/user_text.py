"""Keeps the special tokens that a user types from becoming control tokens.

The content of messages is text, whatever it says. Only the template's own text makes special tokens. So before a
template is rendered, one character of every special token in the messages is replaced by a mark. A mark is a character
of a private-use plane that the messages do not have. The marks show in the rendered prompt what came from the messages.

A template may join texts. So the end of a text gets a mark where it may begin a special token, and the beginning where
it may end one.

A template may also rewrite texts, so that other characters become a special token. So it renders a second conversation,
in which every character of the contents is another one: `without_content`. Its special tokens are the template's own. A
prompt that has others is refused. Calls of tools, their results and the tools' own descriptions count as contents. What
a template writes of a message's other fields, such as its role, is not checked in this way.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sol_rt.errors import UsageError

_FIRST_MARK = 0xF0000  # of two planes of 65,536 private-use characters each
_NOTHING = "\ue000"  # a private-use character of another plane
_KEYS = 0xE001, 6000  # the next ones stand for the keys of a dict
_CONTENTS = {"content", "reasoning_content", "name", "tool_calls", "tool_call_id", "tools"}
"""Fields of a message whose text anyone may have written."""
_SCHEMA = {
    *("type", "function", "id", "name", "description", "parameters", "arguments", "strict", "text", "content"),
    *("properties", "required", "items", "enum", "default", "title", "format", "anyOf", "allOf", "oneOf", "nullable"),
}
"""Keys by which templates find their way in tools and calls."""
_TYPES = {
    *("function", "text", "image", "image_url", "audio", "input_audio", "video", "file"),
    *("object", "array", "string", "number", "integer", "boolean", "null"),
}
"""Types, which decide what a template writes."""
_VISIBLE = re.compile(r"\S")


class UserText:
    """Marks special tokens in the values of a rendering.

    Args:
        special: the tokenizer's special tokens as text. Lower and upper case are the same here, because a template may
            change them.
        values: what the template will see, made of strings, numbers, lists and mappings.

    Attributes:
        marked: `values` with marks.

    Raises UsageError for values that nest too deeply, and for those that use up the characters that could be marks.
    """

    def __init__(self, special: Collection[str], values: Any) -> None:
        tokens = sorted({token.lower() for token in special if token})
        self._beginnings = tokens  # in order, for a binary search
        self._endings = sorted(token[::-1] for token in tokens)
        self._longest = max(map(len, tokens), default=0)
        # a look-ahead finds tokens that overlap, too
        self._pattern = re.compile(f"(?={'|'.join(map(re.escape, tokens))})", re.IGNORECASE) if tokens else None
        self._marks: dict[str, str] = {}
        try:
            taken = {character for text in _texts(values) for character in text if ord(character) >= _FIRST_MARK}
            self._free = (chr(code) for code in range(_FIRST_MARK, 0x110000) if chr(code) not in taken)
            self.marked = self._replaced(values)
        except RecursionError:
            got = "lists or dicts that nest too deeply"
            raise UsageError(f"messages: got {got}, expected texts, or lists of parts with texts") from None
        self._without = str.maketrans(dict.fromkeys(self._marks.values(), ""))
        self._originals = str.maketrans({mark: character for character, mark in self._marks.items()})

    def marks(self, text: str) -> bool:
        """True if a text has a mark."""
        return any(mark in text for mark in self._marks.values())

    def restored(self, text: str) -> str:
        """The text without marks, as the messages had it."""
        return text.translate(self._originals)

    def unmarked(self, text: str) -> str:
        """The text without the characters that are marked."""
        return text.translate(self._without)

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._with_marks(value)
        if isinstance(value, Mapping):
            return {
                self._with_marks(key) if isinstance(key, str) else key: self._replaced(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._replaced(item) for item in value]
        return value

    def _with_marks(self, text: str) -> str:
        if self._pattern is None:
            return text
        places = {found.start() for found in self._pattern.finditer(text)}
        # templates strip texts before they join them
        if _ends_within(text.rstrip()[-self._longest :], self._beginnings):
            places.add(len(text.rstrip()) - 1)
        if _ends_within(text.lstrip()[: self._longest][::-1], self._endings):
            places.add(len(text) - len(text.lstrip()))
        if not places:
            return text
        characters = list(text)
        for place in places:
            characters[place] = self._mark(characters[place])
        return "".join(characters)

    def _mark(self, character: str) -> str:
        if character not in self._marks:
            mark = next(self._free, None)
            if mark is None:
                got = "a special token beside all characters from U+F0000 to U+10FFFF"
                raise UsageError(f"messages: got {got}; leave out some of these characters, which have no meaning")
            self._marks[character] = mark
        return self._marks[character]


def without_content(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """The messages with all characters of their contents but white space replaced by one that means nothing."""
    return [
        {key: blank(value) if key in _CONTENTS else value for key, value in message.items()} for message in messages
    ]


def blank(value: Any, is_type: bool = False) -> Any:
    """A value with the characters of its texts and keys replaced. What decides what a template does with it stays."""
    if isinstance(value, str):
        return value if is_type and value in _TYPES else _VISIBLE.sub(_NOTHING, value)
    if isinstance(value, Mapping):
        return {_blank_key(place, key): blank(item, key == "type") for place, (key, item) in enumerate(value.items())}
    if isinstance(value, (list, tuple)):
        return [blank(item, is_type) for item in value]
    return value


def _blank_key(place: int, key: Any) -> Any:
    """Another key for each place of a dict, so that there are as many."""
    first, count = _KEYS
    return chr(first + place % count) if isinstance(key, str) and key not in _SCHEMA else key


def _ends_within(text: str, tokens: Sequence[str]) -> bool:
    """True if the end of a text is the beginning of one of the sorted tokens, but not all of it."""
    for size in range(1, len(text) + 1):
        end = text[-size:].lower()
        at = bisect_left(tokens, end)
        if any(token != end and token.startswith(end) for token in tokens[at : at + 2]):
            return True
    return False


def _texts(value: Any) -> Iterator[str]:
    """Every string in a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
