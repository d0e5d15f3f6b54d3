"""Scores the tokens of windows in nats: those after the first c/2 + 1 of a window, as llama-perplexity does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np


def nll(logits: np.ndarray, scored: Sequence[int]) -> list[float]:
    """Negative log-likelihood of every token in `scored`, nats; `logits` [len(scored), vocab] predict these tokens."""
    nats = []
    for row, token in zip(logits, scored, strict=True):  # one row at a time: all rows in float64 may be gigabytes
        exact = row.astype(np.float64)
        top = exact.max()
        nats.append(float(np.log(np.exp(exact - top).sum()) + top - exact[token]))
    return nats


def scorer(logits_of: Callable[[list[int], int], Iterable[np.ndarray]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answers {"do": "nll", "windows": [[...], ...]} with {"nll": [[nats of every scored token], ...]}.

    With "context": n the tokens after the first n + 1 of a window are scored.

    Args:
        logits_of: returns the logits of a window's tokens `first` to c - 2, from an empty cache, in blocks [n, vocab],
            because all of them at once may be gigabytes.
    """

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        scored = []
        for window in request["windows"]:
            first = request.get("context", len(window) // 2)  # its logits predict the first scored token
            nats: list[float] = []
            for rows in logits_of(window, first):
                following = first + 1 + len(nats)
                nats += nll(rows, window[following : following + len(rows)])
            scored.append(nats)
        return {"nll": scored}

    return answer
