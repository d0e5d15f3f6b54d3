"""Windows of held-out text: which parts of a text are scored, and how many tokens of each part."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sol_rt.errors import UsageError

SCORED = 256
"""Default limit of the tokens scored at the end of a window; by default its second half is scored."""


@dataclass(frozen=True)
class Window:
    """A contiguous part of a text.

    Attributes:
        source: name of the text.
        start: index of the window's first token in the text; a BOS before the text counts as a token.
        tokens: token ids of the window.
        context: number of first tokens that are prefilled dense. Each later token but the last is a decode step, whose
            distribution scores the next token.
    """

    source: str
    start: int
    tokens: tuple[int, ...]
    context: int

    @property
    def steps(self) -> int:
        """Number of decode steps, which is also the number of scored tokens."""
        return len(self.tokens) - self.context - 1

    @cached_property
    def identity(self) -> str:
        """Hash of tokens and context, the same for equal windows of any text."""
        return hashlib.sha256(f"{self.context} {self.tokens}".encode()).hexdigest()[:16]


def spread_windows(
    texts: Mapping[str, Sequence[int]], size: int, bos: int | None, count: int | None, scored: int | None
) -> list[Window]:
    """Chooses at most `count` windows of `size` tokens, one from each text in turn, spread over the text's length.

    A smaller `count` gives the first windows of a larger one, so that a run can be continued with more windows.

    Args:
        texts: token ids by name, without BOS.
        size: tokens per window, 4 or more.
        bos: token that is put before each text and replaces each window's first token; None if the tokenizer adds none.
        count: number of windows at most; None means all.
        scored: tokens scored in each window; None means the second half, at most SCORED.

    Raises UsageError if a text is shorter than a window or if `scored` leaves no context.
    """
    steps = min(size - size // 2 - 1, SCORED) if scored is None else scored
    if not 1 <= steps <= size - 2:
        raise UsageError(f"--scored: got {scored} of windows of {size} tokens, expected 1 to {size - 2}")
    orders = []
    for name, text in texts.items():
        tokens = list(text) if bos is None else [bos, *text]
        if len(tokens) < size:
            raise UsageError(f"{name}: has {len(tokens)} tokens, expected {size} for a window; use a smaller -c")
        orders.append([_window(name, tokens, index * size, size, bos, steps) for index in _spread(len(tokens) // size)])
    turns = itertools.zip_longest(*orders)
    return [window for turn in turns for window in turn if window is not None][:count]


def _window(name: str, tokens: Sequence[int], start: int, size: int, bos: int | None, steps: int) -> Window:
    cut = list(tokens[start : start + size])
    if bos is not None:
        cut[0] = bos
    return Window(name, start, tuple(cut), size - steps - 1)


def _spread(count: int) -> list[int]:
    """The numbers 0 to count - 1, ordered by their reversed bits: each prefix of the list is spread over the range."""
    width = (count - 1).bit_length()
    order = (int(format(index, f"0{width}b")[::-1], 2) for index in range(1 << width)) if width else iter((0,))
    return [index for index in order if index < count]
