"""Nats of a window's tokens, in llama-perplexity's convention: scored are the tokens after the first c/2 + 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def window_nll(logits: np.ndarray, window: Sequence[int]) -> list[float]:
    """Minus the log-probability of every scored token.

    Args:
        logits: [c, vocab], row i predicts token i + 1.
        window: c tokens.
    """
    first = len(window) // 2  # the position whose logits predict the first scored token
    rows = logits[first:-1].astype(np.float64)
    log_sum = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1)
    return [float(x) for x in log_sum - rows[np.arange(len(rows)), window[first + 1 :]]]


def scorer(logits_of: Callable[[list[int]], np.ndarray]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answers {"do": "nll", "windows": [[...], ...]} with {"nll": [[nats of every scored token], ...]}."""
    return lambda request: {"nll": [window_nll(logits_of(window), window) for window in request["windows"]]}
