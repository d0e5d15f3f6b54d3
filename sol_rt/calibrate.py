"""Measures what decode steps cost on this device and fits the lines of the calibrated cost model.

Actions take turns, so that a machine that slows down or speeds up does so for all of them, and so that a step pays
for the switch from another variant as it does in generation. Of the repeats the lower quartile counts: what else runs
on the machine only ever adds time. One line is fitted a variant, over all keeps and contexts: a keep differs by what
it reads, which the line's terms are.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.actions import Action
from sol_rt.bundle import Bundle
from sol_rt.cost import CalibrationTable, Line, calibration_path, device_string, fit_line, fit_refresh, reads
from sol_rt.engine import Engine
from sol_rt.errors import UsageError
from sol_rt.policy import PolicySession

_WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Lower quartile of the milliseconds of one action's step with `context` tokens in the cache before it."""

    action: Action
    context: int
    milliseconds: float

    def as_json(self) -> dict[str, Any]:
        return {"tag": self.action.tag, "context": self.context, "ms": self.milliseconds}


@dataclass(frozen=True)
class Calibration:
    """The fitted table and the timings behind it."""

    table: CalibrationTable
    rows: list[Timing]


def measure(
    engine: Engine,
    bundle: Bundle,
    contexts: Sequence[int],
    repeats: int,
    progress: Callable[[str, float, float], None],
    *,
    threads: int | None = None,
) -> Calibration:
    """Times every variant at every keep of the bundle's actions.

    Args:
        engine: an engine of the bundle; its cache is overwritten.
        bundle: what is measured.
        contexts: context lengths in tokens; those beyond the model's context are left out.
        repeats: timed steps of each action at each context.
        progress: called with a step's name, how much is done and how much there is.
        threads: what the engine was opened with.

    Raises:
        UsageError: no context length is usable.
    """
    config = bundle.config
    room = config.model.max_context - config.refresh.episode - 1
    lengths = sorted({length for length in contexts if 1 <= length <= room})
    if not lengths:
        raise UsageError(f"calibrate: got contexts {list(contexts)}, expected lengths from 1 to {room}")
    keeps = sorted({100} | {entry.action.keep for entry in config.actions}, reverse=True)
    actions = [Action(keep, variant.prune, variant.bits) for variant in config.variants.values() for keep in keeps]

    # Any tokens do: what a step costs does not depend on them.
    tokens = np.arange(lengths[-1], dtype=np.int64) % config.model.vocab_size
    engine.reset()
    progress("filling the cache", 0, 1)
    engine.forward(tokens, config.dense)
    progress("filling the cache", 1, 1)

    rows: list[Timing] = []
    refreshes: list[tuple[int, int, float]] = []
    episode = [1] * config.refresh.episode
    total, done = len(lengths) * (repeats + _WARM_UP) * len(actions), 0
    # From the longest down: the cache is only ever cut back.
    for length in reversed(lengths):
        for batch in (episode[: max(1, len(episode) // 4)], episode):
            runs = [_timed(engine, length, batch, config.dense) for _ in range(repeats)]
            refreshes.append((length, len(batch), _typical(runs)))
        times: dict[Action, list[float]] = {action: [] for action in actions}
        for repeat in range(repeats + _WARM_UP):
            for action in actions:
                elapsed = _timed(engine, length, [1], action)
                if repeat >= _WARM_UP:
                    times[action].append(elapsed)
                done += 1
            progress("timing actions", done, total)
        rows += [Timing(action, length, _typical(values)) for action, values in times.items()]

    lines: dict[str, dict[int, Line]] = {}
    for variant in config.variants:
        mine = [row for row in rows if row.action.variant == variant]
        samples = [(*reads(row.action, row.context, config.kv), row.milliseconds) for row in mine]
        lines[variant] = dict.fromkeys(keeps, fit_line(samples))

    device = device_string(engine.provider_name, threads, engine.native)
    table = CalibrationTable(
        bundle=bundle.identity,
        device=device,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        policy_ms=_policy(bundle, repeats),
        refresh=fit_refresh(refreshes),
        lines=lines,
    )
    engine.reset()
    return Calibration(table, rows)


def save(bundle: Bundle, engine: Engine, table: CalibrationTable, threads: int | None = None) -> Path:
    """Keeps the table where models of the same bundle, provider and threads look for it. Returns its path."""
    path = calibration_path(bundle, engine.provider_name, threads, engine.native)
    table.save(path)
    return path


def _timed(engine: Engine, length: int, tokens: Sequence[int], action: Action) -> float:
    """Milliseconds of one forward on top of `length` tokens."""
    engine.truncate(length)
    start = time.perf_counter()
    engine.forward(tokens, action)
    return (time.perf_counter() - start) * 1e3


def _typical(times: Sequence[float]) -> float:
    return float(np.percentile(times, 25))


def _policy(bundle: Bundle, repeats: int) -> float:
    """Milliseconds of one decision; 0 where the bundle has no policy."""
    spec = bundle.config.policy
    if spec is None:
        return 0.0
    session = PolicySession(bundle)
    hidden = np.zeros((1, bundle.config.model.hidden_size), np.float32)
    scalars = dict.fromkeys(spec.scalars, 0.0)
    times = []
    for step in range(repeats + _WARM_UP):
        start = time.perf_counter()
        session.decide(hidden, 1, scalars, 0, step % spec.horizon)
        times.append((time.perf_counter() - start) * 1e3)
    return _typical(times[_WARM_UP:])
