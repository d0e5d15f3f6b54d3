"""Losses of ways to run a bundle on given text, through the runtime: what density levels and actions are chosen by.

A window's first half is context, prefilled dense; under the way to be judged every token of the second half is scored
as `sol-rt perplexity` does. Where attention reads all pages, a batch computes what steps compute, at a tenth of the
time; actions that skip pages are run step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.actions import Action
from sol_rt.engine.distribution import Distribution, SoftmaxSums, native_sums, numpy_sums
from sol_rt.engine.engine import Engine
from sol_rt.store.progress import Progress, silent

Losses = npt.NDArray[np.float64]

_ROWS = 128  # of logits at once: those of a large vocabulary take half a megabyte each
_TOP = 256  # tokens of the reference that count each for itself
_LEAST = 1e-9


@dataclass(frozen=True)
class Candidate:
    """A way to run every step: an action, with channel counts, one a layer, instead of the bundle's where given."""

    action: Action
    active_up: tuple[int, ...] | None = None
    active_down: tuple[int, ...] | None = None
    active_qkv: tuple[int, ...] | None = None
    active_o: tuple[int, ...] | None = None

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """Those given, by name."""
        named = {name: getattr(self, name) for name in ("active_up", "active_down", "active_qkv", "active_o")}
        return {name: counts for name, counts in named.items() if counts is not None}


def token_losses(
    engine: Engine,
    windows: Sequence[Sequence[int]],
    candidates: Sequence[Candidate],
    progress: Progress = silent,
    prefill: Action | None = None,
    context: int | None = None,
) -> Losses:
    """Loss in nats of every scored token under every candidate, [candidates, tokens].

    The tokens are the same for all candidates, so that differences between rows are paired. A window of c tokens scores
    c - context - 1 of them.

    Args:
        engine: of the bundle; its cache is overwritten, its counts are the bundle's own afterwards.
        windows: token ids, 4 or more each.
        progress: told how many windows are done under how many candidates.
        prefill: runs the first part of each window; the bundle's dense action by default.
        context: length of that part in tokens; default: half of the window.

    Raises UsageError for counts that the bundle's graphs cannot hold, SolError where a run fails.
    """
    sums = _sums(engine)

    def score(window: Sequence[int]) -> Callable[[Action], Losses]:
        scored = window[_prefilled(window, context) :]

        def losses(action: Action) -> Losses:
            rows = zip(_rows(engine, scored, action), scored[1:], strict=True)
            return np.array([-Distribution(row, sums).log_probability(target) for row, target in rows])

        return losses

    return _measure(engine, windows, candidates, score, progress, prefill, context)


def token_divergences(
    engine: Engine,
    windows: Sequence[Sequence[int]],
    reference: Action,
    candidates: Sequence[Candidate],
    progress: Progress = silent,
    context: int | None = None,
) -> Losses:
    """Kullback-Leibler divergence of every candidate from `reference` at the positions that `token_losses` scores, in
    nats, [candidates, tokens].

    What the loss rises by where the reference's probabilities are true, without the luck of the tokens read: small
    differences show in a few hundred positions. The reference's likeliest tokens count each for itself, all others
    together as one.

    Args and errors as of `token_losses`; the reference keeps the bundle's counts.
    """
    sums = _sums(engine)

    def score(window: Sequence[int]) -> Callable[[Action], Losses]:
        scored = window[_prefilled(window, context) :]
        tokens, logprobs = [], []
        for row in _rows(engine, scored, reference):
            tokens.append(np.argpartition(row, -_TOP)[-_TOP:] if row.size > _TOP else np.arange(row.size))
            logprobs.append(_logprobs(row, tokens[-1], sums))
        expected = np.array(logprobs)
        shares, rest = np.exp(expected), _rest(expected)

        def divergences(action: Action) -> Losses:
            rows = zip(_rows(engine, scored, action), tokens, strict=True)
            got = np.array([_logprobs(row, at, sums) for row, at in rows])
            return np.asarray((shares * (expected - got)).sum(-1) + rest * np.log(rest / _rest(got)))

        return divergences

    return _measure(engine, windows, candidates, score, progress, None, context)


def _rest(logprobs: Losses) -> Losses:
    """Probability of all tokens but those of `logprobs` [positions, tokens]."""
    return np.asarray(np.maximum(1 - np.exp(logprobs).sum(-1), _LEAST))


def _measure(
    engine: Engine,
    windows: Sequence[Sequence[int]],
    candidates: Sequence[Candidate],
    score: Callable[[Sequence[int]], Callable[[Action], Losses]],
    progress: Progress,
    prefill: Action | None = None,
    context: int | None = None,
) -> Losses:
    """Calls what `score` gives for a window with every candidate's action, after the window's first part."""
    prefill, total = prefill or engine.bundle.config.dense, len(windows) * len(candidates)
    losses: list[list[Losses]] = [[] for _ in candidates]
    try:
        for done, window in enumerate(windows):
            length = _prefilled(window, context)
            engine.reset()
            engine.forward(window[:length], prefill)
            measure = score(window)
            for index, candidate in enumerate(candidates):
                progress("measuring losses", done * len(candidates) + index, total)
                engine.truncate(length)
                _set_counts(engine, candidate)
                losses[index].append(measure(candidate.action))
                _set_counts(engine, Candidate(candidate.action))
    finally:
        for candidate in candidates:
            _set_counts(engine, Candidate(candidate.action))
        engine.reset()
    progress("measuring losses", total, total)
    return np.array([np.concatenate(rows) for rows in losses])


def _set_counts(engine: Engine, candidate: Candidate) -> None:
    variant = engine.bundle.config.variants.get(candidate.action.variant)
    if variant is not None:  # the engine names those that the bundle has
        engine.set_active_channels(variant.key, candidate.counts)


def _prefilled(window: Sequence[int], context: int | None = None) -> int:
    """Tokens of the window that are prefilled."""
    return len(window) // 2 if context is None else context


def _rows(engine: Engine, scored: Sequence[int], action: Action) -> Iterator[npt.NDArray[np.float32]]:
    """Logits [vocab] after every one of the tokens but the last."""
    tokens = scored[:-1]
    rows = _ROWS if action.kv_density == 1.0 else 1
    for start in range(0, len(tokens), rows):
        part = tokens[start : start + rows]
        yield from engine.forward(part, action, num_logits=len(part)).logits


def _sums(engine: Engine) -> Callable[[np.ndarray], SoftmaxSums]:
    return native_sums() if engine.native else numpy_sums


def _logprobs(
    logits: npt.NDArray[np.float32], at: npt.NDArray[np.int64], sums: Callable[[np.ndarray], SoftmaxSums]
) -> Losses:
    """Log-probabilities of some tokens by logits [vocab]."""
    found = sums(logits)
    assert found.top is not None  # the engine refuses logits that are not finite
    return logits[at].astype(np.float64) - (logits.item(found.top) + math.log(found.total))
