"""Compares how often tokens were drawn with their probabilities."""

from __future__ import annotations

import math

import numpy as np

FILTERS: list[dict[str, float]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]
LOGITS = np.random.default_rng(8).normal(size=30).astype(np.float32) * np.float32(1.5)


def filtered(
    logits: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """The probabilities of tokens, float64 [vocab], after temperature, top_k, top_p and min_p, one token at a time."""
    scores = [float(logit) / temperature for logit in logits]
    order = sorted(range(len(scores)), key=lambda token: -scores[token])[: top_k or None]
    shares = {token: math.exp(scores[token] - scores[order[0]]) for token in order}
    total, before, kept = sum(shares.values()), 0.0, {}
    for token in order:
        if before < top_p * total or not kept:
            kept[token] = shares[token]
        before += shares[token]
    kept = {token: share for token, share in kept.items() if share >= min_p * max(kept.values())}
    return np.array([kept.get(token, 0.0) / sum(kept.values()) for token in range(len(scores))])


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Pearson's statistic of counts [n] against probabilities [n], and the limit that one run in 1000 exceeds.

    Cells of which fewer than five draws are expected count as one. A draw of probability 0 makes the statistic
    infinite. The limit is Wilson and Hilferty's approximation.
    """
    if counts[probabilities == 0].any():
        return math.inf, 0.0
    expected = probabilities * counts.sum()
    rare = expected < 5
    groups = [(counts[rare].sum(), expected[rare].sum())] if expected[rare].sum() >= 5 else []
    groups += list(zip(counts[~rare], expected[~rare], strict=True))
    statistic = sum((count - mean) ** 2 / mean for count, mean in groups)
    spread = 2 / (9 * (len(groups) - 1))
    return float(statistic), (len(groups) - 1) * (1 - spread + 3.09 * math.sqrt(spread)) ** 3
