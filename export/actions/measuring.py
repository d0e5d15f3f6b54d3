"""What candidate actions cost and lose, measured through the runtime on this machine.

Losses are those of `losses`: of steps behind a dense prompt, each with the action's own keys and values of the steps
before it in the cache.

Short contexts come first, from windows of the text, for variants alone: pages only matter at long ones. There,
after one stretch of text, every variant that the short ones left is measured at every keep.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sol_rt.budget.calibration_table import device_string
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import PAGE_SIZE
from sol_rt.engine.engine import Engine
from sol_rt.export.actions.calibration_text import CalibrationText
from sol_rt.export.actions.losses import Candidate as LossCandidate
from sol_rt.export.actions.losses import token_divergences, token_losses
from sol_rt.export.actions.selection import Point, worth_keeping
from sol_rt.export.progress import Progress

SHORT = 512  # or what the model has room for
LONG = 4096
_STEPS = 256  # that the text has behind a long context, at least
_FEWEST_STEPS = 32  # scored there, however long they take
_WARM_UP = 2
_FEWEST_REPEATS, _MOST_REPEATS = 7, 120  # of timings, between them as _TIMING_SECONDS allows
_TIMING_SECONDS = 20.0  # a context
_PERCENTILE = 10
_LOSS_SECONDS = 90.0  # a context


@dataclass(frozen=True)
class Measurements:
    """What was measured of the candidates.

    Attributes:
        fronts: by context, what was measured there: variants at the short one, all candidates left at the long one,
            where the text and the model allow one.
        dense_loss: by context, nats a token under the dense action.
        gone: nats over dense from which an action's text counts as gone: half of what the context tells, which is the
            entropy of the text's own token frequencies less the dense loss.
        device: what the milliseconds hold for.
        busy: how much longer a middling dense step took than what counts as its time; near 0 on an idle machine.
    """

    fronts: dict[int, dict[Action, Point]]
    dense_loss: dict[int, float]
    gone: float
    device: str
    busy: float

    def tokens(self, context: int) -> int:
        """Tokens scored for each action there."""
        return len(next(iter(self.fronts[context].values())).added)


def measure(
    bundle: Bundle,
    text: CalibrationText,
    keeps: Sequence[int],
    progress: Progress,
    *,
    own_text: bool = False,
    required: Iterable[Action] = (),
) -> Measurements:
    """Measures the variants of a bundle, and those worth it at every keep.

    Args:
        bundle: the bundle as far as it is; its actions don't matter.
        text: windows of SHORT tokens or the model's context, and a longer stretch where there is one.
        keeps: percent of old KV pages read, 100 among them.
        progress: told how far each of four stages is.
        own_text: the text was drawn from the dense action's distribution. What an action then loses over dense is, in
            expectation over the token drawn, its divergence from dense: that is taken, without the luck of the draw.
        required: actions that have to be measured, their variants those of the bundle.
    """
    engine = Engine(bundle, provider="cpu")
    required, dense = tuple(required), bundle.config.dense
    variants = [Action(100, variant.prune, variant.bits) for variant in bundle.config.variants.values()]
    short = min(SHORT, engine.max_context - 1)
    added, loss = _losses(engine, text.windows, None, variants, own_text, f"losses at {short}", progress)
    times, busy = _times(engine, variants, dense, short, progress)
    fronts, dense_loss = {short: _front(added, times)}, {short: loss}
    gone = max(_frequency_entropy(text.windows) - loss, 0.0) / 2 or math.inf

    context = long_context(len(text.long), engine.max_context)
    if context is not None and (len(set(keeps)) > 1 or required):
        useful = worth_keeping(fronts[short], dense, gone) | {replace(action, keep=100) for action in required}
        grid = [replace(action, keep=keep) for action in sorted(useful, reverse=True) for keep in keeps]
        candidates = list(dict.fromkeys([*grid, *required]))
        times, spread = _times(engine, candidates, dense, context, progress)
        busy = max(busy, spread)
        by_step = sum(times[action] for action in candidates if action.keep < 100)
        room = min(len(text.long), engine.max_context) - context - 1
        steps = min(room, max(_FEWEST_STEPS, int(_LOSS_SECONDS * 1e3 / by_step))) if by_step else room
        window = text.long[: context + steps + 1]
        stage = f"losses at {context}"
        added, dense_loss[context] = _losses(engine, [window], context, candidates, own_text, stage, progress)
        fronts[context] = _front(added, times)
    device = device_string(*engine.machine)
    return Measurements(fronts, dense_loss, gone, device, busy)


def long_context(tokens: int, max_context: int) -> int | None:
    """Where to measure keeps, given the length of the longest stretch of text; None where that is too short for it."""
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
    """(nats over dense at each token, float64 [n], of every action on the same tokens, the dense action's mean loss).

    Of the windows as many are taken as fit into _LOSS_SECONDS, one at least.
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
    """(milliseconds of a step of each action at a context, how much longer a middling dense step took than that).

    Actions take turns, in another order each time, as in `sol_rt.budget.calibrate`. Here a low percentile of many
    repeats counts: an export often shares its machine, and what else runs there only ever adds time.
    """
    # any tokens do: what a step costs does not depend on them
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
    """Nats a token that a model would lose which knows nothing but how often each token occurs in this text."""
    counts = np.array(list(Counter(token for window in windows for token in window).values()), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
