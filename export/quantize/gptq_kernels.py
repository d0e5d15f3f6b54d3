"""The inner loops of GPTQ, compiled by numba: they choose the codes of a few channels in turn, for many outputs.

Outputs are independent. The innermost loops run over LANES of them, which the compiler turns into SIMD. Every output is
computed by the same operations, whatever its neighbours and however many threads share the work.

Both kernels take channels start, start + 1, …, start + n - 1 of K, in the Hessian's order, for R outputs:

    w         weights, float32 [K, R]
    owed      sum over channels i < start of (W[:, i] - Q[:, i]) factor[i, j], float32 [levels, n, R]
    errors    W - Q at each level, float32 [levels, K, R]; the rows of these channels are written
    factor    the Hessian's factor between these channels, float32 [n, n]
    start     the first channel
    blocks    the block of each channel, int64 [n]
    codes     code8, float32 [K, R]; the rows of these channels are written
    grid      of each block: code8's unit, 1 / unit (0 where the unit is 0), zero point, float32 [KB, 3, R]
    base      16 q where a 4-bit code q stays, otherwise -1, float32 [K, R]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sol_rt.export.quantize.compiled import compiled, inlined

LANES = 128
"""R is a multiple of this."""

# numba promotes float32 times int to float64, hence constants of this type
_ZERO, _ONE, _THREE, _FOUR, _FIFTEEN, _SIXTEEN = (np.float32(value) for value in (0, 1, 3, 4, 15, 16))
_QUARTER, _SIXTEENTH = np.float32(1 / 4), np.float32(1 / 16)
# places in the scratch memory. One array holds it all: of several, the compiler cannot tell that they do not overlap
_T4, _T6, _T8, _W, _UNIT, _INVERSE, _SHIFT, _BASE, _E4, _E6, _E8, _CODE, _END = (LANES * row for row in range(13))


# An unsigned index spares the check whether it counts from the end, which keeps the compiler from SIMD.
_index = np.uintp


@compiled
def nested_codes(
    w: Any,
    owed: Any,
    errors: Any,
    factor: Any,
    start: Any,
    blocks: Any,
    codes: Any,
    grid: Any,
    base: Any,
    weights: Any,
    offsets: Any,
) -> None:
    """Chooses codes for levels 4, 6 and 8 together: of four candidates, the one of the least weighted error.

    The first two candidates for q are the one nearest level 4's target, and the one that holds level 8's; likewise for
    b, after each q.

    Args:
        w, owed, errors, factor, start, blocks, codes, grid, base: described above.
        weights: of the levels' squared errors, float32 [3].
        offsets: of the levels, float32 [3].
    """
    s = np.empty(_END, np.float32)
    for first in range(0, w.shape[1], LANES):
        for place in range(len(blocks)):
            _load(s, w, grid, base, start + place, blocks[place], first)
            for level in range(3):
                add_earlier(s, owed, errors, factor, start, place, first, level, level)
            for lane in range(LANES):
                weight, unit, inverse, shift = s[_W + lane], s[_UNIT + lane], s[_INVERSE + lane], s[_SHIFT + lane]
                four = s[lane] * inverse + (shift + offsets[0])
                six = s[LANES + lane] * inverse + (shift + offsets[1])
                eight = s[_T8 + lane] * inverse + (shift + offsets[2])
                stays = s[_BASE + lane]
                q = _within(np.rint(four * _SIXTEENTH), _FIFTEEN) * _SIXTEEN
                q = stays if stays >= _ZERO else q
                other = _within(np.floor(np.rint(eight) * _SIXTEENTH), _FIFTEEN) * _SIXTEEN
                other = stays if stays >= _ZERO else other
                code, error = _after(q, six, eight, weights)
                other_code, other_error = _after(other, six, eight, weights)
                error += (four - q) * (four - q) * weights[0]
                other_error += (four - other) * (four - other) * weights[0]
                code = code if error <= other_error else other_code
                read4, read6 = np.floor(code * _SIXTEENTH) * _SIXTEEN, np.floor(code * _QUARTER) * _FOUR
                s[_CODE + lane] = code
                s[_E4 + lane] = weight - (read4 - (shift + offsets[0])) * unit
                s[_E6 + lane] = weight - (read6 - (shift + offsets[1])) * unit
                s[_E8 + lane] = weight - (code - (shift + offsets[2])) * unit
            _store(errors, codes, s, start + place, first, 3)


@compiled
def residual_codes(
    w: Any,
    owed: Any,
    errors: Any,
    factor: Any,
    start: Any,
    blocks: Any,
    codes: Any,
    grid: Any,
    base: Any,
    offset: Any,
) -> None:
    """Chooses codes for level 8 alone, of offset `offset`, where all 4-bit codes stay.

    The arguments are described above; there is one level. A third of the work of `nested_codes`.
    """
    s = np.empty(_END, np.float32)
    for first in range(0, w.shape[1], LANES):
        for place in range(len(blocks)):
            _load(s, w, grid, base, start + place, blocks[place], first)
            add_earlier(s, owed, errors, factor, start, place, first, 0, 2)
            for lane in range(LANES):
                shift, q = s[_SHIFT + lane] + offset, s[_BASE + lane]
                eight = s[_T8 + lane] * s[_INVERSE + lane] + shift
                code = q + _within(np.rint(eight - q), _FIFTEEN)
                s[_CODE + lane] = code
                s[_E8 + lane] = s[_W + lane] - (code - shift) * s[_UNIT + lane]
            _store(errors, codes, s, start + place, first, 1)


@inlined
def _load(s: Any, w: Any, grid: Any, base: Any, channel: Any, block: Any, first: Any) -> None:
    """Copies what belongs to a channel and LANES outputs from `first` into the scratch memory."""
    for lane in range(LANES):
        at = _index(first) + _index(lane)
        s[_W + lane] = w[_index(channel), at]
        s[_BASE + lane] = base[_index(channel), at]
    for row in range(3):
        for lane in range(LANES):
            s[_UNIT + row * LANES + lane] = grid[_index(block), _index(row), _index(first) + _index(lane)]


@inlined
def _store(errors: Any, codes: Any, s: Any, channel: Any, first: Any, levels: Any) -> None:
    """Copies a channel's errors at the last `levels` levels and its codes out of the scratch memory."""
    for level in range(levels):
        for lane in range(LANES):
            at = _index(first) + _index(lane)
            errors[_index(level), _index(channel), at] = s[_CODE + (level - levels) * LANES + lane]
    for lane in range(LANES):
        codes[_index(channel), _index(first) + _index(lane)] = s[_CODE + lane]


