"""Measures the losses of candidate actions with the runtime, and counts the bytes that they read.

Losses are those of losses.py: of decode steps after a dense prompt, whose keys and values the action itself computed.
No text is scored that weights were fitted to, and nothing depends on how fast this machine is.

All variants are scored at KV density 1 at the end of windows of 512 tokens. Those near the hull are then scored along
one long stretch of text, after 2048 and 4096 tokens. A large model's variants that another one beats beyond doubt on
the first windows are not scored on the others: most of those that read few channels at many bits.

Texts of another kind may lose twice as much, and `--max-loss` has to hold on them as well. So where nobody chose the
text, a variant's reported loss is not its mean over the windows, each of another kind, but one that nine in ten kinds
keep (`losses.margin`). The long stretch is of one kind, so the factor between the two is that of the short context.

KV densities below 1 run step by step, so they are scored on fewer tokens. These are too few to compare variants, and a
choice among many noisy losses takes the lucky ones. What a lower density adds hardly depends on the variant, so it is
measured once, with the dense variant. With l the reported loss of a variant, that at a lower KV density is

    l + max(0, d + e),

where d is what the density adds to the dense action, its mean over tokens times the same kind of margin, and e the
standard error of d. A lower density saves next to nothing after a short context, so chance alone would often favour it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.selection import Measured
from sol_rt.export.actions.calibration_text import CONTEXTS, CalibrationText, contexts
from sol_rt.export.actions.effort import Effort
from sol_rt.export.actions.losses import (
    Candidate,
    Losses,
    SharedLoss,
    losses_and_divergences,
    margin,
    shared_loss,
    standard_error,
    token_losses,
)
from sol_rt.export.actions.selection import NEAR, near_hull
from sol_rt.export.runs import open_runs
from sol_rt.progress import Progress

_MARGIN = 1.5 * NEAR  # of variants that go on to long contexts, where the hull may differ
_DOUBT = 4.0  # standard errors by which a variant must lose more than another to be dropped after a few windows


@dataclass(frozen=True)
class Measurements:
    """The measurements of the candidates.

    Attributes:
        fronts: by context in tokens, the actions measured there: at the short context all variants but those dropped
            after a few windows, those near the hull also at the long ones and at lower KV densities.
        tokens: by context, the number of tokens scored at KV density 1.
        dense_loss: by context, the dense action's loss in nats per token.
        collapse_loss: added loss in nats per token above which an action's output counts as incoherent: half of the
            information gained from context, which is the entropy of the text's token frequencies minus the dense loss.
    """

    fronts: dict[int, dict[Action, Measured]]
    tokens: dict[int, int]
    dense_loss: dict[int, float]
    collapse_loss: float


def measure(
    bundle: Bundle,
    text: CalibrationText,
    kv_densities: Sequence[float],
    effort: Effort,
    progress: Progress,
    *,
    required: Iterable[Action] = (),
) -> Measurements:
    """Measures the variants of a bundle at the short context, and the useful ones at every KV density and context.

    Args:
        bundle: the unfinished bundle; its actions play no part.
        text: what to score. Its scored windows have up to 512 tokens, or the model's whole context.
        kv_densities: shares of the old cached tokens read, 1 among them.
        effort: how many tokens to score.
        progress: reports how far each stage is.
        required: actions to measure in any case, of variants that the bundle has.
    """
    scorer = _Scorer(bundle, text, effort, progress)
    required, dense = tuple(required), bundle.config.dense
    variants = [Action(1.0, variant.channel_density, variant.bits) for variant in bundle.config.variants.values()]
    short = min(CONTEXTS[0], scorer.engine.max_context - 1)
    reached = contexts(len(text.long), scorer.engine.max_context)
    wanted = {density for density in kv_densities if density < 1} | {action.kv_density for action in required} - {1.0}
    densities = sorted(wanted, reverse=True) if reached else []
    below = [replace(dense, kv_density=density) for density in densities]

    kept = {dense} | {replace(action, kv_density=1.0) for action in required}
    added, loss = scorer.windows(variants, below, short, kept)
    collapse_loss = max(_frequency_entropy(text) - loss, 0.0) / 2 or math.inf
    tokens, dense_loss = {short: len(added[dense])}, {short: loss}
    fronts = {short: {action: scorer.measured(action, short, added[action]) for action in variants if action in added}}
    shared = {short: {action.kv_density: scorer.shared(action, added[action]) for action in below}}

    useful = near_hull(fronts[short], dense, collapse_loss, _MARGIN) | kept
    for context in reached:
        if context == short or (not below and len(useful) == 1):
            continue
        plain = sorted(useful, reverse=True)
        added, loss = scorer.along(plain, below, context)
        tokens[context], dense_loss[context] = len(added[dense]), loss
        fronts[context] = {action: scorer.measured(action, context, added[action]) for action in plain}
        shared[context] = {action.kv_density: scorer.shared(action, added[action]) for action in below}

    grid = [
        replace(action, kv_density=density)
        for action in sorted(useful, reverse=True)
        for density in kv_densities
        if density < 1
    ]
    for action in dict.fromkeys([*grid, *(action for action in required if action.kv_density < 1)]) if below else ():
        for context, front in fronts.items():
            base, more = front[replace(action, kv_density=1.0)], shared[context][action.kv_density]
            front[action] = replace(
                base,
                bytes=scorer.bytes(action, context),
                loss=base.loss + more.loss,
                stderr=math.hypot(base.stderr, more.stderr),
            )
    return Measurements(fronts, tokens, dense_loss, collapse_loss)


def beaten(rows: Mapping[Action, Losses], sizes: Mapping[Action, float]) -> set[Action]:
    """The actions that another one beats beyond doubt: it reads fewer bytes by more than _MARGIN, and loses less by
    more than _DOUBT standard errors of the paired difference.

    `near_hull` leaves all of them out where losses scatter alike between kinds of text.

    Args:
        rows: added losses of the same tokens by action, each float64 [n].
        sizes: bytes that a step of each action reads.
    """

    def beats(other: Action, action: Action) -> bool:
        more = rows[action] - rows[other]
        return bool(more.mean() > _DOUBT * standard_error(more) and sizes[other] < (1 - _MARGIN) * sizes[action])

    return {action for action in rows if any(beats(other, action) for other in rows)}


class _Scorer:
    """Scores actions on a text with one engine."""

    def __init__(self, bundle: Bundle, text: CalibrationText, effort: Effort, progress: Progress) -> None:
        self.engine = open_runs(bundle.path)
        self._text, self._effort, self._progress = text, effort, progress
        self._dense, self._bytes = bundle.config.dense, BytesCost(bundle.config)
        self._margins: dict[Action, float] = {}

    def windows(
        self, plain: Sequence[Action], sparse: Sequence[Action], short: int, kept: Collection[Action]
    ) -> tuple[dict[Action, Losses], float]:
        """The added losses of actions at the ends of the scored windows, each float64 [n].

        Actions that are dropped after a few windows are left out. Also returns the dense action's mean loss.

        Args:
            plain: actions of KV density 1.
            sparse: actions of lower KV density, which are scored on the first few of each window's tokens.
            short: the context in tokens for which bytes count.
            kept: actions that are not dropped.
        """
        stage, sizes = f"losses at {short}", {action: self.bytes(action, short) for action in plain}
        windows = self._text.scored[: self._effort.scored_windows]
        steps = math.ceil(self._effort.kv_steps / len(windows))
        found: list[dict[Action, Losses]] = []
        dense_losses: list[Losses] = []
        for number, window in enumerate(windows):

            def report(step: str, done: float, total: float, number: int = number) -> None:
                self._progress(stage, number + done / total, len(windows))

            context = len(window) - 1 - min(self._effort.scored_tokens, len(window) // 2 - 1)
            rows, dense_loss = self._both(window, context, plain, sparse, steps, report)
            found.append(rows)
            dense_losses.append(dense_loss)
            if self._effort.windows_of_all <= number + 1 < len(windows):
                dropped = beaten(_joined(found, plain), sizes)
                plain = [action for action in plain if action in kept or action not in dropped]
        self._progress(stage, 1, 1)
        if self._text.by_divergence:
            kinds = [*plain, *sparse]
            self._margins = {action: margin([float(rows[action].mean()) for rows in found]) for action in kinds}
        return _joined(found, [*plain, *sparse]), float(np.concatenate(dense_losses).mean())

    def along(
        self, plain: Sequence[Action], sparse: Sequence[Action], context: int
    ) -> tuple[dict[Action, Losses], float]:
        """The added losses after `context` tokens of the long stretch, and the dense action's mean loss there.

        Args:
            plain: actions of KV density 1.
            sparse: actions of lower KV density, which are scored on the first few of the same tokens.
            context: in tokens.
        """
        stage = f"losses at {context}"

        def report(step: str, done: float, total: float) -> None:
            self._progress(stage, done, total)

        end = min(len(self._text.long), self.engine.max_context, context + self._effort.long_tokens + 1)
        found, dense_losses = self._both(self._text.long[:end], context, plain, sparse, self._effort.kv_steps, report)
        self._progress(stage, 1, 1)
        return found, float(dense_losses.mean())

    def _both(
        self,
        window: Sequence[int],
        context: int,
        plain: Sequence[Action],
        sparse: Sequence[Action],
        steps: int,
        report: Progress,
    ) -> tuple[dict[Action, Losses], Losses]:
        """The added losses after `context` tokens of a window, those of `sparse` on `steps` tokens; dense losses."""
        count = len(plain) + len(sparse)

        def first(step: str, done: float, total: float) -> None:
            report(step, len(plain) * done / total, count)

        def second(step: str, done: float, total: float) -> None:
            report(step, len(plain) + len(sparse) * done / total, count)

        added, dense_losses = self._added(window, context, plain, first)
        found = dict(zip(plain, added, strict=True))
        if sparse:
            more, _ = self._added(window[: context + steps + 1], context, sparse, second)
            found |= dict(zip(sparse, more, strict=True))
        return found, dense_losses

    def _added(
        self, window: Sequence[int], context: int, actions: Sequence[Action], report: Progress
    ) -> tuple[Losses, Losses]:
        """The added losses of actions [actions, n] after `context` tokens of a window, and dense losses [n]."""
        others = [action for action in actions if action != self._dense]
        candidates = [Candidate(action) for action in others]
        if self._text.by_divergence:
            dense_losses, added = losses_and_divergences(
                self.engine, [window], self._dense, candidates, report, context=context, keep=True
            )
        else:
            both = [Candidate(self._dense), *candidates]
            dense_losses, *found = token_losses(self.engine, [window], both, report, context=context, keep=True)
            added = np.array([losses - dense_losses for losses in found])
        rows = dict(zip(others, added, strict=True))
        return np.array([rows.get(action, np.zeros_like(dense_losses)) for action in actions]), dense_losses

    def measured(self, action: Action, context: int, added: Losses) -> Measured:
        """The measurement of an action whose added losses are `added`; the dense action's are 0."""
        factor = self._margins.get(action, 1.0)
        return Measured(self.bytes(action, context), factor * float(added.mean()), factor * standard_error(added))

    def shared(self, action: Action, added: Losses) -> SharedLoss:
        """The loss that the KV density of a dense action of a lower one adds to every variant."""
        return shared_loss(self._margins.get(action, 1.0) * added)

    def bytes(self, action: Action, context: int) -> float:
        """Bytes that a step of the action reads."""
        return self._bytes.step(action, context)


def _joined(rows: Sequence[Mapping[Action, Losses]], actions: Iterable[Action]) -> dict[Action, Losses]:
    """The losses of some actions on all windows, one window after another."""
    return {action: np.concatenate([of_window[action] for of_window in rows]) for action in actions}


def _frequency_entropy(text: CalibrationText) -> float:
    """The entropy of the text's token frequencies in nats: the loss of a model that knows these frequencies only."""
    windows = text.scored if text.by_divergence else (*text.fitted, *text.held_out)
    counts = np.array(list(Counter(token for window in windows for token in window).values()), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
