"""The inner loop of the search for steps and zero points, compiled by numba, with numpy's results bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from sol_rt.export.quantize.compiled import compiled_exactly, inlined_exactly
from sol_rt.export.quantize.gptq_kernels import LANES

_ZERO, _FIFTEEN, _SIXTEEN, _SIXTEENTH = (np.float32(value) for value in (0, 15, 16, 1 / 16))
_LEAST, _MOST = np.float32(-8.6), np.float32(247.6)  # codes of the 8-bit level reach from -8.5 to 247.5
_SCALE = np.float32(2**12)  # so that squares of tiny steps stay within float32's range
_SHIFT, _INVERSE, _END = LANES, 2 * LANES, 3 * LANES  # rows of the scratch memory
_index = np.uintp  # an unsigned index spares the check whether it counts from the end


@compiled_exactly
def offer(
    w: Any,
    weights: Any,
    low: Any,
    high: Any,
    step: Any,
    inverse: Any,
    zero: Any,
    covering: Any,
    best: Any,
    best_step: Any,
    best_zero: Any,
) -> None:
    """Takes a step and a zero point for each block where they have a lower squared error than the best so far.

    Args:
        w: weights of B blocks, float32 [C, B].
        weights: of the squared errors, float32 [C, B]; with fewer channels, all count alike.
        low, high: the range of each block, float32 [B].
        step, inverse: the step and 1 / step (0 where the step is 0), float32 [B].
        zero: zero points in sixteenths of a step, float32 [B].
        covering: only grids whose 8-bit level reaches both ends of the range, to within 0.1 of its step, are taken.
        best, best_step, best_zero: the best so far, float32 [B]; updated.
    """
    s = np.empty(_END, np.float32)
    for first in range(0, w.shape[1], LANES):
        if first + LANES <= w.shape[1]:
            _add_errors(s, w, weights, inverse, zero, first, LANES)
        else:
            _add_errors(s, w, weights, inverse, zero, first, w.shape[1] - first)
        for lane in range(min(LANES, w.shape[1] - first)):
            at = _index(first) + _index(lane)
            size = step[at] * _SCALE
            error = s[lane] * (size * size)
            unit = inverse[at] * _SIXTEEN
            covers = low[at] * unit + zero[at] >= _LEAST and high[at] * unit + zero[at] <= _MOST
            if error < best[at] and (covers or not covering):
                best[at], best_step[at], best_zero[at] = error, step[at], zero[at]


@inlined_exactly
def _add_errors(s: Any, w: Any, weights: Any, inverse: Any, zero: Any, first: Any, lanes: Any) -> None:
    """Puts the sums of `lanes` blocks' squared errors, in steps, into the first row of the scratch memory."""
    for lane in range(lanes):
        s[lane] = _ZERO
        s[_SHIFT + lane] = zero[_index(first) + _index(lane)] * _SIXTEENTH
        s[_INVERSE + lane] = inverse[_index(first) + _index(lane)]
    if len(weights):
        for channel in range(len(w)):
            for lane in range(lanes):
                at = _index(first) + _index(lane)
                error = _error(w[_index(channel), at] * s[_INVERSE + lane] + s[_SHIFT + lane])
                s[lane] += error * weights[_index(channel), at]
    else:
        for channel in range(len(w)):
            for lane in range(lanes):
                at = _index(first) + _index(lane)
                s[lane] += _error(w[_index(channel), at] * s[_INVERSE + lane] + s[_SHIFT + lane])


@inlined_exactly
def _error(exact: Any) -> Any:
    """The squared error of the nearest code, 0 … 15."""
    code = np.rint(exact)
    code = code if code > _ZERO else _ZERO
    code = code if code < _FIFTEEN else _FIFTEEN
    return (exact - code) * (exact - code)
