"""Parts of an answer's text as protocols tell them apart: text, reasoning, tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Piece:
    """A part that came with one token.

    Attributes:
        kind: `text`, `reasoning`, or `tool`.
        text: the part; of a tool call a part of its arguments, which are JSON.
        index: of the tool call within the answer.
        name: of the tool, with the first piece of a call; empty afterwards.
        call_id: id of the call, with its first piece; empty afterwards.
    """

    kind: Literal["text", "reasoning", "tool"]
    text: str
    index: int = 0
    name: str = ""
    call_id: str = ""


class Parser(Protocol):
    """Splits the text of one answer as it comes."""

    def feed(self, text: str) -> list[Piece]:
        """Pieces that are certain once `text` has come."""

    def finish(self) -> list[Piece]:
        """Pieces of what was held back, at the end of the answer."""


class PlainParser:
    """All text is the answer's text."""

    def feed(self, text: str) -> list[Piece]:
        """`text` itself, unless it is empty."""
        return [Piece("text", text)] if text else []

    def finish(self) -> list[Piece]:
        """Nothing: nothing is held back."""
        return []
