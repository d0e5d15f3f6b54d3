"""Fits what a screened LM head adds to the logits of the rows that it reads at few bits, and measures what it loses.

These rows together, the tail, then have the probability that they have with all their bits, on average over positions.
The mean over positions is what a constant can get right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import Screen
from sol_rt.engine.engine import Engine

FloatArray = npt.NDArray[np.floating]

_POSITIONS = 64  # of each window; a row of a large vocabulary takes half a megabyte
_CONTEXT = 128  # tokens before them
_STEPS = 60  # of bisection
_MOST = 8.0  # an offset in nats that no screen of use comes near
_DIGITS = 5


def last_logits(engine: Engine, windows: Sequence[Sequence[int]], action: Action) -> tuple[FloatArray, FloatArray]:
    """Logits of some positions of every window, behind a dense start, and the hidden states that they are made of:
    float32 [positions, vocab] and [positions, hidden].
    """
    rows, states = [], []
    for whole in windows:
        window = whole[: _CONTEXT + _POSITIONS]  # from the beginning, where the tokenizer's prefix is
        start = max(1, len(window) - _POSITIONS)
        engine.truncate(0)
        engine.forward(window[:start], engine.bundle.config.dense)
        out = engine.forward(window[start:], action, num_logits=len(window) - start)
        rows.append(out.logits.copy())
        states.append(out.hidden.copy())
    engine.truncate(0)
    return np.concatenate(rows), np.concatenate(states)


def fitted_offset(scores: FloatArray, exact: FloatArray, candidates: int) -> float:
    """The offset for which the tail has the mean probability that it has in `exact`.

    Args:
        scores: logits by which rows are chosen, float32 [positions, vocab].
        exact: logits with all bits, float32 [positions, vocab].
        candidates: number of rows of a position whose logits are exact.
    """
    chosen = _highest(scores, candidates)
    sums = [_log_sums(row, exact_row, at) for row, exact_row, at in zip(scores, exact, chosen, strict=True)]
    candidate, tail, exact_tail = np.array(sums).T
    wanted = _share(exact_tail - candidate).mean()
    low, high = -_MOST, _MOST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _share(tail + middle - candidate).mean() < wanted else (low, middle)
    return round((low + high) / 2, _DIGITS)


def screen_divergence(scores: FloatArray, exact: FloatArray, screen: Screen) -> float:
    """The mean divergence of a screened LM head from the whole one, nats, over all tokens.

    Arguments are those of `fitted_offset`. What other measures leave out counts here: how the tail's tokens share its
    probability.
    """
    found = []
    for row, exact_row, at in zip(scores, exact, _highest(scores, screen.candidates), strict=True):
        screened = row + np.float32(screen.tail_offset)
        screened[at] = exact_row[at]
        total = _log_sum(exact_row)
        expected = np.exp(exact_row.astype(np.float64) - total)
        found.append(_log_sum(screened) - total + float(expected @ (exact_row - screened)))
    return float(np.mean(found))


def _highest(scores: FloatArray, count: int) -> npt.NDArray[np.intp]:
    """The tokens of the highest scores of every position, [positions, count]."""
    return np.argpartition(scores, -count, axis=-1)[:, -count:]


def _log_sums(scores: FloatArray, exact: FloatArray, chosen: npt.NDArray[np.intp]) -> tuple[float, float, float]:
    """Logarithms of sums of exponentials: the candidates' logits, the tail's scores, the tail's exact logits."""
    rest = np.ones(scores.size, bool)
    rest[chosen] = False
    return _log_sum(exact[chosen]), _log_sum(scores[rest]), _log_sum(exact[rest])


def _log_sum(values: FloatArray) -> float:
    most = float(values.max())
    return most + float(np.log(np.exp(values.astype(np.float64) - most).sum()))


def _share(log_odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The probability of the tail, from the logarithm of its odds."""
    return np.asarray(1 / (1 + np.exp(-log_odds)))
