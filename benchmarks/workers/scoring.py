"""Nats of a window's tokens, in llama-perplexity's convention: scored are the tokens after the first c/2 + 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def nll(logits: np.ndarray, scored: Sequence[int]) -> list[float]:
    """Minus the log-probability of every token in `scored`, by the row of logits [len(scored), vocab] before it."""
    rows = logits.astype(np.float64)
    log_sum = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1)
    return [float(x) for x in log_sum - rows[np.arange(len(rows)), scored]]


def scorer(logits_of: Callable[[list[int], int], np.ndarray]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answers {"do": "nll", "windows": [[...], ...]} with {"nll": [[nats of every scored token], ...]}.

    Args:
        logits_of: gives the logits [c - 1 - first, vocab] of a window's tokens `first` to c - 2, from an empty cache.
    """

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        scored = []
        for window in request["windows"]:
            first = len(window) // 2  # its logits predict the first scored token
            scored.append(nll(logits_of(window, first), window[first + 1 :]))
        return {"nll": scored}

    return answer
