"""Measures what decode steps cost on this device and fits the lines of the measured cost model.

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
from typing import TYPE_CHECKING, Any

import numpy as np

from sol_rt.budget.cost.cost_table import CostTable, cost_table_path, device_string
from sol_rt.budget.cost.line_fit import fit_line
from sol_rt.budget.cost.model import BytesCost, Line
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.errors import UsageError
from sol_rt.progress import Progress, Stages

if TYPE_CHECKING:
    from sol_rt.generate.native.engine import Engine

_WARM_UP = 2
_POLICY_RUNS = 9  # of the core, for the progress bar
_LEAST = 5  # repeats, however long they take
_FILL_SHARE = 0.3
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
        """The row that `sol-rt profile --json` prints."""
        return {"tag": self.action.tag, "context": self.context, "ms": self.milliseconds, "model_ms": self.modelled}


@dataclass(frozen=True)
class Profile:
    """The fitted table and its timings."""

    table: CostTable
    rows: list[Timing]


def measure(
    engine: Engine,
    bundle: Bundle,
    contexts: Sequence[int],
    repeats: int,
    progress: Progress,
    *,
    seconds: float = math.inf,
) -> Profile:
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
        raise UsageError(f"profile: got contexts {list(contexts)}, expected lengths from 1 to {room}")
    kv_densities = sorted({1.0} | {entry.action.kv_density for entry in config.actions}, reverse=True)
    actions = [
        Action(kv_density, variant.channel_density, variant.bits)
        for variant in config.variants.values()
        for kv_density in kv_densities
    ]

    # any tokens will do: a step costs the same for all of them
    tokens = np.arange(lengths[-1], dtype=np.int64) % config.model.vocab_size
    engine.reset()
    # about how long each stage takes, in decode steps; a token of a prompt takes a fraction of one
    weights: dict[str, float] = {}
    for length, before in zip(lengths, [0, *lengths], strict=False):
        weights[f"filling the cache to {length}"] = (length - before) * _PROMPT_TOKEN
        weights[f"timing at {length}"] = (repeats + _WARM_UP) * len(actions)
    stages = Stages(progress, {**weights, "timing the policy": _POLICY_RUNS})
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
    reads = BytesCost(config).reads
    rows: list[Timing] = []
    for variant in config.variants:
        mine = [(action, length, ms) for (action, length), ms in measured.items() if action.variant == variant]
        line = fit_line([(*reads(action, length), ms) for action, length, ms in mine])
        lines[variant] = dict.fromkeys(kv_densities, line)
        rows += [Timing(*row, line.at(*reads(row[0], row[1]))) for row in mine]

    device = device_string(*engine.machine)
    table = CostTable(
        bundle=bundle.identity,
        device=device,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        policy_ms=policy_ms,
        lines=lines,
        tuning=_settings(engine),
    )
    engine.reset()
    return Profile(table, rows)


def _settings(engine: Engine) -> Tuning | None:
    """The settings that the engine's operators run under; None if it runs no native operators of the CPU."""
    return engine.tuning() if engine.native and engine.provider.gpu is None else None


def save(bundle: Bundle, engine: Engine, table: CostTable) -> Path:
    """Saves the table where `load_cost_model` looks for it. Returns its path."""
    path = cost_table_path(bundle, *engine.machine)
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
    variants = [Action(1.0, variant.channel_density, variant.bits) for variant in bundle.config.variants.values()]
    cost = BytesCost(bundle.config)
    return engine.time_policy(min(variants, key=lambda action: cost.step(action, length)))
