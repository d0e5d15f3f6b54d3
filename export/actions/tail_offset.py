"""Fits what a screened LM head adds to the logits of the rows that it reads at few bits, and measures what it loses.

These rows together, the tail, then have the probability that they have with all their bits, on average over positions.
The mean over positions is what a constant can get right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.actions import Action
from sol_rt.generate.native.session import Session

FloatArray = npt.NDArray[np.floating]

_POSITIONS = 64  # of each window; a row of a large vocabulary takes half a megabyte
_CONTEXT = 128  # tokens before them
_STEPS = 60  # of bisection
_MOST = 8.0  # an offset in nats that no screen of use comes near
_DIGITS = 5


def last_logits(engine: Session, windows: Sequence[Sequence[int]], action: Action) -> tuple[FloatArray, FloatArray]:
    """Logits of some positions of every window, after a dense start, and the hidden states that they are made of:
    float32 [positions, vocab] and [positions, hidden].
    """
    rows, states = [], []
    for whole in windows:
        window = whole[: _CONTEXT + _POSITIONS]  # from the beginning, where the tokenizer's prefix is
        start = max(1, len(window) - _POSITIONS)
        engine.truncate(0)
        engine.forward(window[:start], engine.bundle.config.dense)
        out = engine.forward(window[start:], action, num_logits=len(window) - start)
        rows.append(out.logits)
        states.append(out.hidden)
    engine.truncate(0)
    return np.concatenate(rows), np.concatenate(states)


@dataclass(frozen=True)
class Tails:
    """Weights of the rows of a position that are not candidates. One number for each position, float64.

    Attributes:
        candidates: log of the sum of the candidates' exponentials, exact.
        tail, exact_tail: the same of the tail's scores, and of its exact logits.
        moved: sum over the tail of the exact probability times (exact logit - score), nats.
    """

    candidates: npt.NDArray[np.float64]
    tail: npt.NDArray[np.float64]
    exact_tail: npt.NDArray[np.float64]
    moved: npt.NDArray[np.float64]

    @classmethod
    def of(cls, scores: FloatArray, exact: FloatArray, sizes: Collection[int]) -> dict[int, Tails]:
        """Makes the tails, by number of candidates.

        Args:
            scores: logits by which rows are chosen, float32 [positions, vocab].
            exact: logits with all bits, float32 [positions, vocab].
            sizes: numbers of rows of a position whose logits are exact.
        """
        found: dict[int, list[tuple[float, ...]]] = {size: [] for size in sizes}
        for row, exact_row in zip(scores, exact, strict=True):
            most, exact_most = float(row.max()), float(exact_row.max())
            # the same float32 numbers are summed up and taken off again: nothing is lost where the tail is small
            parts = np.stack([np.exp(row - np.float32(most)), np.exp(exact_row - np.float32(exact_most))])
            parts = np.concatenate([parts, [parts[1] * (exact_row - row)]])
            sums = parts.sum(axis=1, dtype=np.float64)
            chosen = np.arange(row.size)
            for size in sorted(sizes, reverse=True):
                chosen = chosen[np.argpartition(row[chosen], -size)[-size:]]
                of_chosen = parts[:, chosen].sum(axis=1, dtype=np.float64)
                tail, exact_tail, moved = sums - of_chosen
                totals = np.maximum([of_chosen[1], tail, exact_tail], np.finfo(np.float64).tiny)
                logs = np.log(totals) + np.array([exact_most, most, exact_most])
                found[size].append((*logs, moved / sums[1]))
        return {size: cls(*np.array(of_size).T) for size, of_size in found.items()}

    def fitted_offset(self) -> float:
        """The offset for which the tail has the mean probability that it has in the exact logits."""
        wanted = _share(self.exact_tail - self.candidates).mean()
        low, high = -_MOST, _MOST
        for _ in range(_STEPS):
            middle = (low + high) / 2
            less = _share(self.tail + middle - self.candidates).mean() < wanted
            low, high = (middle, high) if less else (low, middle)
        return round((low + high) / 2, _DIGITS)

    def divergence(self, offset: float) -> float:
        """The mean divergence of a screened LM head from the whole one, nats, over all tokens.

        What other measures leave out counts here: how the tail's tokens share its probability.
        """
        whole = np.logaddexp(self.candidates, self.exact_tail)
        screened = np.logaddexp(self.candidates, self.tail + offset)
        return float((screened - whole + self.moved - offset * np.exp(self.exact_tail - whole)).mean())


def _share(log_odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The probability of the tail, from the logarithm of its odds."""
    return np.asarray(1 / (1 + np.exp(-log_odds)))
