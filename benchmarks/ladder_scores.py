"""Losses of many models on the same windows: kept in a file, window by window, and compared in pairs.

A stopped run goes on where it was: what is known of a window is found by its tokens, so that another text, tokenizer
or number of windows never takes an old result for its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Loss:
    """A model's loss on windows of one length.

    Attributes:
        tokens: tokens scored in each window, all alike.
        sums: nats of every window, float64 [windows].
        squares: sum of squares of the tokens' nats in every window, float64 [windows].
    """

    tokens: int
    sums: np.ndarray
    squares: np.ndarray

    @property
    def mean(self) -> float:
        """Nats a token."""
        return float(self.sums.sum()) / (self.tokens * len(self.sums))

    @property
    def ppl(self) -> float:
        return math.exp(self.mean)

    @property
    def ppl_error(self) -> float:
        """Standard error of the perplexity, tokens taken as independent, as llama-perplexity has it."""
        count = self.tokens * len(self.sums)
        variance = float(self.squares.sum()) / count - self.mean**2
        return self.ppl * math.sqrt(max(variance, 0.0) / (count - 1))


@dataclass(frozen=True)
class Difference:
    """Mean of a paired difference in nats a token, and its standard error over windows, taken as independent."""

    mean: float
    error: float

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return self.mean - 1.96 * self.error

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return self.mean + 1.96 * self.error


def difference(first: Loss, second: Loss, share: float = 1.0, base: Loss | None = None) -> Difference:
    """`first` minus `second` on the same windows.

    With `base` it is that of their increases over it, the second's multiplied by `share`: below 0 where the first adds
    less than that share of what the second adds.

    Raises ValueError where windows differ in number or length.
    """
    losses = [first, second, base or second]
    if len({(loss.tokens, len(loss.sums)) for loss in losses}) > 1:
        raise ValueError("got losses on different windows, expected the same")
    one, two, zero = (loss.sums / loss.tokens for loss in losses)
    each = one - zero - share * (two - zero)
    error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    return Difference(float(each.mean()), float(error))


class Scores:
    """The file; every result is on disk as soon as it is kept.

    Args:
        path: JSON; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, dict[str, list[float]]] = json.loads(path.read_text()) if path.exists() else {}

    def missing(self, model: str, windows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Windows without a result."""
        kept = self._kept.get(model, {})
        return [window for window in windows if _name(window) not in kept]

    def keep(self, model: str, window: Sequence[int], nats: Sequence[float] | np.ndarray) -> None:
        """Puts the nats of a window's scored tokens on disk.

        Args:
            model: name of the model that tells it from all others.
            window: token ids.
            nats: of every scored token.
        """
        each = np.asarray(nats, np.float64)
        result = [float(each.size), float(each.sum()), float(np.square(each).sum())]
        self._kept.setdefault(model, {})[_name(window)] = result
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._kept))
        part.replace(self._path)

    def loss(self, model: str, windows: Sequence[Sequence[int]]) -> Loss:
        """Raises KeyError where a window has no result."""
        rows = np.array([self._kept[model][_name(window)] for window in windows])
        return Loss(int(rows[0, 0]), rows[:, 1], rows[:, 2])


def _name(window: Sequence[int]) -> str:
    """What a window is found by: its length and the sha256 of its tokens."""
    return f"{len(window)}-{hashlib.sha256(np.asarray(window, np.int64).tobytes()).hexdigest()[:16]}"
