"""Scores actions and active channels on a text, with the runtime.

The first half of each window is prefilled dense. Every token of the second half is then scored under the candidate, as
`sol-rt perplexity` does. At KV density 1 a batch of tokens computes the same as single steps, in a tenth of the time.
Actions of lower KV density run step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.actions import Action
from sol_rt.engine.distribution import Distribution, Reference, native_sums, numpy_sums
from sol_rt.generate.native.session import Session
from sol_rt.progress import Progress, silent

Losses = npt.NDArray[np.float64]

_DEVIATIONS = 1.45  # between kinds of text, of which the package has ten: t(0.9, 9)*sqrt(1 + 1/10)
_ROWS = 128  # rows of logits at once: a row of a large vocabulary takes half a megabyte


@dataclass(frozen=True)
class Candidate:
    """A way to run every step: an action, and active channels for each layer that replace the bundle's if given."""

    action: Action
    active_up: tuple[int, ...] | None = None
    active_down: tuple[int, ...] | None = None
    active_qkv: tuple[int, ...] | None = None
    active_o: tuple[int, ...] | None = None

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """The active channels that are given, by name."""
        named = {name: getattr(self, name) for name in ("active_up", "active_down", "active_qkv", "active_o")}
        return {name: counts for name, counts in named.items() if counts is not None}


class Watch(Protocol):
    """A callback for every step of a measurement."""

    def __call__(self, action: Action, distribution: Distribution, token: int, hidden: npt.NDArray[np.float32]) -> None:
        """Sees a step.

        Args:
            action: what ran.
            distribution: what the step predicted; valid until the callback returns.
            token: the text's next token.
            hidden: the hidden state [H] that the step left; valid until the callback returns.
        """


def unwatched(action: Action, distribution: Distribution, token: int, hidden: npt.NDArray[np.float32]) -> None:
    """Sees nothing."""


def token_losses(
    engine: Session,
    windows: Sequence[Sequence[int]],
    candidates: Sequence[Candidate],
    progress: Progress = silent,
    prefill: Action | None = None,
    context: int | None = None,
    keep: bool = False,
) -> Losses:
    """The loss of every scored token under every candidate in nats, float64 [candidates, tokens].

    All candidates are scored on the same tokens, so differences between rows are paired. In a window of c tokens,
    c - context - 1 of them are scored.

    Args:
        engine: runs the bundle. Its cache is empty afterwards; its active channels are the bundle's again.
        windows: token ids, 4 or more each.
        candidates: what to score.
        progress: reports the pairs of window and candidate that are done.
        prefill: the action that runs the first part of each window; by default the bundle's dense one.
        context: the length of that part in tokens; by default half of the window.
        keep: leave the last window's first part in the cache, and begin with what the cache holds of the first window
            if a call with the same `prefill` left it there.

    Raises UsageError for counts that the bundle's graphs cannot hold, SolError if a run fails.
    """

    def score(window: Sequence[int]) -> Callable[[Action], Losses]:
        scored = window[_prefilled(window, context) :]

        def losses(action: Action) -> Losses:
            rows = zip(_rows(engine, scored, action), scored[1:], strict=True)
            return np.array([-distribution.log_probability(target) for distribution, target in rows])

        return losses

    return _measure(engine, windows, candidates, score, progress, prefill, context, keep)


def token_divergences(
    engine: Session,
    windows: Sequence[Sequence[int]],
    reference: Action,
    candidates: Sequence[Candidate],
    progress: Progress = silent,
    context: int | None = None,
    keep: bool = False,
) -> Losses:
    """The divergence of every candidate from `reference` in nats, float64 [candidates, tokens].

    At each position that `token_losses` scores, with p the reference's and q the candidate's distribution:

        KL(p | q) = sum over tokens v of p(v) log(p(v) / q(v))

    This is the expected added loss if p is true. It has less noise than losses on a text, so small differences show in
    a few hundred positions. The sum runs over all tokens: how a screened LM head shares out the unlikely ones counts.

    Arguments and errors are those of `token_losses`. The reference runs with the bundle's active channels.
    """
    return losses_and_divergences(engine, windows, reference, candidates, progress, context, keep)[1]


def losses_and_divergences(
    engine: Session,
    windows: Sequence[Sequence[int]],
    reference: Action,
    candidates: Sequence[Candidate],
    progress: Progress = silent,
    context: int | None = None,
    keep: bool = False,
    watch: Watch = unwatched,
    rows: int = _ROWS,
) -> tuple[Losses, Losses]:
    """The loss of every scored token under `reference` in nats, float64 [tokens], and what `token_divergences` gives.

    The reference runs once for both. `watch` sees its steps, then each candidate's. `rows` tokens run in a call.
    """
    reference_losses: list[float] = []

    def score(window: Sequence[int]) -> Callable[[Action], Losses]:
        losses, divergences = _scored(engine, window[_prefilled(window, context) :], reference, watch, rows)
        reference_losses.extend(losses)
        return divergences

    found = _measure(engine, windows, candidates, score, progress, None, context, keep)
    return np.array(reference_losses), found


