"""Stores the losses of many models on the same windows in a file, and compares models in pairs. ladder.py uses it.

A stopped run continues where it was. A window's result is stored under a hash of the window's tokens, so that a run
with another text, tokenizer or number of windows never takes an old result for its own.
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
        tokens: number of tokens scored in each window.
        sums: sum of the tokens' losses in each window, nats, float64 [windows].
        squares: sum of the squares of the tokens' losses in each window, float64 [windows].
    """

    tokens: int
    sums: np.ndarray
    squares: np.ndarray

    @property
    def mean(self) -> float:
        """Mean loss, nats per token."""
        return float(self.sums.sum()) / (self.tokens * len(self.sums))

    @property
    def ppl(self) -> float:
        return math.exp(self.mean)

    @property
    def ppl_error(self) -> float:
        """Standard error of the perplexity. Tokens are treated as independent, as in llama-perplexity."""
        count = self.tokens * len(self.sums)
        variance = float(self.squares.sum()) / count - self.mean**2
        return self.ppl * math.sqrt(max(variance, 0.0) / (count - 1))


@dataclass(frozen=True)
class Difference:
    """Mean of a paired difference in nats per token, and its standard error; windows are treated as independent.

    Attributes:
        mean: the mean over windows.
        error: its standard error; infinite for a single window.
        count: number of windows.
    """

    mean: float
    error: float
    count: int

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return self.mean - students_t(self.count - 1) * self.error

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return self.mean + students_t(self.count - 1) * self.error


def students_t(degrees: int) -> float:
    """The 97.5% quantile of Student's t, to 0.005; infinite at 0 degrees of freedom.

    From 3 degrees on by its expansion about the normal quantile (Abramowitz and Stegun, 26.7.5).
    """
    if degrees < 3:
        return (math.inf, 12.706, 4.303)[degrees]
    z, v = 1.959964, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def difference(first: Loss, second: Loss, share: float = 1.0, base: Loss | None = None) -> Difference:
    """Computes (first - base) - share * (second - base) on the same windows; without `base`, first - second.

    With `base`, the result is below 0 if `first` adds less to the base's loss than `share` of what `second` adds.

    Raises ValueError if the windows differ in number or length.
    """
    losses = [first, second, base or second]
    if len({(loss.tokens, len(loss.sums)) for loss in losses}) > 1:
        raise ValueError("got losses on different windows, expected the same")
    one, two, zero = (loss.sums / loss.tokens for loss in losses)
    each = one - zero - share * (two - zero)
    error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    return Difference(float(each.mean()), float(error), len(each))


class Scores:
    """Results by model and window, in a JSON file. Each result is written to disk at once.

    Args:
        path: the file; it is created if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, dict[str, list[float]]] = json.loads(path.read_text()) if path.exists() else {}

    def missing(self, model: str, windows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The windows for which a model has no result."""
        kept = self._kept.get(model, {})
        return [window for window in windows if _name(window) not in kept]

    def keep(self, model: str, window: Sequence[int], nats: Sequence[float] | np.ndarray) -> None:
        """Stores the result of a window.

        Args:
            model: unique name of the model.
            window: token ids.
            nats: loss of every scored token, nats.
        """
        each = np.asarray(nats, np.float64)
        result = [float(each.size), float(each.sum()), float(np.square(each).sum())]
        self._kept.setdefault(model, {})[_name(window)] = result
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._kept))
        part.replace(self._path)

    def loss(self, model: str, windows: Sequence[Sequence[int]]) -> Loss:
        """A model's loss on the windows. Raises KeyError if a window has no result."""
        rows = np.array([self._kept[model][_name(window)] for window in windows])
        return Loss(int(rows[0, 0]), rows[:, 1], rows[:, 2])


def _name(window: Sequence[int]) -> str:
    """Key of a window: its length and the sha256 of its tokens."""
    return f"{len(window)}-{hashlib.sha256(np.asarray(window, np.int64).tobytes()).hexdigest()[:16]}"
