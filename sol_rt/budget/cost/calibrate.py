"""Measures what decode steps cost on this device and fits the lines of the calibrated cost model.

The actions take turns. So a machine that slows down does so for all of them, and a step pays for the switch from
another variant, as it does in generation. The lower quartile of the repeats counts: other programs only ever add time.
One line is fitted for each variant, over all KV densities and contexts: densities differ in what they read, and that is
what the line's terms count.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.budget.cost.bytes_model import BytesCost, Line, reads
from sol_rt.budget.cost.calibration_table import CalibrationTable, calibration_path, device_string
from sol_rt.budget.cost.line_fit import fit_line
from sol_rt.budget.policy import PolicySession
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.engine.hardware import tuning
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.errors import UsageError
from sol_rt.progress import Progress, Stages

_WARM_UP = 2
_LEAST = 5  # repeats, however long they take
_FILL_SHARE = 0.3
_QUICK_CONTEXT = 16  # tokens
_LEAST_QUICK = 7  # rounds
_QUICK_STEPS = 3  # of each variant in a round, of which the fastest counts
_QUICK_MS = 15.0  # a dense step that takes longer is timed once in a round
_POLICY_RUNS = 15
_SCATTER = 0.1  # largest distance of the quartiles of steady ratios, as a share of their median
_PROMPT_TOKEN = 0.1  # decode steps that a token of a prompt takes, for the progress bar


@dataclass(frozen=True)
class Timing:
    """A measured step of one action.

    Attributes:
        action: the action.
        context: tokens in the cache before the step.
        milliseconds: lower quartile of the repeats.
        modelled: the same by the fitted line.
    """

    action: Action
    context: int
    milliseconds: float
    modelled: float

    @property
    def error(self) -> float:
        """modelled / measured - 1: relative error of the fitted line."""
        return self.modelled / self.milliseconds - 1

    def as_json(self) -> dict[str, Any]:
        """The row that `sol-rt calibrate --json` prints."""
        return {"tag": self.action.tag, "context": self.context, "ms": self.milliseconds, "model_ms": self.modelled}


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
    progress: Progress,
    *,
    seconds: float = math.inf,
) -> Calibration:
    """Times every variant at every KV density of the bundle's actions.

    Args:
        engine: an engine of the bundle; its cache is overwritten.
        bundle: the bundle to measure.
        contexts: context lengths in tokens; those beyond the model's context are left out.
        repeats: timed steps of each action at each context.
        progress: progress callback.
        seconds: about how long to take. There are then fewer repeats, but at least _LEAST, and lengths are left out if
            filling the cache to them would take more than _FILL_SHARE of this time.

    Raises:
        UsageError: no context length is usable.
    """
    config = bundle.config
    room = config.model.max_context - 1
    lengths = sorted({length for length in contexts if 1 <= length <= room})
    if not lengths:
        raise UsageError(f"calibrate: got contexts {list(contexts)}, expected lengths from 1 to {room}")
    kv_densities = sorted({1.0} | {entry.action.kv_density for entry in config.actions}, reverse=True)
    actions = [
        Action(kv_density, variant.channel_density, variant.bits)
        for variant in config.variants.values()
        for kv_density in kv_densities
    ]

    # any tokens will do: a step costs the same for all of them
    tokens = np.arange(lengths[-1], dtype=np.int64) % config.model.vocab_size
    engine.reset()
    engine.load(config.variants)
    # about how long each stage takes, in decode steps; a token of a prompt takes a fraction of one
    weights: dict[str, float] = {}
    for length, before in zip(lengths, [0, *lengths], strict=False):
        weights[f"filling the cache to {length}"] = (length - before) * _PROMPT_TOKEN
        weights[f"timing at {length}"] = (repeats + _WARM_UP) * len(actions)
    stages = Stages(progress, {**weights, "timing the policy": _POLICY_RUNS + _WARM_UP})
    begin = time.perf_counter()
    measured: dict[tuple[Action, int], float] = {}
    order = np.random.default_rng(0)
    per_token = 0.0  # seconds that filling the cache took for each token so far
    for number, length in enumerate(lengths):
        more = tokens[engine.length : length]
        if len(more) * per_token > _FILL_SHARE * seconds:
            break
        with stages(f"filling the cache to {length}"):
            start = time.perf_counter()
            engine.forward(more, config.dense)
        per_token = (time.perf_counter() - start) / len(more)
        until = time.perf_counter() + (begin + seconds - time.perf_counter()) / (len(lengths) - number)
        times: dict[Action, list[float]] = {action: [] for action in actions}
        with stages(f"timing at {length}") as report:
            for repeat in range(repeats + _WARM_UP):
                if repeat >= _LEAST + _WARM_UP and time.perf_counter() > until:
                    break
                # in another order each time, so that no action always follows one of its own graph
                for index in order.permutation(len(actions)):
                    elapsed = _timed(engine, length, [1], actions[index])
                    if repeat >= _WARM_UP:
                        times[actions[index]].append(elapsed)
                report(f"timing at {length}", repeat + 1, repeats + _WARM_UP)
        engine.truncate(length)
        measured |= {(action, length): _typical(values) for action, values in times.items()}
    with stages("timing the policy"):
        policy_ms = _policy(engine, bundle, engine.length)

    lines: dict[str, dict[float, Line]] = {}
    rows: list[Timing] = []
    for variant in config.variants:
        mine = [(action, length, ms) for (action, length), ms in measured.items() if action.variant == variant]
        line = fit_line([(*reads(action, length, config), ms) for action, length, ms in mine])
        lines[variant] = dict.fromkeys(kv_densities, line)
        rows += [Timing(*row, line.at(*reads(row[0], row[1], config))) for row in mine]

    device = device_string(*engine.machine)
    table = CalibrationTable(
        bundle=bundle.identity,
        device=device,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        policy_ms=policy_ms,
        lines=lines,
        tuning=_settings(engine),
    )
    engine.reset()
    return Calibration(table, rows)


def measure_quickly(engine: Engine, bundle: Bundle, *, seconds: float = 2.0) -> CalibrationTable:
    """Times every variant at one short context, in about `seconds`, or three times that if the times scatter or a step
    takes long.

    The variants take turns. A variant's time is the dense step's lower quartile times the median of its ratios to the
    dense steps of the same rounds. A machine that slows down for a while does not change that median. The times are
    steady if the quartiles of these ratios lie within _SCATTER of each other, on average over the variants.

    A line's slopes are those of the bytes model, at the rate at which the dense step reads bytes here. The table shows
    which variants are fast on this machine; `measure` also reports the cost of long contexts. The cache is overwritten.
    """
    config = bundle.config
    actions = [Action(1.0, variant.channel_density, variant.bits) for variant in config.variants.values()]
    dense = actions.index(config.dense)
    engine.reset()
    engine.load(config.variants)
    length = max(1, min(_QUICK_CONTEXT, engine.max_context - 1))
    engine.forward([token % config.model.vocab_size for token in range(length)], config.dense)
    each = _QUICK_STEPS if _timed(engine, length, [1], config.dense) < _QUICK_MS else 1
    rounds: list[list[float]] = []
    order, began = np.random.default_rng(0), time.perf_counter()
    while True:
        row = [0.0] * len(actions)
        for index in order.permutation(len(actions)):
            row[index] = min(_timed(engine, length, [1], actions[index]) for _ in range(each))
        rounds.append(row)
        spent = time.perf_counter() - began
        times = np.array(rounds[1:])  # the first round warms up
        if len(times) == 0 or (spent <= 3 * seconds and (len(times) < _LEAST_QUICK or spent < seconds)):
            continue
        ratios = times / times[:, dense : dense + 1]
        low, middle, high = np.percentile(ratios, [25, 50, 75], axis=0)
        steady = len(times) >= _LEAST_QUICK and float(((high - low) / middle).mean()) <= _SCATTER
        if steady or spent > 3 * seconds:
            break
    policy_ms = _policy(engine, bundle, length)
    engine.reset()
    typical = middle * _typical(times[:, dense].tolist())
    model = BytesCost(config)
    rate = typical[dense] / model.dense(length)
    kv_densities = sorted({1.0} | {entry.action.kv_density for entry in config.actions}, reverse=True)
    lines = {}
    for variant, action, ms in zip(config.variants, actions, typical.tolist(), strict=True):
        slope = model.step(action, length + 1) - model.step(action, length)  # bytes of one more cached token
        fixed = max(ms - rate * slope * (length + 1), 0.0)
        lines[variant] = dict.fromkeys(kv_densities, Line(fixed, rate * slope, rate * model.page_bytes))
    return CalibrationTable(
        bundle=bundle.identity,
        device=device_string(*engine.machine),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        policy_ms=policy_ms,
        lines=lines,
        quick=True,
        steady=steady,
        tuning=_settings(engine),
    )


def _settings(engine: Engine) -> Tuning | None:
    """The settings that the engine's operators run under; None if it runs no native operators of the CPU."""
    library = engine.provider.library
    if library is None or engine.provider.gpu is not None:
        return None
    return tuning.current(library)


