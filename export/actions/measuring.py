"""Measures the losses and times of candidate actions with the runtime, on this machine.

Losses are those of losses.py: of decode steps after a dense prompt, whose keys and values the action itself computed.

The short context comes first, on windows of the text, with every variant at KV density 1: skipping old tokens matters
only at long contexts. Then, after one long stretch of text, every variant that the short context left is measured at
every KV density.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sol_rt.budget.cost.calibration_table import device_string
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import PAGE_SIZE
from sol_rt.engine.engine import Engine
from sol_rt.export.actions.calibration_text import CalibrationText
from sol_rt.export.actions.losses import Candidate as LossCandidate
from sol_rt.export.actions.losses import token_divergences, token_losses
from sol_rt.export.actions.selection import Point, worth_keeping
from sol_rt.store.progress import Progress

SHORT = 512  # tokens; less for models with a shorter context
LONG = 4096
_STEPS = 256  # tokens that the text must have after a long context
_FEWEST_STEPS = 32  # scored there in any case
_WARM_UP = 2
_FEWEST_REPEATS, _MOST_REPEATS = 7, 120  # of the timings; _TIMING_SECONDS decides between the two
_TIMING_SECONDS = 20.0  # for each context
_PERCENTILE = 10
_LOSS_SECONDS = 90.0  # for each context


@dataclass(frozen=True)
class Measurements:
    """The measurements of the candidates.

    Attributes:
        fronts: by context in tokens, the actions measured there: variants at the short context, all remaining
            candidates at the long one, if text and model are long enough for it.
        dense_loss: by context, the dense action's loss in nats per token.
        collapse_loss: added loss in nats per token above which an action's output counts as incoherent: half of the
            information gained from context, which is the entropy of the text's token frequencies minus the dense loss.
        device: the device that the times hold for.
        slowdown: how much longer the median dense step took than the time counted for it, as a share; near 0 on an idle
            machine.
    """

    fronts: dict[int, dict[Action, Point]]
    dense_loss: dict[int, float]
    collapse_loss: float
    device: str
    slowdown: float

    def tokens(self, context: int) -> int:
        """The number of tokens scored for each action at a context."""
        return len(next(iter(self.fronts[context].values())).added)


def measure(
    bundle: Bundle,
    text: CalibrationText,
    kv_densities: Sequence[float],
    progress: Progress,
    *,
    own_text: bool = False,
    required: Iterable[Action] = (),
) -> Measurements:
    """Measures all variants of a bundle at the short context, and the useful ones at every KV density at the long one.

    Args:
        bundle: the unfinished bundle; its actions play no part.
        text: windows of SHORT tokens, or of the model's whole context, and a longer stretch if there is one.
        kv_densities: shares of the old cached tokens read, 1 among them.
        progress: reports how far each of four stages is.
        own_text: the text was drawn from the dense action's distribution. The expectation of an action's added loss is
            then its divergence from dense. That is taken instead, as it has less noise.
        required: actions to measure in any case, of variants that the bundle has.
    """
    engine = Engine(bundle, provider="cpu")
    required, dense = tuple(required), bundle.config.dense
    variants = [Action(1.0, variant.channel_density, variant.bits) for variant in bundle.config.variants.values()]
    short = min(SHORT, engine.max_context - 1)
    added, loss = _losses(engine, text.windows, None, variants, own_text, f"losses at {short}", progress)
    times, slowdown = _times(engine, variants, dense, short, progress)
    fronts, dense_loss = {short: _front(added, times)}, {short: loss}
    collapse_loss = max(_frequency_entropy(text.windows) - loss, 0.0) / 2 or math.inf

    context = long_context(len(text.long), engine.max_context)
    if context is not None and (len(set(kv_densities)) > 1 or required):
        useful = worth_keeping(fronts[short], dense, collapse_loss) | {
            replace(action, kv_density=1.0) for action in required
        }
        grid = [
            replace(action, kv_density=kv_density)
            for action in sorted(useful, reverse=True)
            for kv_density in kv_densities
        ]
        candidates = list(dict.fromkeys([*grid, *required]))
        times, spread = _times(engine, candidates, dense, context, progress)
        slowdown = max(slowdown, spread)
        by_step = sum(times[action] for action in candidates if action.kv_density < 1.0)
        room = min(len(text.long), engine.max_context) - context - 1
        steps = min(room, max(_FEWEST_STEPS, int(_LOSS_SECONDS * 1e3 / by_step))) if by_step else room
        window = text.long[: context + steps + 1]
        stage = f"losses at {context}"
        added, dense_loss[context] = _losses(engine, [window], context, candidates, own_text, stage, progress)
        fronts[context] = _front(added, times)
    device = device_string(*engine.machine)
    return Measurements(fronts, dense_loss, collapse_loss, device, slowdown)


def long_context(tokens: int, max_context: int) -> int | None:
    """The long context for a longest stretch of `tokens` tokens. None if text or model are too short for one."""
    context = min(LONG, min(tokens, max_context) - _STEPS - 1) // PAGE_SIZE * PAGE_SIZE
    return context if context > SHORT else None


def _losses(
    engine: Engine,
    windows: Sequence[Sequence[int]],
    context: int | None,
    actions: Sequence[Action],
    own_text: bool,
    stage: str,
    progress: Progress,
) -> tuple[dict[Action, np.ndarray], float]:
    """The added loss of every action at each token, float64 [n], on the same tokens; and the dense action's mean loss.

    Uses as many windows as fit into _LOSS_SECONDS, and at least one.
    """
    dense = engine.bundle.config.dense
    dense_losses: list[np.ndarray] = []
    candidates = [LossCandidate(action) for action in actions]
    found: list[np.ndarray] = []
    until = time.perf_counter() + _LOSS_SECONDS
    for number, window in enumerate(windows):
        if found and time.perf_counter() > until:
            break

        def report(step: str, done: float, total: float, number: int = number) -> None:
            progress(stage, number + done / total, len(windows))

        dense_losses.append(token_losses(engine, [window], [LossCandidate(dense)], context=context))
        if own_text:
            found.append(token_divergences(engine, [window], dense, candidates, report, context))
        else:
            losses = token_losses(engine, [window], candidates, report, context=context)
            found.append(losses - dense_losses[-1])
    progress(stage, 1, 1)
    added = dict(zip(actions, np.concatenate(found, axis=1), strict=True))
    return added, float(np.concatenate(dense_losses, axis=1).mean())


def _times(
    engine: Engine, actions: Sequence[Action], dense: Action, context: int, progress: Progress
) -> tuple[dict[Action, float], float]:
    """Milliseconds of a step of each action at a context, and `Measurements.slowdown`.

    Actions take turns, each time in another order, as in `sol_rt.budget.cost.calibrate`. A low percentile of many
    repeats
    counts: an export often shares its machine, and other programs can only add time.
    """
    # the cost of a step does not depend on the tokens
    engine.reset()
    engine.forward(np.arange(context, dtype=np.int64) % engine.bundle.config.model.vocab_size, dense)
    times: dict[Action, list[float]] = {action: [] for action in actions}
    order, until = np.random.default_rng(0), time.perf_counter() + _TIMING_SECONDS
    for repeat in range(_WARM_UP + _MOST_REPEATS):
        if repeat >= _WARM_UP + _FEWEST_REPEATS and time.perf_counter() > until:
            break
        progress(f"timing at {context}", repeat, _WARM_UP + _MOST_REPEATS)
        for index in order.permutation(len(actions)):
            engine.truncate(context)
            start = time.perf_counter()
            engine.forward([1], actions[index])
            times[actions[index]].append((time.perf_counter() - start) * 1e3)
    progress(f"timing at {context}", 1, 1)
    typical = {action: float(np.percentile(values[_WARM_UP:], _PERCENTILE)) for action, values in times.items()}
    return typical, float(np.median(times[dense][_WARM_UP:])) / typical[dense] - 1


def _front(added: Mapping[Action, np.ndarray], times: Mapping[Action, float]) -> dict[Action, Point]:
    return {action: Point(times[action], values) for action, values in added.items()}


def _frequency_entropy(windows: Sequence[Sequence[int]]) -> float:
    """The entropy of the text's token frequencies in nats: the loss of a model that knows these frequencies only."""
    counts = np.array(list(Counter(token for window in windows for token in window).values()), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
