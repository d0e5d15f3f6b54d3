"""Splits answers by the fields of a response template, as their text comes: text, reasoning, and tool calls.

Only what may be a marker's beginning waits, with the white space before it. However a text is cut, the pieces say the
same. White space at markers is dropped. Arguments of a call come out while they are written, so what is wrong in them
stays in them. A call that is malformed before its arguments is text. Nothing else is lost.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
import string
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any

from sol_rt.serve.pieces import Piece
from sol_rt.serve.response_templates import Field
from sol_rt.serve.strict_json import loads

_LONGEST = 256
"""Characters of a tool's name."""
_LONGEST_HEAD = 2048
"""Characters of a call before its arguments."""
_STRING = rf'"(?:[^"\\]|\\.){{0,{_LONGEST}}}'
_TOKEN = re.compile(rf'\s*({_STRING}"|[{{:,])', re.DOTALL)
_CUT_TOKEN = re.compile(rf"\s*(?:{_STRING}\\?)?\Z", re.DOTALL)
_SEPARATORS = re.compile(r"[\s,;\]]*")
_NAME = re.compile(r"[\w.\-/]+")
_BARE_KEY = r"([A-Za-z_][\w.\-]*)(?=\s*:)"
_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # Mistral's templates take no other


class ResponseParser:
    """Splits one answer.

    Args:
        fields: of the response template.
        prompt: the end of the prompt, which may open a field.
        tools: names of the request's tools; none for a request without tools, whose calls are text.
    """

    def __init__(self, fields: Iterable[Field], *, prompt: str = "", tools: Collection[str] = ()) -> None:
        self._fields = [field for field in fields if tools or field.kind != "tool"]
        self._tools = frozenset(tools)
        self._buffer = ""
        self._field: Field | None = None
        self._calls = 0
        self._region: _Region | None = None
        self._at_start, self._after_marker = True, False
        for field in self._fields:
            if field.kind != "tool" and prompt.rstrip().endswith(field.open):
                self._field, self._after_marker = field, True

    @property
    def field(self) -> Field | None:
        """The field that the text is in; None outside of all."""
        return self._field

    def feed(self, text: str) -> list[Piece]:
        """Pieces that are certain once `text` has come."""
        return self._pieces(text, False)

    def finish(self) -> list[Piece]:
        """Pieces of what was held back, at the end of the answer."""
        return self._pieces("", True)

    def _pieces(self, text: str, ended: bool) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._advance(pieces, ended):
            pass
        return pieces

    def _advance(self, pieces: list[Piece], ended: bool) -> bool:
        """Takes from the buffer what is certain. Returns False once there is no more of it."""
        if self._region is not None:
            rest = self._region.take(self._buffer, pieces, ended)
            self._buffer = rest or ""
            if rest is None:
                return False
            self._after_marker = self._region.calls > self._calls
            self._calls, self._region = self._region.calls, None
            return True
        if self._field is None:
            kind, markers = "text", {text: field for field in self._fields for text in field.open}
        else:
            kind, markers = self._field.kind, dict.fromkeys(self._field.close, self._field)
        place, marker = self._first(markers)
        if marker:
            field = markers[marker]
            if field.at_start:
                marker, place = "", 0
            self._say(pieces, kind, self._buffer[:place].rstrip())
            self._buffer = self._buffer[place + len(marker) :]
            if field.kind == "tool":
                self._region = _Region(field, marker, self._calls, self._tools)
                self._at_start = False
            else:
                self._field, self._after_marker = field if self._field is None else None, True
            return True
        size = len(self._buffer) - (0 if ended else _held(self._buffer, markers))
        self._say(pieces, kind, self._buffer[:size])
        self._buffer = self._buffer[size:]
        return False

    def _first(self, markers: dict[str, Field]) -> tuple[int, str]:
        """Place of the first marker in the buffer, and the marker; an empty one if there is none."""
        found = [(self._buffer.find(text), text) for text, field in markers.items() if not field.at_start]
        if self._at_start and self._field is None:
            blank = len(self._buffer) - len(self._buffer.lstrip())
            starts = [text for text, field in markers.items() if field.at_start]
            found += [(blank, text) for text in starts if self._buffer.startswith(text, blank)]
        return min(((place, text) for place, text in found if place >= 0), default=(-1, ""))

    def _say(self, pieces: list[Piece], kind: Any, text: str) -> None:
        if self._after_marker:
            text = text.lstrip()
        if text:
            self._after_marker = False
            self._at_start = self._at_start and kind != "text"
            pieces.append(Piece(kind, text))


