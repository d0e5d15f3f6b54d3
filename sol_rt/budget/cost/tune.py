"""Measures which settings of the CPU's operators are best on this processor.

Settings take turns, so that a machine that slows down for a while does so for all of them. So do plain reads of the
weights, which show how much of the memory's rate a step reaches. The defaults stay unless another setting's gain is
beyond what the rounds scatter.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.hardware import tuning
from sol_rt.engine.hardware.reads import PlainReads
from sol_rt.engine.hardware.tuning import Tuned, Tuning
from sol_rt.progress import Progress

if TYPE_CHECKING:
    from sol_rt.generate.native.engine import Engine

_CONTEXT = 16  # tokens
_LEAST_ROUNDS, _MOST_ROUNDS = 4, 200
_FAST_SECONDS = 0.015  # a step that takes longer is timed once in a round
_LEAST_GAIN = 1.02
_LEAST_GAIN_OF_COPIES = 1.05  # they take memory
_SLOWEST = 4  # times the seconds that were asked for: a slow model is not timed longer
_STANDARD_ERRORS = 4.0  # of the mean gain; noise alone gets the best of seven there in 4% of tries of four rounds
_SCATTER = 0.1  # largest distance of the quartiles of steady ratios, as a share of their median
_READ_BYTES = 512 << 20  # of the weights, in a round
_SMALL_TEAM = 4  # threads from which on half of them is tried: two of a core share its way to memory


def candidates(threads: int) -> list[Tuning]:
    """The settings that are tried, the defaults first."""
    default = Tuning()
    levels, aheads = (2, 1), (12288, 6144, 24576, 49152)
    tried = [Tuning(level, ahead) for level, ahead in product(levels, aheads)]
    if threads >= _SMALL_TEAM:
        tried += [Tuning(members=threads // 2)]
    return [default, *(each for each in tried if each != default)]


def tune(engine: Engine, progress: Progress, *, seconds: float) -> Tuned:
    """Times dense and cheapest steps under all candidates and applies the best one.

    Args:
        engine: an engine on the CPU with native operators; its cache is overwritten.
        progress: progress callback.
        seconds: about how long to take, at most twice that. Where it allows fewer than _LEAST_ROUNDS rounds, the
            defaults stay.
    """
    config = engine.bundle.config
    tried = candidates(engine.threads)
    cheapest = min((entry.action for entry in config.actions), key=lambda action: BytesCost(config).step(action, 64))
    actions = [config.dense, Action(1.0, cheapest.channel_density, cheapest.bits)]
    engine.reset()
    length = _filled(engine)
    each = 2 if _step(engine, length, config.dense, 1) < _FAST_SECONDS else 1
    rounds: list[list[list[float]]] = []
    plain: list[float] = []  # 10^9 bytes a second, one for each round
    order, began = np.random.default_rng(0), time.perf_counter()
    with PlainReads(SharedWeights(engine.bundle).beginning(_READ_BYTES), engine.threads) as reads:
        while len(rounds) <= _MOST_ROUNDS:  # the first one warms up
            row = [[0.0] * len(actions) for _ in tried]
            for index in order.permutation(len(tried)):
                engine.set_tuning(tried[index])
                row[index] = [_step(engine, length, action, each) for action in actions]
            rounds.append(row)
            plain.append(reads.gb_per_second())
            spent = time.perf_counter() - began
            progress("trying settings of the processor", min(spent, seconds), seconds)
            enough = spent >= seconds and len(rounds) > _LEAST_ROUNDS
            if enough or spent * (_LEAST_ROUNDS + 1) > 2 * seconds * len(rounds):  # too slow for as many rounds
                break
    times = np.array(rounds[1:] or rounds)  # [rounds, candidates, actions]
    known = len(times) >= _LEAST_ROUNDS
    best, gain = choose(times) if known else (0, 1.0)
    engine.reset()
    engine.set_tuning(tried[best])
    rate = BytesCost(config).dense(length) / float(np.percentile(times[:, best, 0], 25)) / 1e9
    return Tuned(
        tried[best],
        gain,
        rate,
        float(np.percentile(plain[1:] or plain, 75)),
        model=config.model.name,
        quick=False,
        created=tuning.now(),
        steady=not known or is_steady(times),  # a slow model is slow again in an hour
    )


def tune_copies(engine: Engine, *, seconds: float) -> float | None:
    """Measures the speedup of whole 4-bit steps by copies of the model's matrices; 1 if it is not clear, or too small.

    Applies copies if it is over 1. None if the bundle has no such steps, they are too slow for _LEAST_ROUNDS rounds, or
    memory has no room for copies.

    Args:
        engine: an engine on the CPU with native operators; its cache is overwritten.
        seconds: about how long to take, after a first round that makes the copies.
    """
    config, whole = engine.bundle.config, Action(1.0, 1.0, 4)
    if whole.variant not in config.variants or not tuning.room_for_copies(config.tensors):
        return None
    engine.reset()
    length, settings = _filled(engine), replace(engine.tuning(), copies=False)
    tried = [settings, replace(settings, copies=True)]
    rounds: list[list[list[float]]] = []
    began = time.perf_counter()
    while len(rounds) <= _MOST_ROUNDS and (len(rounds) <= _LEAST_ROUNDS or time.perf_counter() - began < seconds):
        row = [[0.0], [0.0]]
        for index in (0, 1) if len(rounds) % 2 else (1, 0):
            engine.set_tuning(tried[index], keep_copies=True)
            row[index] = [_step(engine, length, whole, 2)]
        rounds.append(row)
        if len(rounds) == 1:
            began = time.perf_counter()
        elif time.perf_counter() - began > _SLOWEST * seconds:
            break
    times = np.array(rounds[1:])
    known = len(times) >= _LEAST_ROUNDS
    best, gain = choose(times, _LEAST_GAIN_OF_COPIES) if known else (0, 1.0)
    engine.set_tuning(tried[best])
    if best == 0:
        _step(engine, length, whole, 1)  # frees the copies
    engine.reset()
    return gain if known else None


def _filled(engine: Engine) -> int:
    """Runs some tokens, after which steps are timed, and returns their number."""
    config, length = engine.bundle.config, max(1, min(_CONTEXT, engine.max_context - 1))
    engine.forward([token % config.model.vocab_size for token in range(length)], config.dense)
    return length


def choose(times: np.ndarray, least_gain: float = _LEAST_GAIN) -> tuple[int, float]:
    """The best candidate's place, and its gain over the first one.

    Args:
        times: seconds, float64 [rounds, candidates, actions].
        least_gain: the least gain for which another candidate than the first one is chosen.
    """
    gains = _gains(times)
    low, middle = np.percentile(np.exp(gains), [10, 50], axis=0)
    best = int(np.argmax(middle))
    error = float(gains[:, best].std(ddof=1)) / len(gains) ** 0.5
    # one of many is often ahead by chance
    if middle[best] < least_gain or low[best] <= 1.0 or gains[:, best].mean() <= _STANDARD_ERRORS * error:
        return 0, 1.0
    return best, float(middle[best])


def is_steady(times: np.ndarray) -> bool:
    """True if the gains over the first candidate agree from round to round, on average over the candidates.

    Where they do not, other programs ran meanwhile, and the first candidate may have stayed because of that.

    Args:
        times: seconds, float64 [rounds, candidates, actions].
    """
    low, middle, high = np.percentile(np.exp(_gains(times)[:, 1:]), [25, 50, 75], axis=0)
    return float(((high - low) / middle).mean()) <= _SCATTER


def _gains(times: np.ndarray) -> np.ndarray:
    """log(time of the first candidate / time of each), averaged over actions: float64 [rounds, candidates]."""
    return np.log(times[:, :1] / times).mean(axis=2)


def _step(engine: Engine, length: int, action: Action, repeats: int) -> float:
    """Seconds of a step, the fastest of `repeats`: the first one finds another setting's leftovers in the caches."""
    taken = []
    for _ in range(repeats):
        engine.truncate(length)
        start = time.perf_counter()
        engine.forward([1], action)
        taken.append(time.perf_counter() - start)
    return min(taken)