def prompt_divergences(engine: Session, window: Sequence[int], context: int, prompts: Sequence[Action]) -> Losses:
    """The divergence of dense steps behind prompts that other actions ran, in nats, float64 [prompts, tokens].

    It is that of `token_divergences`, from dense steps behind a dense prompt.

    Args:
        engine: runs the bundle. Its cache is empty afterwards.
        window: token ids. The first `context` of them are the prompt; all after it but the first are scored.
        context: length of the prompt in tokens.
        prompts: actions that run the prompt.
    """
    dense = engine.bundle.config.dense

    def read(prompt: Action) -> None:
        engine.truncate(0)
        engine.forward(window[:context], prompt)

    try:
        read(dense)
        _, divergences = _scored(engine, window[context:], dense)
        found = []
        for prompt in prompts:
            read(prompt)
            found.append(divergences(dense))
    finally:
        engine.truncate(0)
    return np.array(found)


def _scored(
    engine: Session, scored: Sequence[int], reference: Action, watch: Watch = unwatched, rows: int = _ROWS
) -> tuple[list[float], Callable[[Action], Losses]]:
    """The reference's losses behind what the cache holds, and a function: an action's divergences behind the same."""
    references, losses = [], []
    for distribution, target in zip(_rows(engine, scored, reference, watch, rows), scored[1:], strict=True):
        losses.append(-distribution.log_probability(target))
        references.append(Reference(distribution, np.float32))

    def divergences(action: Action) -> Losses:
        pairs = zip(references, _rows(engine, scored, action, watch, rows), strict=True)
        return np.array([reference.divergence(distribution) for reference, distribution in pairs])

    return losses, divergences


@dataclass(frozen=True)
class SharedLoss:
    """Loss that a KV density or a prompt's variant adds to all steps, nats a token, and its standard error."""

    loss: float
    stderr: float


def shared_loss(added: Losses) -> SharedLoss:
    """Conservative added loss: max(mean + standard error, 0).

    Args:
        added: what is added to the dense action at each token, [n].
    """
    error = standard_error(added)
    return SharedLoss(max(float(added.mean()) + error, 0.0), error)


def margin(losses: Sequence[float]) -> float:
    """Factor from the mean loss over some kinds of text to one that nine in ten kinds keep, by Student's t; 1 or more.

    Args:
        losses: mean loss of each kind in nats per token.
    """
    mean = float(np.mean(losses))
    return 1 + _DEVIATIONS * float(np.std(losses, ddof=1)) / mean if len(losses) > 1 and mean > 0 else 1.0


def standard_error(values: Losses) -> float:
    """Standard error of the mean of values [n]; 0 of a single one."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _measure(
    engine: Session,
    windows: Sequence[Sequence[int]],
    candidates: Sequence[Candidate],
    score: Callable[[Sequence[int]], Callable[[Action], Losses]],
    progress: Progress,
    prefill: Action | None = None,
    context: int | None = None,
    keep: bool = False,
) -> Losses:
    """Prefills each window, then scores it with every candidate: `score` gives a window's function of an action."""
    prefill, total = prefill or engine.bundle.config.dense, len(windows) * len(candidates)
    losses: list[list[Losses]] = [[] for _ in candidates]
    try:
        for done, window in enumerate(windows):
            length = _prefilled(window, context)
            engine.truncate(_common(engine.tokens, window[:length]) if keep else 0)
            if engine.length < length:
                engine.forward(window[engine.length : length], prefill)
            measure = score(window)
            for index, candidate in enumerate(candidates):
                progress("measuring losses", done * len(candidates) + index, total)
                engine.truncate(length)
                _set_counts(engine, candidate)
                losses[index].append(measure(candidate.action))
                _set_counts(engine, Candidate(candidate.action))
            del measure  # it holds the window's distributions
    finally:
        for candidate in candidates:
            _set_counts(engine, Candidate(candidate.action))
        engine.truncate(min(_prefilled(windows[-1], context), engine.length) if keep else 0)
    progress("measuring losses", 1, 1)
    return np.array([np.concatenate(rows) for rows in losses])


def _set_counts(engine: Session, candidate: Candidate) -> None:
    variant = engine.bundle.config.variants.get(candidate.action.variant)
    if variant is not None:  # an unknown variant is the engine's to report
        engine.set_active_channels(variant.key, candidate.counts)


def _common(tokens: Sequence[int], other: Sequence[int]) -> int:
    """The number of first tokens that two texts share."""
    pairs = enumerate(zip(tokens, other, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(tokens), len(other)))


def _prefilled(window: Sequence[int], context: int | None = None) -> int:
    """The number of the window's tokens that are prefilled."""
    return len(window) // 2 if context is None else context


def _rows(
    engine: Session, scored: Sequence[int], action: Action, watch: Watch = unwatched, rows: int = _ROWS
) -> Iterator[Distribution]:
    """Yields the distribution after each token except the last; each is valid until the next one."""
    sums, count = native_sums() if engine.native else numpy_sums, len(scored) - 1
    rows = rows if action.kv_density == 1.0 else 1
    for start in range(0, count, rows):
        part = scored[start : min(start + rows, count)]
        out = engine.forward(part, action, num_logits=len(part))
        for place, row in enumerate(out.logits):
            distribution = Distribution(row, sums)
            watch(action, distribution, scored[start + place + 1], out.hidden[place])
            yield distribution
