"""Losses of ways to run a bundle on given text, through the runtime: what keep levels and actions are chosen by.

A window's first half is context, prefilled dense; under the way to be judged every token of the second half is scored
as `sol-rt perplexity` does. Where attention reads all pages, a batch computes what steps compute, at a tenth of the
time; actions that skip pages are run step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sol_rt.actions import Action
from sol_rt.distribution import Distribution, native_sums, numpy_sums
from sol_rt.engine import Engine
from sol_rt.export.progress import Progress, silent

_ROWS = 128  # of logits at once: those of a large vocabulary take half a megabyte each


@dataclass(frozen=True)
class Candidate:
    """A way to run every step: an action, with MLP channel counts, one a layer, instead of the bundle's where given."""

    action: Action
    keep_in: tuple[int, ...] | None = None
    keep_mid: tuple[int, ...] | None = None


def token_losses(
    engine: Engine,
    windows: Sequence[Sequence[int]],
    candidates: Sequence[Candidate],
    progress: Progress = silent,
    prefill: Action | None = None,
) -> npt.NDArray[np.float64]:
    """Loss in nats of every scored token under every candidate, [candidates, tokens].

    The tokens are the same for all candidates, so that differences between rows are paired. A window of c tokens scores
    c - c // 2 - 1 of them.

    Args:
        engine: of the bundle; its cache is overwritten, its counts are the bundle's own afterwards.
        windows: token ids, 4 or more each.
        prefill: runs the first halves; the bundle's dense action by default.

    Raises UsageError for counts that the bundle's graphs cannot hold, SolError where a run fails.
    """
    prefill = prefill or engine.bundle.config.dense
    losses: list[list[npt.NDArray[np.float64]]] = [[] for _ in candidates]
    try:
        for done, window in enumerate(windows):
            half = len(window) // 2
            engine.reset()
            engine.forward(window[:half], prefill)
            for index, candidate in enumerate(candidates):
                progress("measuring losses", done * len(candidates) + index, len(windows) * len(candidates))
                engine.truncate(half)
                _set_counts(engine, candidate)
                losses[index].append(_window_losses(engine, window[half:], candidate.action))
    finally:
        for candidate in candidates:
            _set_counts(engine, Candidate(candidate.action))
        engine.reset()
    progress("measuring losses", 1, 1)
    return np.array([np.concatenate(rows) for rows in losses])


def paired_difference(losses: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean of losses - reference, [tokens] each, and its standard error, in nats."""
    difference = losses - reference
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(difference.size))


def _set_counts(engine: Engine, candidate: Candidate) -> None:
    variant = engine.bundle.config.variants.get(candidate.action.variant)
    if variant is not None:  # the engine names those that the bundle has
        keep_in, keep_mid = candidate.keep_in or variant.keep_in, candidate.keep_mid or variant.keep_mid
        engine.keep_channels(variant.key, keep_in, keep_mid)


def _window_losses(engine: Engine, tokens: Sequence[int], action: Action) -> npt.NDArray[np.float64]:
    """Of all tokens but the first, each predicted by a step over the one before."""
    losses = np.empty(len(tokens) - 1)
    rows = _ROWS if action.keep == 100 else 1
    sums = native_sums() if engine.native else numpy_sums
    for start in range(0, len(losses), rows):
        part = tokens[start : start + min(rows, len(losses) - start)]
        logits = engine.forward(part, action, num_logits=len(part)).logits
        for row, target in enumerate(tokens[start + 1 : start + 1 + len(part)]):
            losses[start + row] = -Distribution(logits[row], sums).log_probability(target)
    return losses
