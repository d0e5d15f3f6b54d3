"""Windows of held-out text: which stretches are scored, and how much of each."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sol_rt.errors import UsageError

SCORED = 256
"""Tokens scored at the end of a long window by default; of a short one, its second half."""


@dataclass(frozen=True)
class Window:
    """A stretch of text.

    Attributes:
        source: name of the text.
        start: index of its first token in the text, the BOS put before the text counting.
        tokens: its tokens.
        context: the first so many are prefilled dense; each later one but the last is a decode step whose distribution
            scores the token after it.
    """

    source: str
    start: int
    tokens: tuple[int, ...]
    context: int

    @property
    def steps(self) -> int:
        """Decode steps, which is tokens scored."""
        return len(self.tokens) - self.context - 1

    @cached_property
    def identity(self) -> str:
        """Names tokens and context, wherever they came from."""
        return hashlib.sha256(f"{self.context} {self.tokens}".encode()).hexdigest()[:16]


def spread_windows(
    texts: Mapping[str, Sequence[int]], size: int, bos: int | None, count: int | None, scored: int | None
) -> list[Window]:
    """At most `count` windows of `size` tokens, from all texts in turn, from each spread over its length.

    The order is such that fewer windows are the first of more, so that a run can be continued with more of them.

    Args:
        texts: token ids by name, without BOS.
        size: tokens a window, 4 at least.
        bos: put before each text, and instead of each window's first token, where the tokenizer adds one.
        count: windows at most; all of them by default.
        scored: tokens scored in each; by default the second half, at most SCORED.

    Raises UsageError where a text is shorter than a window, and where `scored` leaves no context.
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
    """0 … count - 1, in an order of which every beginning is spread over all of them: by their bits, reversed."""
    width = (count - 1).bit_length()
    order = (int(format(index, f"0{width}b")[::-1], 2) for index in range(1 << width)) if width else iter((0,))
    return [index for index in order if index < count]