class _Region:
    """The calls behind one opening marker.

    Attributes:
        calls: of the answer so far.
        marked: a marker began it, which is no part of the calls.
    """

    def __init__(self, field: Field, opened: str, calls: int, tools: frozenset[str]) -> None:
        self._field, self._opened, self.calls, self._tools = field, opened, calls, tools
        self.marked, self._first = bool(opened), True
        self._text = self._dropped = ""  # what is not yet decided; what followed the arguments
        self._run: Callable[[list[Piece], bool], str | None] = self._head
        self._depth, self._nesting, self._quoted, self._escaped = 0, 0, False, False

    def take(self, text: str, pieces: list[Piece], ended: bool) -> str | None:
        """Adds what is certain to the pieces. Returns the text behind the region; None while it goes on."""
        self._text += text
        while True:
            state = self._run
            rest = state(pieces, ended)
            if rest is not None or self._run == state:
                return rest

    def _head(self, pieces: list[Piece], ended: bool) -> str | None:
        """Looks for the beginning of a call's arguments."""
        field, start = self._field, 0
        if not self._first:
            if not field.close and field.content != "json":
                return self._text
            separators = _SEPARATORS.match(self._text)
            start = separators.end() if separators else 0
        blank = self._text[start:].lstrip()
        for close in field.close:
            if blank.startswith(close):
                return blank[len(close) :]
            if blank and not ended and close.startswith(blank):
                return None
        if not blank and not self._first:
            return "" if ended else None
        try:
            name, size, self._nesting = self._named(self._text[start:])
        except _CutError:
            return self._whole(pieces) if ended else None
        except ValueError:
            if not field.close and not (self.marked and self._first):
                return self._text[start:]
            self._run = self._rest
            return None
        pieces.append(self._call(name))
        self._text, self._run, self._depth = self._text[start + size :], self._arguments, 0
        return None

    def _named(self, text: str) -> tuple[str, int, int]:
        """Name of the call, where its arguments begin, and how many objects they are in.

        Raises _CutError if more text decides, ValueError if the arguments can't be given out as they come.
        """
        if self._field.content == "python-call-list" or self._field.quote:
            raise ValueError
        if self._field.content == "json":
            found = _json_head(text)
            if self._field.at_start and found[0] not in self._tools:
                raise ValueError
            return found
        name, separator, arguments = text.partition(self._field.separator)
        if not arguments.strip() and len(name) <= _LONGEST:
            raise _CutError
        if not separator or not _NAME.fullmatch(name.strip()) or not arguments.lstrip().startswith("{"):
            raise ValueError
        return name.strip(), len(text) - len(arguments.lstrip()), 0

    def _rest(self, pieces: list[Piece], ended: bool) -> str | None:
        """Waits for the end of the region, to read its calls then."""
        ends = [(place, text) for text in self._field.close if (place := self._text.find(text)) >= 0]
        if not ends:
            return self._whole(pieces) if ended else None
        place, close = min(ends)
        self._text, behind = self._text[:place], self._text[place + len(close) :]
        self._whole(pieces, close)
        return behind

    def _whole(self, pieces: list[Piece], close: str = "") -> str:
        """Reads the calls in all the text, which is a text if it has none."""
        try:
            if self._field.at_start:
                raise ValueError
            for name, arguments in _calls(self._text, self._field):
                pieces += [self._call(name), Piece("tool", arguments, self.calls - 1)]
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            if self._first or self._text.strip(" \n\t\r,;]}"):
                pieces.append(Piece("text", self._opened + self._text + close))
        return ""

    def _arguments(self, pieces: list[Piece], ended: bool) -> str | None:
        """Gives out arguments up to their end."""
        size, close = self._scan(ended)
        if size:
            pieces.append(Piece("tool", self._text[:size], self.calls - 1))
        self._text = self._text[size:]
        if close:
            return self._text[len(close) :]
        if size and self._depth == 0:
            self._depth, self._run = self._nesting, self._tail if self._nesting else self._head
            return None
        return "" if ended else None

    def _tail(self, pieces: list[Piece], ended: bool) -> str | None:
        """Drops what follows the arguments in their object. If that does not end, it is text."""
        size, close = self._scan(ended)
        self._dropped += self._text[:size]
        self._text = self._text[size:]
        if self._depth == 0:
            self._dropped, self._run = "", self._head
            return None
        if not close and not ended:
            return None
        if self._dropped.strip():
            pieces.append(Piece("text", self._dropped))
        return self._text[len(close) :]

    def _scan(self, ended: bool) -> tuple[int, str]:
        """Follows JSON to the end of its depth, or to a closing marker outside of its texts.

        Returns the number of characters, and the marker.
        """
        for place, character in enumerate(self._text):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
                continue
            for close in self._field.close:
                if self._text.startswith(close, place):
                    return place, close
                if not ended and close.startswith(self._text[place:]):
                    return place, ""
            self._quoted = character == '"'
            self._depth += (character in "{[") - (character in "]}")
            if self._depth == 0 and character in "]}":
                return place + 1, ""
        return len(self._text), ""

    def _call(self, name: str) -> Piece:
        """The beginning of the next call."""
        call_id = "".join(secrets.choice(_CHARACTERS) for _ in range(_ID_LENGTH))
        self.calls, self._first, self._opened = self.calls + 1, False, ""
        return Piece("tool", "", self.calls - 1, name, call_id)


