"""How much work a calibration is: numbers of tokens, from the model's size alone and never from a clock.

So the same checkpoint gives the same bundle on a busy machine and on an idle one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sol_rt.export.actions.calibration_text import LONG, WINDOW

_WRITTEN = 1.5e12  # weights times tokens that a quick calibration writes, within the bounds of `Effort.quick`
_SMALL = 1.5e8  # weights of a model that is searched and scored on more tokens
_LEAST_WINDOWS = 4
_LONG_WINDOWS = 5  # at most in the long stretch, which then reaches beyond the context of 2048 tokens


@dataclass(frozen=True)
class Effort:
    """Numbers of tokens and windows.

    Attributes:
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
        scored_tokens: tokens at the end of each of these windows.
        long_tokens: most tokens scored after each context of the long stretch.
        kv_steps: tokens at each context for actions of KV density below 1, which run step by step.
    """

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
    scored_tokens: int
    long_tokens: int
    kv_steps: int

    @classmethod
    def full(cls) -> Effort:
        """What a calibration can use."""
        return cls(
            windows=24,
            long=LONG,
            writes_cheaply=False,
            plain_grid=False,
            fitted=16,
            most_channels=None,
            head_windows=4,
            searched_windows=3,
            trial_tokens=WINDOW,
            scored_windows=8,
            scored_tokens=WINDOW // 4,
            long_tokens=WINDOW - 1,
            kv_steps=256,
        )

    @classmethod
    def quick(cls, weights: int, coded: bool) -> Effort:
        """What keeps most of that in a fraction of the time.

        docs/results/calibration.md has the seconds that it takes.

        Args:
            weights: of the model.
            coded: most of them have 4-bit codes in the source, so that little is left to fit.
        """
        windows = round(_bounded(_WRITTEN / weights / WINDOW, _LEAST_WINDOWS, 6 if coded else 9))
        small = weights <= _SMALL
        return cls(
            windows=windows,
            long=min(windows, _LONG_WINDOWS) * WINDOW,
            writes_cheaply=coded,
            plain_grid=coded and not small,
            fitted=4 if coded else 6,
            most_channels=2560,
            head_windows=1,
            searched_windows=2,
            trial_tokens=WINDOW * 3 // 4 if small else WINDOW // 2,
            scored_windows=8,
            scored_tokens=64 if small else 32,
            long_tokens=WINDOW - 1 if small else 127,
            kv_steps=256 if small else 64,
        )


def _bounded(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
