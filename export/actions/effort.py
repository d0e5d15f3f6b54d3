"""How much work a calibration is: numbers of tokens, from the model's size alone and never from a clock.

The same checkpoint so gives the same bundle on a busy machine and on an idle one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sol_rt.export.actions.calibration_text import LONG


@dataclass(frozen=True)
class Effort:
    """Numbers of tokens and windows.

    Attributes:
        windows: windows of the calibration text, those of the long stretch included.
        long: tokens of the long stretch.
        hessian_tokens: most tokens of fitted windows that GPTQ's Hessians are measured on.
        scored_windows: most held-out windows on which variants are scored.
        long_tokens: most tokens scored after each context of the long stretch.
        kv_steps: the same for actions of KV density below 1, which run step by step.
    """

    windows: int = 32
    long: int = LONG
    hessian_tokens: int = 1 << 14
    scored_windows: int = 8
    long_tokens: int = 511
    kv_steps: int = 128


FULL = Effort()