@inlined
def add_earlier(
    s: Any, owed: Any, errors: Any, factor: Any, start: Any, place: Any, first: Any, level: Any, row: Any
) -> None:
    """Puts the targets of channel start + place at a level into row `row` of the scratch memory."""
    for lane in range(LANES):
        s[row * LANES + lane] = owed[_index(level), _index(place), _index(first) + _index(lane)]
    for earlier in range(place):
        share = factor[earlier, place]
        for lane in range(LANES):
            at = _index(first) + _index(lane)
            s[row * LANES + lane] += share * errors[_index(level), _index(start + earlier), at]
    reciprocal = _ONE / factor[place, place]
    for lane in range(LANES):
        s[row * LANES + lane] = s[_W + lane] + s[row * LANES + lane] * reciprocal


@inlined
def _after(q: Any, six: Any, eight: Any, weights: Any) -> Any:
    """The better of two codes after 4-bit code q / 16, and its weighted squared error at levels 6 and 8."""
    b = q + _within(np.rint((six - q) * _QUARTER), _THREE) * _FOUR
    other = q + _within(np.floor(np.rint(eight - q) * _QUARTER), _THREE) * _FOUR
    code = b + _within(np.rint(eight - b), _THREE)
    other_code = other + _within(np.rint(eight - other), _THREE)
    error = (six - b) * (six - b) * weights[1] + (eight - code) * (eight - code) * weights[2]
    other_error = (six - other) * (six - other) * weights[1] + (eight - other_code) * (eight - other_code) * weights[2]
    better = error <= other_error
    return (code if better else other_code), (error if better else other_error)


@inlined
def _within(value: Any, most: Any) -> Any:
    """`value` bounded to 0 … `most`."""
    value = value if value > _ZERO else _ZERO
    return value if value < most else most
