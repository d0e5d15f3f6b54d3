"""GPTQ for nested codes: input channels are quantized in turn, and each makes up for the errors of those before it.

W [N, K] are the weights, Q [N, K] the quantized ones, x [K] an input. The expected squared error of the output x W^T is

    tr((W - Q) H (W - Q)^T),   H = E[x x^T]  [K, K], the Hessian of that error up to a factor of 2.

With H = R R^T, R [K, K] upper triangular, it equals the sum over channels j of R[j, j]^2 |t[:, j] - Q[:, j]|^2, where

    t[:, j] = W[:, j] + sum over i < j of (W[:, i] - Q[:, i]) R[i, j] / R[j, j].

So the best code for channel j, given the codes of the channels before it, is the one nearest t[:, j] instead of
W[:, j]. This is GPTQ (Frantar et al. 2022, arXiv 2210.17323), written as Babai's nearest plane algorithm
(arXiv 2507.18553).

One nested code serves the levels of 4, 6 and 8 bits, and their best codes differ: a code that is best at 4 bits may
leave the 8-bit level a residual that its planes cannot hold. So each level has a target t of its own, and the code
chosen is the one with the least weighted sum of the levels' squared errors.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sol_rt.bundle.config import BLOCK
from sol_rt.export.quantize.nested import LEVEL_OFFSETS, FloatArray, Nested

LEVELS = (4, 6, 8)

# Weights of the levels' squared errors in the sum that a code minimises. With these the 8-bit level is no further from
# the source than plain rounding. Equal weights would take another fifth off the error of level 4, but treble that of 8.
_LEVEL_WEIGHTS = {4: 1.0, 6: 2.0, 8: 16.0}
_DAMPING = 0.01  # times the mean of H's diagonal, added to the diagonal: H is estimated from a sample
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class HessianFactor:
    """The factorised Hessian of a matrix with K input channels.

    Attributes:
        order: the order in which channels are quantized, int64 [K]. The largest diagonal entry comes first, because few
            channels are left to make up for the errors of the last ones.
        factor: R of H = R R^T, upper triangular, channels in that order, float32 [K, K].
        importance: H's diagonal in the matrix's own order, float32 [K]: the weight of a channel's squared error.
    """

    order: Tensor
    factor: Tensor
    importance: FloatArray

    @classmethod
    def of(cls, hessian: Tensor) -> HessianFactor:
        """Factorises H, float32 [K, K], finite. Damping grows until H is positive definite in float32."""
        diagonal = hessian.diagonal()
        mean = max(float(diagonal.mean()), torch.finfo(torch.float32).tiny)
        order = torch.argsort(diagonal, descending=True, stable=True)
        # reversing both axes of the lower Cholesky factor of the reversed matrix gives the upper triangular R
        backwards = order.flip(0)
        reversed_hessian = hessian[backwards][:, backwards]
        damping = _DAMPING
        while True:
            reversed_hessian.diagonal().add_(damping * mean)
            lower, failed = torch.linalg.cholesky_ex(reversed_hessian)
            if not failed:
                return cls(order, lower.flip(0, 1), diagonal.numpy().copy())
            damping *= 10


def choose_codes(
    w: FloatArray,
    nested: Nested,
    hessian: HessianFactor,
    levels: Collection[int],
    fixed: npt.NDArray[np.bool_] | None = None,
) -> Nested:
    """Chooses the codes of a quantized matrix again, by GPTQ. Scales and zero points stay.

    Args:
        w: weights, float32 [N, K].
        nested: the same matrix, quantized by rounding.
        hessian: of the matrix's inputs.
        levels: the levels that a graph will read, of 4, 6 and 8.
        fixed: blocks whose 4-bit codes stay, bool [N, K / 32]. In these, only the residual planes are chosen.
    """
    rows, channels = w.shape
    if fixed is not None and fixed.all() and nested.planes == 0:
        return nested
    codes = np.empty((rows, channels), np.uint8)

    def work(part: slice) -> None:
        columns = _columns(w[part], hessian)
        scale, zero = (torch.from_numpy(each[:, part].astype(np.float32)) for each in (nested.scale, nested.zero))
        stay = None if fixed is None else torch.from_numpy(fixed[part].T.copy())
        base = None if stay is None else _FixedBase(_columns(nested.q[part], hessian), stay)
        if base is not None and base.fixed.all() and 6 not in levels:
            found = _residual_codes(columns, scale, zero, hessian, base.codes)
        else:
            found = _codes(columns, scale, zero, hessian, levels, base)
        codes[part] = found.T.numpy()

    # one thread for each part: an update is thousands of small operations, too small to share between threads
    threads = torch.get_num_threads()
    parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, rows, _ROWS_AT_ONCE)]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, parts):
                pass
    finally:
        torch.set_num_threads(threads)
    return Nested.of_codes(codes, nested.planes, nested.scale, nested.zero)


@dataclass(frozen=True)
class _FixedBase:
    """4-bit codes, float32 [K, N], channels in the Hessian's order, and the blocks where they stay, bool [KB, N]."""

    codes: Tensor
    fixed: Tensor


