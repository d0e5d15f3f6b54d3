"""The tokens that may come next, as the core asks a caller's function for them before each pick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sol_rt.generate.native.callbacks import Callbacks
from sol_rt.native import structs

FILLED, STOP = 1, 2
"""Answers: the bits of the allowed tokens are set; the text is complete."""


class TokenMask(Callbacks):
    """A mask of one generation.

    Args:
        fill: takes the tokens since the last call, and address and size in bytes of the mask, whose bits are 0. It sets
            bit t % 32 of the uint32 at t // 32 for each allowed token t, and returns FILLED or STOP.

    Attributes:
        callback: the `sol_mask` to hand over; valid as long as this object.
        complete: True once `fill` has said so: the last token is then part of the text, not an end token.
    """

    def __init__(self, fill: Callable[[Sequence[int], int, int], int]) -> None:
        super().__init__()
        self._fill, self._seen, self.complete = fill, 0, False
        self.callback = structs.Mask(
            lambda _, tokens, count, mask, words: self.answer(lambda: self._ask(tokens, count, mask, 4 * words), -1)
        )

    def _ask(self, tokens: Any, count: int, mask: int, size: int) -> int:
        seen, self._seen = self._seen, count
        answer = self._fill(tokens[seen:count], mask, size)
        self.complete = answer == STOP
        return answer