def save(bundle: Bundle, engine: Engine, table: CalibrationTable) -> Path:
    """Saves the table where `load_cost_model` looks for it. Returns its path."""
    path = calibration_path(bundle, *engine.machine)
    table.save(path)
    return path


def _timed(engine: Engine, length: int, tokens: Sequence[int], action: Action) -> float:
    """Milliseconds of one forward call after `length` tokens in the cache."""
    engine.truncate(length)
    start = time.perf_counter()
    engine.forward(tokens, action)
    return (time.perf_counter() - start) * 1e3


def _typical(times: Sequence[float]) -> float:
    """The lower quartile."""
    return float(np.percentile(times, 25))


def _policy(engine: Engine, bundle: Bundle, length: int) -> float:
    """Milliseconds of one run of the policy after a step of the cheapest variant; 0 if the bundle has none.

    On a CPU the step has filled the processor's caches with the model's weights. So the run takes several times as long
    as one after another run of the policy.
    """
    spec, config = bundle.config.policy, bundle.config
    if spec is None:
        return 0.0
    session = PolicySession(bundle, native_ops=engine.native_ops, weights=engine.weights)
    hidden = np.zeros((1, config.model.hidden_size), np.float32)
    scalars = dict.fromkeys(spec.scalars, 0.0)
    variants = [Action(1.0, variant.channel_density, variant.bits) for variant in config.variants.values()]
    cost = BytesCost(config)
    before = min(variants, key=lambda action: cost.step(action, length))
    times = []
    for step in range(_POLICY_RUNS + _WARM_UP):
        _timed(engine, length, [1], before)
        start = time.perf_counter()
        session.decide(hidden, 1, scalars, 0, step % spec.horizon)
        times.append((time.perf_counter() - start) * 1e3)
    return _typical(times[_WARM_UP:])
