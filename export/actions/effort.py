"""Sets how much work a calibration is: numbers of tokens, from the model's size alone and never from a clock.

So the same checkpoint gives the same bundle on a busy machine and on an idle one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from sol_rt.export.actions import prompt_losses
from sol_rt.export.actions.calibration_text import CONTEXTS, LONG, WINDOW
from sol_rt.export.quantize.gptq import one_thread_each

_WRITTEN = 1.5e12  # weights times tokens that a quick calibration writes, within the bounds of `Effort.quick`
_SMALL = 1.5e8  # weights of a model that is searched and scored on more tokens
_LEAST_WINDOWS = 4
_LARGE = 1e9  # weights of a model that does not write the text: a token of its own costs as much as a gigabyte read
_MIDDLE = 4e9  # weights of a model whose single steps still take little of an export
_SCORED_WINDOWS = 10  # a window of each kind of the package's sample texts
_LONG_WINDOWS = 5  # at most in the long stretch, which then reaches beyond the context of 2048 tokens

_SPEED = 172e9  # float32 operations a second of two idle cores of a Zen 3 server, whose seconds the following are
_ROUNDING, _SEARCHING = 18e-9, 25e-9  # seconds a weight: on a plain grid, and on one that is searched
_FITTING_PLANES, _FITTING = 132e-9, 163e-9  # seconds a weight: what 4-bit codes of the source leave, and all codes
_COPYING = 9e-9  # seconds a weight: hashing, or reading the source for the comparison
_RUNNING = 2e-11  # seconds a weight and token: the source in float32, with its Hessians
_SCORING = 1.45e-11  # seconds a weight and token: the graphs, on batches; less where dot products of bytes are fast
_TRYING = 3.8e-12  # seconds a weight and token of a trial
_STEPPING = {False: 6e-11, True: 2.4e-11}  # seconds a weight and decode step; cheaply, at 4 bits
_SEARCHED = 6e8  # weights of a model whose active channels are searched, about
_PRODUCTS = 12  # the first ones of a process take twice as long
_STEP = 4e-3  # seconds a decode step, whatever the weights
_TRIALS, _VARIANTS, _LEVELS = 40, 25, 3  # LM heads or active channels tried; candidates; KV densities below 1
_UNBEATEN = 14  # of the candidates
_READ_OUT = 7  # actions that a policy is fitted to, on half of each window, in calls that take twice as long


@dataclass(frozen=True)
class Effort:
    """Numbers of tokens and windows.

    Attributes:
        writes: the model writes the text; else it is fitted to the package's.
        windows: windows of the calibration text, those of the long stretch included.
        long: tokens of the long stretch.
        writes_cheaply: the graph of the fewest bits writes the text, at a low KV density, not the dense action.
        plain_grid: the weights of that graph are rounded without a search for the best steps.
        fitted: windows that the weights are fitted to.
        most_channels: of a group of input channels that GPTQ fits together; None: all of a matrix.
        head_windows: held-out windows on which the LM head's bits are chosen.
        searched_windows: fitted windows on which active channels are searched.
        trial_tokens: of each of these windows, half of them scored.
        scored_windows: most windows on which variants are scored.
        windows_of_all: of these, the first ones, after which variants that others beat are scored no more; a policy is
            fitted to them.
        scored_tokens: tokens at the end of each of these windows.
        long_tokens: most tokens scored after each context of the long stretch.
        kv_steps: tokens at each context for actions of KV density below 1, which run step by step.
    """

    writes: bool
    windows: int
    long: int
    writes_cheaply: bool
    plain_grid: bool
    fitted: int
    most_channels: int | None
    head_windows: int
    searched_windows: int
    trial_tokens: int
    scored_windows: int
    windows_of_all: int
    scored_tokens: int
    long_tokens: int
    kv_steps: int

    @classmethod
    def full(cls) -> Effort:
        """Effort of a full calibration."""
        return cls(
            writes=True,
            windows=24,
            long=LONG,
            writes_cheaply=False,
            plain_grid=False,
            fitted=16,
            most_channels=None,
            head_windows=4,
            searched_windows=3,
            trial_tokens=WINDOW,
            scored_windows=_SCORED_WINDOWS,
            windows_of_all=_SCORED_WINDOWS,
            scored_tokens=WINDOW // 4,
            long_tokens=WINDOW - 1,
            kv_steps=256,
        )

    @classmethod
    def quick(cls, weights: int, coded: bool) -> Effort:
        """Effort of a quick calibration, which keeps most of the quality in a fraction of the time.

        Args:
            weights: of the model.
            coded: most of them have 4-bit codes in the source, so that little is left to fit.
        """
        windows = round(_bounded(_WRITTEN / weights / WINDOW, _LEAST_WINDOWS, 6 if coded else 9))
        small, writes = weights <= _SMALL, weights < _LARGE
        return cls(
            writes=writes,
            windows=windows,
            long=min(windows, _LONG_WINDOWS) * WINDOW if writes else _LONG_WINDOWS * WINDOW,
            writes_cheaply=coded,
            plain_grid=coded and not small,
            fitted=4 if coded or not writes else 6,
            most_channels=2560,
            head_windows=1,
            searched_windows=2,
            trial_tokens=WINDOW * 3 // 4 if small else WINDOW // 2,
            scored_windows=_SCORED_WINDOWS,
            windows_of_all=_SCORED_WINDOWS if writes else 2,
            scored_tokens=64 if small else 32 if writes else 24,
            long_tokens=WINDOW - 1 if small else 127 if writes else 95,
            kv_steps=256 if small else 160 if weights < _MIDDLE else 64,
        )


def _bounded(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)


def about_seconds(
    weights: int, effort: Effort | None, *, coded: bool, measured: bool, parity: bool, fits_policy: bool = True
) -> float:
    """Estimates the seconds of an export on the machine whose speed is _SPEED.

    Args:
        weights: of the model.
        effort: of its calibration; None: nothing is fitted.
        coded: most weights have 4-bit codes in the source.
        measured: losses are measured, not read from a stored calibration.
        parity: the export ends with a comparison.
        fits_policy: a policy is fitted where losses are measured.
    """
    seconds = weights * _COPYING * (1 + parity)
    if effort is None:
        return seconds + weights * (_ROUNDING if coded else _SEARCHING)
    seconds += weights * (_FITTING_PLANES if coded else _FITTING) + weights * _RUNNING * effort.fitted * WINDOW
    if not measured:
        return seconds
    if effort.writes:
        step = weights * _STEPPING[effort.writes_cheaply] + _STEP
        seconds += weights * (_ROUNDING if effort.plain_grid else _SEARCHING) + effort.windows * WINDOW * step
    contexts = effort.long // CONTEXTS[1]
    of_all = min(effort.windows_of_all, effort.scored_windows)
    rows = _VARIANTS * of_all + _UNBEATEN * (effort.scored_windows - of_all)
    read_out = of_all * (_READ_OUT + 0.5) if fits_policy else 0.0
    tokens = (effort.scored_windows + read_out) * WINDOW + rows * effort.scored_tokens
    tokens += effort.long + contexts * _VARIANTS // 2 * effort.long_tokens
    searched = effort.searched_windows if weights <= _SEARCHED else 0
    seconds += weights * _TRYING * _TRIALS * effort.trial_tokens * (effort.head_windows + searched)
    tokens += prompt_losses.WINDOWS * (WINDOW + 2 * prompt_losses.SCORED)  # a prompt of half a window, twice
    steps = _LEVELS * effort.kv_steps * (1 + contexts)
    return seconds + weights * _SCORING * tokens + steps * (weights * _STEPPING[False] + _STEP)


def slowness() -> float:
    """Factor by which a matrix product takes longer here than on the machine that `about_seconds` counts for."""

    def seconds() -> float:
        began = time.thread_time()  # what else runs does not count
        torch.matmul(square, square)
        return time.thread_time() - began

    square = torch.ones(1024, 1024)
    with one_thread_each() as pool:
        shortest = min(pool.submit(seconds).result() for _ in range(_PRODUCTS))
    return _SPEED / torch.get_num_threads() * shortest / (2 * len(square) ** 3)
