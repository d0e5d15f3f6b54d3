"""Measures the losses of candidate actions with the runtime, and counts the bytes that they read.

Losses are those of losses.py: of decode steps after a dense prompt, whose keys and values the action itself computed.
No text is scored that weights were fitted to, and nothing depends on how fast this machine is.

First variants at KV density 1 are scored on windows of the text, after contexts of up to 512 tokens: those of channel
density 1 and those of the fewest bits, then others if the sum of what both lose would be near the hull.

Variants near the hull are then scored along one long stretch of text, after 512, 2048 and 4096 tokens, at every KV
density. KV densities below 1 run step by step, so they are scored on fewer tokens than the same variant at 1: too few
to tell two of them apart, and a choice among many noisy losses takes the lucky ones. What a lower density adds hardly
depends on the variant, so all variants share what it adds to the few that read most, whose losses vary least. With l
the added loss of a variant and k its added loss at a lower KV density, the reported loss is

    mean of l over all its tokens + max(0, d),
    d = mean over those few variants, and the tokens that both were scored on, of (k - l).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.selection import Measured
from sol_rt.engine.engine import Engine
from sol_rt.export.actions.calibration_text import CONTEXTS, CalibrationText, contexts
from sol_rt.export.actions.effort import Effort
from sol_rt.export.actions.losses import Candidate, Losses, losses_and_divergences, token_losses
from sol_rt.export.actions.selection import NEAR, near_hull
from sol_rt.store.progress import Progress

_KV_VARIANTS = 4  # variants that lower KV densities are scored with
_MARGIN = 1.5 * NEAR  # of variants that go on to long contexts, where the hull may differ


@dataclass(frozen=True)
class Measurements:
    """The measurements of the candidates.

    Attributes:
        fronts: by context in tokens, the actions measured there: all variants at the short context, those near the hull
            also at the long ones and at lower KV densities.
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
    """Measures all variants of a bundle at the short context, and the useful ones at every KV density and context.

    Args:
        bundle: the unfinished bundle; its actions play no part.
        text: what to score. Its held-out windows have 512 tokens, or the model's whole context.
        kv_densities: shares of the old cached tokens read, 1 among them.
        effort: how many tokens to score.
        progress: reports how far each stage is.
        required: actions to measure in any case, of variants that the bundle has.
    """
    scorer = _Scorer(bundle, text, effort, progress)
    required, dense = tuple(required), bundle.config.dense
    variants = [Action(1.0, variant.channel_density, variant.bits) for variant in bundle.config.variants.values()]
    short = min(CONTEXTS[0], scorer.engine.max_context - 1)
    fewest = min(variant.bits for variant in variants)
    first = [action for action in variants if action.channel_density == 1.0 or action.bits == fewest]
    added, loss = scorer.windows(first, f"losses at {short}")
    collapse_loss = max(_frequency_entropy(text) - loss, 0.0) / 2 or math.inf
    tokens, dense_loss = {short: len(added[dense])}, {short: loss}
    fronts = {short: {action: scorer.measured(action, short, values) for action, values in added.items()}}
    expected = fronts[short] | {
        action: scorer.expected(action, short, fronts[short]) for action in variants if action not in first
    }
    likely = near_hull(expected, dense, collapse_loss, _MARGIN) | {replace(a, kv_density=1.0) for a in required}
    second = [action for action in variants if action not in first and action in likely]
    if second:
        added, _ = scorer.windows(second, f"losses at {short}")
        fronts[short] |= {action: scorer.measured(action, short, values) for action, values in added.items()}

    useful = near_hull(fronts[short], dense, collapse_loss, _MARGIN)
    useful |= {replace(action, kv_density=1.0) for action in required}
    grid = [
        replace(action, kv_density=density)
        for action in sorted(useful, reverse=True)
        for density in kv_densities
        if density < 1
    ]
    sparse = list(dict.fromkeys([*grid, *(action for action in required if action.kv_density < 1)]))
    by_bytes = sorted(useful, key=lambda action: fronts[short][action].bytes, reverse=True)
    tried = by_bytes[:_KV_VARIANTS] if sparse else []
    densities = sorted({action.kv_density for action in sparse}, reverse=True)
    below = {density: [replace(action, kv_density=density) for action in tried] for density in densities}
    for context in contexts(len(text.long), scorer.engine.max_context):
        plain = sorted(useful, reverse=True)
        if context == short:  # the windows have more text for the variants; the stretch serves the KV densities
            plain = tried
        elif not sparse and len(useful) == 1:
            continue
        if not plain:
            continue
        # what KV densities are compared with needs no more text than they have
        most = effort.kv_steps if context == short else effort.long_tokens
        along, loss = scorer.along(plain, [*itertools.chain(*below.values())], context, most)
        if context != short:
            tokens[context], dense_loss[context] = len(along[dense]), loss
            fronts[context] = {action: scorer.measured(action, context, along[action]) for action in plain}
        for density, found in below.items():
            more = shared_loss([along[a] - along[replace(a, kv_density=1.0)][: len(along[a])] for a in found])
            for action in (action for action in sparse if action.kv_density == density):
                base = fronts[context][replace(action, kv_density=1.0)]
                fronts[context][action] = scorer.measured(action, context, more, base)
    return Measurements(fronts, tokens, dense_loss, collapse_loss)