class _CutError(Exception):
    """A text ends before it is decided what it is."""


def _held(text: str, markers: Iterable[str]) -> int:
    """Characters at the end of a text that may be a marker's beginning, with the white space before it."""
    longest = max(map(len, markers), default=0)
    if not longest:
        return 0
    size = next(
        (n for n in range(min(longest, len(text)), 0, -1) if any(marker.startswith(text[-n:]) for marker in markers)), 0
    )
    return len(text) - len(text[: len(text) - size].rstrip())


def _json_head(text: str) -> tuple[str, int, int]:
    """Name of the call that begins a JSON text, where its arguments begin, and how many objects they are in.

    Raises _CutError if the text is too short for that, ValueError if something else is in front of the arguments.
    """
    place, nesting, name = 0, 0, ""

    def token() -> str:
        nonlocal place
        if place > _LONGEST_HEAD:
            raise ValueError
        if (found := _TOKEN.match(text, place)) is None:
            raise _CutError if _CUT_TOKEN.match(text, place) else ValueError
        place = found.end()
        return found[1]

    if (opening := token()) == "[":
        opening = token()
    while opening == "{" or opening == ",":
        nesting += opening == "{"
        key = _text(token())
        if token() != ":":
            break
        value = token()
        if value == "{" and key in ("arguments", "parameters") and name:
            return name, place - 1, nesting
        if value == "{" and key == "function":
            opening = value
            continue
        if value[0] != '"' or key not in ("name", "type", "id", "function"):
            break
        if key == "name" or (key == "function" and not name):
            name = _text(value)
        opening = token()
        if opening != ",":
            break
    raise ValueError


def _text(token: str) -> str:
    """The text that a token of JSON is. Raises ValueError for anything else."""
    found = json.loads(token)
    if not isinstance(found, str):
        raise ValueError(token)
    found.encode()  # half of a surrogate pair can't be sent
    return found


def _calls(text: str, field: Field) -> list[tuple[str, str]]:
    """Names and arguments, which are JSON, of all calls in a text. Raises what the parsers raise for anything else."""
    if field.content == "named-json":
        return [_named_call(text, field)]
    if field.content == "python-call-list":
        try:
            return _json_calls(text)
        except ValueError:
            return _python_calls(text)
    try:
        return _json_calls(text)
    except ValueError:
        return _json_calls("[" + text.lstrip(" \n\t\r,;"))  # a marker had the bracket, or calls before these


def _json_calls(text: str) -> list[tuple[str, str]]:
    values = loads(text)
    found = []
    for value in values if isinstance(values, list) else [values]:
        call = value.get("function") if isinstance(value, dict) and "function" in value else value
        if not isinstance(call, dict):
            raise ValueError(call)
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = loads(arguments)
        found.append(_checked(call.get("name"), arguments))
    return found


def _named_call(text: str, field: Field) -> tuple[str, str]:
    name, separator, arguments = text.partition(field.separator)
    if field.separator == "{":
        arguments = separator + arguments
    if field.quote:
        quote = re.escape(field.quote)
        texts = re.compile(f"{quote}(.*?){quote}|{_BARE_KEY}", re.DOTALL)
        arguments = texts.sub(lambda found: json.dumps(found[1] if found[2] is None else found[2]), arguments)
    return _checked(name.strip(), loads(arguments))


def _python_calls(text: str) -> list[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python doesn't know
        statements = ast.parse(text.strip()).body
    found = []
    for statement in statements:
        value = statement.value if isinstance(statement, ast.Expr) else None
        for call in value.elts if isinstance(value, ast.List) else [value]:
            if not isinstance(call, ast.Call) or call.args or any(each.arg is None for each in call.keywords):
                raise ValueError(text)
            arguments = {each.arg: ast.literal_eval(_Constants().visit(each.value)) for each in call.keywords}
            found.append(_checked(ast.unparse(call.func), arguments))
    return found


class _Constants(ast.NodeTransformer):
    """Reads JSON's constants in Python."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        values = {"true": True, "false": False, "null": None}
        return ast.Constant(values[node.id]) if node.id in values else node


def _checked(name: Any, arguments: Any) -> tuple[str, str]:
    """A call as it is given out. Raises ValueError, TypeError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(arguments, dict):
        raise ValueError(name)
    written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        written.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        written = json.dumps(arguments, allow_nan=False)
    return name, written
