"""The content of an answer as it grows: blocks of text, reasoning and tool calls, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from sol_rt.generate.results import GeneratedToken
from sol_rt.serve.pieces import Piece


@dataclass(eq=False)
class Block:
    """Pieces of one kind that follow each other.

    Attributes:
        kind: `text`, `reasoning`, or `tool`.
        place: of the block within the answer.
        index: of the tool call among the tool calls.
        name: of the tool.
        call_id: id of the call.
        text: all that has come; of a tool call its arguments, which are JSON.
        tokens: that ended in this block.
    """

    kind: Literal["text", "reasoning", "tool"]
    place: int
    index: int = 0
    name: str = ""
    call_id: str = ""
    text: str = ""
    tokens: list[GeneratedToken] = field(default_factory=list)


@dataclass(frozen=True)
class Delta:
    """A piece and the block that it belongs to.

    Attributes:
        block: the block, the piece included.
        text: what the piece adds.
        first: the piece begins the block.
    """

    block: Block
    text: str
    first: bool


@dataclass
class Content:
    """The content so far.

    Attributes:
        blocks: in order.
        tokens: in order.
        reasoning_tokens: tokens that gave reasoning alone.
    """

    blocks: list[Block] = field(default_factory=list)
    tokens: list[GeneratedToken] = field(default_factory=list)
    reasoning_tokens: int = 0

    def add(self, token: GeneratedToken, pieces: Iterable[Piece]) -> list[Delta]:
        """Adds the pieces that came with a token. A tool call's pieces follow each other."""
        deltas = [self._add(piece) for piece in pieces]
        self.tokens.append(token)
        if self.blocks:
            self.blocks[-1].tokens.append(token)
        self.reasoning_tokens += {delta.block.kind for delta in deltas} == {"reasoning"}
        return deltas

    def text(self, kind: Literal["text", "reasoning"]) -> str:
        """All blocks of a kind, joined."""
        return "".join(block.text for block in self.blocks if block.kind == kind)

    def calls(self) -> list[Block]:
        """The tool calls."""
        return [block for block in self.blocks if block.kind == "tool"]

    def _add(self, piece: Piece) -> Delta:
        last = self.blocks[-1] if self.blocks else None
        first = last is None or last.kind != piece.kind or (piece.kind == "tool" and last.index != piece.index)
        if last is None or first:
            last = Block(piece.kind, len(self.blocks), piece.index, piece.name, piece.call_id)
            self.blocks.append(last)
        last.text += piece.text
        return Delta(last, piece.text, first)