def _columns(values: npt.NDArray[Any], hessian: HessianFactor) -> Tensor:
    """`values` [N, K] transposed to float32 [K, N], with the channels in the Hessian's order."""
    return torch.from_numpy(values).T[hessian.order].float().contiguous()


def _codes(
    w: Tensor, scale: Tensor, zero: Tensor, hessian: HessianFactor, levels: Collection[int], base: _FixedBase | None
) -> Tensor:
    """Runs GPTQ over the channels.

    `w` is float32 [K, N] with channels in the Hessian's order; scale and zero are float32 [KB, N]. Returns code8, uint8
    [K, N], in the matrix's own order.
    """
    factor, (channels, rows) = hessian.factor, w.shape
    sixteenth = scale / 16  # the unit of code8
    inverse = torch.where(sixteenth > 0, 1 / sixteenth, 0)
    weights = torch.tensor([_LEVEL_WEIGHTS[level] * (level in levels) for level in LEVELS]).view(3, 1)
    offsets = torch.tensor([LEVEL_OFFSETS[level] for level in LEVELS]).view(3, 1)
    blocks = (hessian.order // BLOCK).tolist()
    errors = torch.empty(3, channels, rows)  # W - Q at each level
    codes = torch.empty(channels, rows, dtype=torch.uint8)
    for start in range(0, channels, BLOCK):
        stop = min(start + BLOCK, channels)
        # sum over earlier i of (W[i] - Q[i]) R[i, j] for the channels of this part: [3, stop - start, N]
        owed = torch.matmul(factor[:start, start:stop].T, errors[:, :start])
        for j in range(start, stop):
            block = blocks[j]
            target = w[j] + (owed[:, j - start] + factor[start:j, j] @ errors[:, start:j]) / factor[j, j]
            position = target * inverse[block] + zero[block] + offsets
            code = _nearest(position, weights, None if base is None else (base.codes[j], base.fixed[block]))
            values = torch.stack([(code / unit).floor() * unit for unit in (16, 4, 1)])
            errors[:, j] = w[j] - (values - offsets - zero[block]) * sixteenth[block]
            codes[hessian.order[j]] = code.to(torch.uint8)
    return codes


def _residual_codes(w: Tensor, scale: Tensor, zero: Tensor, hessian: HessianFactor, base: Tensor) -> Tensor:
    """Runs GPTQ for level 8 alone, where all 4-bit codes stay: a fraction of the work of `_codes`.

    `base` holds these codes, float32 [K, N] in the Hessian's order. The other arguments and the result are those of
    `_codes`.
    """
    factor, (channels, rows) = hessian.factor, w.shape
    sixteenth = scale / 16
    inverse = torch.where(sixteenth > 0, 1 / sixteenth, 0)
    shift = zero + LEVEL_OFFSETS[8]
    blocks = (hessian.order // BLOCK).tolist()
    errors = torch.empty(channels, rows)  # W - Q
    codes = torch.empty(channels, rows, dtype=torch.uint8)
    for start in range(0, channels, BLOCK):
        stop = min(start + BLOCK, channels)
        owed = factor[:start, start:stop].T @ errors[:start]
        for j in range(start, stop):
            block, least = blocks[j], 16 * base[j]
            target = w[j] + (owed[j - start] + factor[start:j, j] @ errors[start:j]) / factor[j, j]
            code = target.mul_(inverse[block]).add_(shift[block]).round_()
            code = torch.minimum(torch.maximum(code, least), least + 15)
            errors[j] = w[j] - (code - shift[block]) * sixteenth[block]
            codes[hessian.order[j]] = code.to(torch.uint8)
    return codes


def _nearest(position: Tensor, weights: Tensor, base: tuple[Tensor, Tensor] | None) -> Tensor:
    """The code8 with the least weighted sum of the levels' squared errors, for each of N outputs.

    Args:
        position: the targets of levels 4, 6 and 8 as real-valued codes, float32 [3, N].
        weights: of the levels, float32 [3, 1].
        base: 4-bit codes float32 [N], and where they are fixed, bool [N].

    Returns:
        Whole numbers 0 … 255, float32 [N].
    """
    four, six, eight = position
    # two candidates for q: the one nearest level 4's target, and the one that holds level 8's; the same for b
    q = torch.stack([(four / 16).round_(), (eight.round() / 16).floor_()]).clamp_(0, 15)
    if base is not None:
        q = torch.where(base[1], base[0], q)
    q.mul_(16)
    b = torch.stack([((six - q) / 4).round_(), ((eight - q).round_() / 4).floor_()]).clamp_(0, 3).mul_(4)
    inner = b + q
    code = inner + (eight - inner).round_().clamp_(0, 3)
    error = (six - inner).square_().mul_(weights[1]) + (four - q).square_().mul_(weights[0])
    error += (eight - code).square_().mul_(weights[2])
    choice = error.flatten(0, 1).argmin(0, keepdim=True)
    return code.flatten(0, 1).gather(0, choice)[0]