def shared_loss(added: Sequence[Losses]) -> Losses:
    """What a KV density adds to the losses of all variants, [n], with a mean of at least 0.

    Args:
        added: by variant, what it adds at each of the same n tokens, [n]. No weights: those by variance would favour
            variants whose few tokens were lucky, as variances of divergences grow with their means.
    """
    shared = np.mean(added, axis=0)
    return np.asarray(shared - min(float(shared.mean()), 0.0))


class _Scorer:
    """Scores actions on a text with one engine."""

    def __init__(self, bundle: Bundle, text: CalibrationText, effort: Effort, progress: Progress) -> None:
        self.engine = Engine(bundle, provider="cpu")
        self._text, self._effort, self._progress = text, effort, progress
        self._dense, self._bytes = bundle.config.dense, BytesCost(bundle.config)

    def windows(self, actions: Sequence[Action], stage: str) -> tuple[dict[Action, Losses], float]:
        """The added losses of actions of KV density 1, each float64 [n], behind the first halves of held-out windows.

        Also returns the dense action's mean loss.
        """
        windows = self._text.held_out[: self._effort.scored_windows]
        rows: list[Losses] = []
        dense_losses: list[Losses] = []
        for number, window in enumerate(windows):

            def report(step: str, done: float, total: float, number: int = number) -> None:
                self._progress(stage, number + done / total, len(windows))

            added, dense_loss = self._added(window, len(window) // 2, actions, report)
            rows.append(added)
            dense_losses.append(dense_loss)
        self._progress(stage, 1, 1)
        found = dict(zip(actions, np.concatenate(rows, axis=1), strict=True))
        return found, float(np.concatenate(dense_losses).mean())

    def along(
        self, plain: Sequence[Action], sparse: Sequence[Action], context: int, most: int
    ) -> tuple[dict[Action, Losses], float]:
        """The added losses after `context` tokens of the long stretch, and the dense action's mean loss there.

        Args:
            plain: actions of KV density 1.
            sparse: actions of lower KV density, which are scored on the first few of the same tokens.
            context: in tokens.
            most: how many tokens to score at KV density 1.
        """
        stage, total = f"losses at {context}", len(plain) + len(sparse)
        length = min(len(self._text.long), self.engine.max_context)

        def report_plain(step: str, done: float, total_: float) -> None:
            self._progress(stage, len(plain) * done / total_, total)

        def report_sparse(step: str, done: float, total_: float) -> None:
            self._progress(stage, len(plain) + len(sparse) * done / total_, total)

        end = min(length, context + most + 1)
        added, dense_losses = self._added(self._text.long[:end], context, plain, report_plain)
        found = dict(zip(plain, added, strict=True))
        if sparse:
            end = min(length, context + self._effort.kv_steps + 1)
            steps, _ = self._added(self._text.long[:end], context, sparse, report_sparse)
            found |= dict(zip(sparse, steps, strict=True))
        self._progress(stage, 1, 1)
        return found, float(dense_losses.mean())

    def _added(
        self, window: Sequence[int], context: int, actions: Sequence[Action], report: Progress
    ) -> tuple[Losses, Losses]:
        """The added losses of actions [actions, n] behind `context` tokens of a window, and dense losses [n]."""
        others = [action for action in actions if action != self._dense]
        candidates = [Candidate(action) for action in others]
        if self._text.is_own:
            dense_losses, added = losses_and_divergences(
                self.engine, [window], self._dense, candidates, report, context=context, keep=True
            )
        else:
            both = [Candidate(self._dense), *candidates]
            dense_losses, *found = token_losses(self.engine, [window], both, report, context=context, keep=True)
            added = np.array([losses - dense_losses for losses in found])
        rows = dict(zip(others, added, strict=True))
        return np.array([rows.get(action, np.zeros_like(dense_losses)) for action in actions]), dense_losses

    def expected(self, action: Action, context: int, front: Mapping[Action, Measured]) -> Measured:
        """A guess at an action's measurement: what its bits and its channel density lose alone, added up."""
        fewest = min(other.bits for other in front)
        rows = [replace(action, bits=fewest), replace(action, channel_density=1.0)]
        both = replace(action, channel_density=1.0, bits=fewest)
        loss = sum(front[row].loss for row in rows) - front[both].loss
        return Measured(self._bytes.step(action, context), loss, 0.0)

    def measured(self, action: Action, context: int, added: Losses, base: Measured | None = None) -> Measured:
        """The measurement of an action whose added losses are `added`, or `added` more than that of `base`."""
        loss = 0.0 if action == self._dense else float(added.mean())
        error = 0.0 if action == self._dense else _stderr(added)
        if base is not None:
            loss, error = loss + base.loss, math.hypot(error, base.stderr)
        return Measured(self._bytes.step(action, context), loss, error)


def _stderr(values: Losses) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _frequency_entropy(text: CalibrationText) -> float:
    """The entropy of the text's token frequencies in nats: the loss of a model that knows these frequencies only."""
    counts = np.array(
        list(Counter(token for window in (*text.fitted, *text.held_out) for token in window).values()), np.float64
    )
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
