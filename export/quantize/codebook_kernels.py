"""The inner loops of the 3-bit level, compiled by numba. Like those of GPTQ they run over LANES outputs side by side.

Arrays of these functions: w float32 [K, R], weights of R outputs, a multiple of LANES; tables float32 [4, 8], each
ascending. An entry e of a table stands for the weight a e, a being the block's step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sol_rt.bundle.config import BLOCK
from sol_rt.export.quantize.compiled import compiled, inlined
from sol_rt.export.quantize.gptq_kernels import LANES, add_earlier

_ZERO, _ONE, _HALF, _MOST = (np.float32(value) for value in (0, 1, 0.5, 63))
_TRIALS = 6
_FIRST, _RATIO = np.float32(1.06), np.float32(0.88)
"""Of the steps tried: 1.06 of the one that reaches the block's largest weight, and each 0.88 of the one before."""
_index = np.uintp
_W, _END = 3 * LANES, 6 * LANES  # where `add_earlier` reads the weights


@inlined
def _entry(x: Any, table: Any) -> Any:
    """The entry of an ascending table that is nearest to x."""
    found = table[0]
    for at in range(7):
        found = table[at + 1] if x > (table[at] + table[at + 1]) * _HALF else found
    return found


@compiled
def best_steps(w: Any, h: Any, tables: Any, steps: Any, gains: Any) -> None:
    """Finds the step of the least error for each block, table and output, and its gain over the error of zeros.

    Args:
        w, tables: described above.
        h: weights of the channels' squared errors, float32 [K].
        steps, gains: written, float32 [KB, 4, R].
    """
    s = np.empty(_END, np.float32)
    for block in range(len(w) // BLOCK):
        for first in range(0, w.shape[1], LANES):
            for table in range(4):
                _try_steps(s, w, h, tables[table], block, first)
                for lane in range(LANES):
                    steps[_index(block), _index(table), _index(first) + _index(lane)] = s[3 * LANES + lane]
                    gains[_index(block), _index(table), _index(first) + _index(lane)] = s[4 * LANES + lane]


@inlined
def _try_steps(s: Any, w: Any, h: Any, table: Any, block: Any, first: Any) -> None:
    """Puts the best step of a table for a block of LANES outputs into row 3 of the scratch memory, its gain into 4."""
    low, high = _ONE / table[0], _ONE / table[7]
    for lane in range(LANES):
        s[lane] = _ZERO
        s[3 * LANES + lane] = _ZERO
        s[4 * LANES + lane] = _ZERO
    for channel in range(BLOCK * block, BLOCK * block + BLOCK):
        for lane in range(LANES):
            value = w[_index(channel), _index(first) + _index(lane)]
            reach = max(value * low, value * high)
            s[lane] = max(s[lane], reach)
    factor = _FIRST
    for _ in range(_TRIALS):
        for lane in range(LANES):
            step = s[lane] * factor
            s[5 * LANES + lane] = _ONE / step if step > _ZERO else _ZERO
            s[LANES + lane] = _ZERO
            s[2 * LANES + lane] = _ZERO
        for channel in range(BLOCK * block, BLOCK * block + BLOCK):
            weight = h[channel]
            for lane in range(LANES):
                value = w[_index(channel), _index(first) + _index(lane)]
                entry = _entry(value * s[5 * LANES + lane], table)
                s[LANES + lane] += weight * value * entry
                s[2 * LANES + lane] += weight * entry * entry
        for lane in range(LANES):
            product, square = s[LANES + lane], s[2 * LANES + lane]
            step = product / square if square > _ZERO else _ZERO
            gain = product * step if step > _ZERO else _ZERO
            better = gain > s[4 * LANES + lane]
            s[3 * LANES + lane] = step if better else s[3 * LANES + lane]
            s[4 * LANES + lane] = gain if better else s[4 * LANES + lane]
        factor *= _RATIO


@compiled
def best_multiples(w: Any, h: Any, tables: Any, steps: Any, unit: Any, multiples: Any, chosen: Any) -> None:
    """Finds the table of the least error for each block and output, and the whole multiple of the output's scale.

    Args:
        w, tables: described above.
        h, steps: as in `best_steps`.
        unit: the scale of each output, float32 [R].
        multiples, chosen: written, float32 [KB, R]: m in 0 … 63 and the table.
    """
    s = np.empty(_END, np.float32)
    for block in range(len(w) // BLOCK):
        for first in range(0, w.shape[1], LANES):
            for lane in range(LANES):
                s[lane] = np.float32(np.inf)
                s[LANES + lane] = _ZERO
                s[2 * LANES + lane] = _ZERO
            for table in range(4):
                of_table = tables[table]
                for up in range(2):
                    for lane in range(LANES):
                        at = _index(first) + _index(lane)
                        scale = unit[at]
                        wanted = steps[_index(block), _index(table), at] / scale if scale > _ZERO else _ZERO
                        s[3 * LANES + lane] = min(max(np.floor(wanted) + np.float32(up), _ZERO), _MOST)
                        step = s[3 * LANES + lane] * scale
                        s[5 * LANES + lane] = _ONE / step if step > _ZERO else _ZERO
                        s[4 * LANES + lane] = _ZERO
                    for channel in range(BLOCK * block, BLOCK * block + BLOCK):
                        weight = h[channel]
                        for lane in range(LANES):
                            at = _index(first) + _index(lane)
                            step = s[3 * LANES + lane] * unit[at]
                            value = w[_index(channel), at]
                            entry = _entry(value * s[5 * LANES + lane], of_table)
                            error = value - entry * step
                            s[4 * LANES + lane] += weight * error * error
                    for lane in range(LANES):
                        better = s[4 * LANES + lane] < s[lane]
                        s[lane] = s[4 * LANES + lane] if better else s[lane]
                        s[LANES + lane] = s[3 * LANES + lane] if better else s[LANES + lane]
                        s[2 * LANES + lane] = np.float32(table) if better else s[2 * LANES + lane]
            for lane in range(LANES):
                at = _index(first) + _index(lane)
                multiples[_index(block), at] = s[LANES + lane] if unit[at] > _ZERO else _ZERO
                chosen[_index(block), at] = s[2 * LANES + lane]


@compiled
def sum_by_entry(w: Any, tables: Any, above: Any, below: Any) -> None:
    """The two sums whose quotient is each entry's new place in a round of k-means.

    Args:
        w: blocks, float32 [32, R].
        tables: described above.
        above, below: sums of a w and of a a by table and entry, added to float64 [4, 8].
    """
    ones = np.ones(BLOCK, np.float32)
    s, best, gain = np.empty(_END, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    table_of = np.empty(LANES, np.int64)
    for first in range(0, w.shape[1], LANES):
        gain[:] = _ZERO
        table_of[:] = 0
        for table in range(4):
            _try_steps(s, w, ones, tables[table], 0, first)
            for lane in range(LANES):
                if s[4 * LANES + lane] > gain[lane]:
                    gain[lane], best[lane], table_of[lane] = s[4 * LANES + lane], s[3 * LANES + lane], table
        for lane in range(LANES):
            if gain[lane] <= _ZERO:
                continue
            table, step = table_of[lane], best[lane]
            for channel in range(BLOCK):
                value = w[channel, first + lane]
                code = 0
                for at in range(7):
                    if value / step > (tables[table, at] + tables[table, at + 1]) * _HALF:
                        code = at + 1
                above[table, code] += step * value
                below[table, code] += step * step


@compiled
def table_codes(w: Any, owed: Any, errors: Any, factor: Any, start: Any, blocks: Any, codes: Any, values: Any) -> None:
    """GPTQ on a fixed grid: the codes of a few channels in turn, those nearest to what the channels before them leave.

    Args:
        w, owed, errors, factor, start, blocks, codes: as in gptq_kernels.py, of one level.
        values: what the codes stand for in each block, float32 [KB, 8, R].
    """
    s = np.empty(_END, np.float32)
    for first in range(0, w.shape[1], LANES):
        for place in range(len(blocks)):
            channel, block = start + place, blocks[place]
            for lane in range(LANES):
                s[_W + lane] = w[_index(channel), _index(first) + _index(lane)]
            add_earlier(s, owed, errors, factor, start, place, first, 0, 0)
            _nearest(s, values, block, first)
            for lane in range(LANES):
                at = _index(first) + _index(lane)
                errors[_index(0), _index(channel), at] = s[_W + lane] - s[LANES + lane]
                codes[_index(channel), at] = s[2 * LANES + lane]


@compiled
def nearest_codes(w: Any, values: Any, codes: Any) -> None:
    """The code nearest to each weight: written, float32 [K, R]. `values` are float32 [KB, 8, R]."""
    s = np.empty(_END, np.float32)
    for first in range(0, w.shape[1], LANES):
        for channel in range(len(w)):
            for lane in range(LANES):
                s[lane] = w[_index(channel), _index(first) + _index(lane)]
            _nearest(s, values, channel // BLOCK, first)
            for lane in range(LANES):
                codes[_index(channel), _index(first) + _index(lane)] = s[2 * LANES + lane]


@inlined
def _nearest(s: Any, values: Any, block: Any, first: Any) -> None:
    """Puts the values nearest to row 0 of the scratch memory into row 1, and their codes into row 2."""
    for lane in range(LANES):
        s[LANES + lane] = values[_index(block), _index(0), _index(first) + _index(lane)]
        s[2 * LANES + lane] = _ZERO
        s[4 * LANES + lane] = s[LANES + lane]
    for code in range(1, 8):
        number = np.float32(code)
        for lane in range(LANES):
            value = values[_index(block), _index(code), _index(first) + _index(lane)]
            above = s[lane] > (s[4 * LANES + lane] + value) * _HALF
            s[LANES + lane] = value if above else s[LANES + lane]
            s[2 * LANES + lane] = number if above else s[2 * LANES + lane]
            s[4 * LANES + lane] = value
