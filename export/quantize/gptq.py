"""GPTQ for nested codes: input channels are quantized in turn, and each makes up for the errors of those before it.

W [N, K] are the weights, Q [N, K] the quantized ones, x [K] an input. The expected squared error of the output x W^T is

    tr((W - Q) H (W - Q)^T),   H = E[x x^T]  [K, K], the Hessian of that error up to a factor of 2.

With H = R R^T, R [K, K] upper triangular, it equals the sum over channels j of R[j, j]^2 |t[:, j] - Q[:, j]|^2, where

    t[:, j] = W[:, j] + sum over i < j of (W[:, i] - Q[:, i]) R[i, j] / R[j, j].

So the best code for channel j, given the codes of the channels before it, is the one nearest t[:, j] instead of
W[:, j]. This is GPTQ (Frantar et al. 2022, arXiv 2210.17323), written as Babai's nearest plane algorithm
(arXiv 2507.18553).

One nested code serves the levels of 4, 6 and 8 bits, and their best codes differ. A code that is best at 4 bits may
leave the 8-bit level a residual that its planes cannot hold. So each level has a target t of its own, and the code
chosen is the one with the least weighted sum of the levels' squared errors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sol_rt.bundle.config import BLOCK
from sol_rt.export.quantize import gptq_kernels as kernels
from sol_rt.export.quantize.gptq_kernels import LANES
from sol_rt.export.quantize.nested import LEVEL_OFFSETS, ByteArray, FloatArray, Nested

LEVELS = (4, 6, 8)

# Weights of the levels' squared errors in the sum that a code minimises. With these the 8-bit level is no further from
# the source than plain rounding. Equal weights would take another fifth off the error of level 4, but treble that of 8.
_LEVEL_WEIGHTS = {4: 1.0, 6: 2.0, 8: 16.0}
_DAMPING = 0.01  # times the mean of H's diagonal, added to the diagonal

# The same for each channel per token that H was estimated from: with few tokens, most of what channels seem to have in
# common is chance. For 1,536 channels and 2,000 tokens, GPTQ without this left level 8 two thirds more error on other
# text than plain rounding; with it a tenth less.
_DAMPING_OF_A_SAMPLE = 0.5

_ROWS_AT_ONCE = 256
CHANNELS_AT_ONCE = 32
WIDE_PANEL = 256  # a product for that many channels runs at up to twice the speed of one for CHANNELS_AT_ONCE


@dataclass(frozen=True)
class HessianFactor:
    """The factorised Hessian of a matrix with K input channels.

    Attributes:
        order: the order in which channels are quantized, int64 [K]. The largest diagonal entry comes first, because few
            channels are left to make up for the errors of the last ones.
        factor: R of H = R R^T, upper triangular, channels in that order, float32 [K, K].
        importance: H's diagonal in the matrix's own order, float32 [K]: the weight of a channel's squared error.
        panel: channels for which the errors of all earlier panels are summed at once; it changes the order of a sum.
    """

    order: Tensor
    factor: Tensor
    importance: FloatArray
    panel: int = CHANNELS_AT_ONCE

    @classmethod
    def of(cls, hessian: Tensor, tokens: float = math.inf, panel: int = CHANNELS_AT_ONCE) -> HessianFactor:
        """Factorises H, float32 [K, K], finite, estimated from `tokens` inputs.

        Damping grows until H is positive definite in float32.
        """
        diagonal = hessian.diagonal()
        mean = max(float(diagonal.mean()), torch.finfo(torch.float32).tiny)
        order = torch.argsort(diagonal, descending=True, stable=True)
        # reversing both axes of the lower Cholesky factor of the reversed matrix gives the upper triangular R
        backwards = order.flip(0)
        reversed_hessian = hessian[backwards][:, backwards]
        damping = _DAMPING + _DAMPING_OF_A_SAMPLE * len(hessian) / tokens
        while True:
            reversed_hessian.diagonal().add_(damping * mean)
            lower, failed = torch.linalg.cholesky_ex(reversed_hessian)
            if not failed:
                return cls(order, lower.flip(0, 1), diagonal.numpy().copy(), panel)
            damping *= 10

    @property
    def conditional(self) -> FloatArray:
        """Weight of a channel's squared error after the later channels made up for it: the squared diagonal of the
        factor. float32 [K], in the matrix's own order.
        """
        found = torch.empty(len(self.order))
        found[self.order] = self.factor.diagonal().square()
        return found.numpy()

    @cached_property
    def of_blocks(self) -> HessianFactor:
        """The factorised second moment of the inputs summed over each block, S [KB, KB]: what shifting all weights of
        a block costs.
        """
        with torch.inference_mode():
            sums = torch.zeros(len(self.order) // BLOCK, len(self.order))
            sums.index_add_(0, self.order // BLOCK, self.factor)
            return HessianFactor.of(sums @ sums.T)


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
    if fixed is None:
        fixed = np.zeros((rows, channels // BLOCK), np.bool_)
    if fixed.all() and nested.planes == 0:
        return nested
    codes = np.empty((rows, channels), np.uint8)
    # where level 6 is not read, outputs whose 4-bit codes all stay have level 8 alone to be fitted
    keeps_base = fixed.all(axis=1) & (6 not in levels)
    for kept in (False, True):
        group = np.flatnonzero(keeps_base == kept)
        for start in range(0, len(group), _ROWS_AT_ONCE):
            part = _Outputs(w, nested, fixed, group[start : start + _ROWS_AT_ONCE])
            codes[part.rows] = part.residual_codes(hessian) if kept else part.nested_codes(hessian, levels)
    return Nested.of_codes(codes, nested.planes, nested.scale, nested.zero)


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as torch has, in each of which torch's operations run in that thread alone.

    The last bits of an operation may depend on how many threads share it, those of operations in this pool do not.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # the linear algebra library counts its threads for the whole process
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Outputs:
    """Outputs `rows` of a matrix. All arrays but `rows` are of the whole matrix."""

    w: FloatArray
    nested: Nested
    fixed: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]

    def nested_codes(self, hessian: HessianFactor, levels: Collection[int]) -> ByteArray:
        """code8 by GPTQ for all levels together, uint8 [rows, K]."""
        weights = np.array([_LEVEL_WEIGHTS[level] * (level in levels) for level in LEVELS], np.float32)
        offsets = np.array([LEVEL_OFFSETS[level] for level in LEVELS], np.float32)
        return self._codes(kernels.nested_codes, hessian, len(LEVELS), weights, offsets)

    def residual_codes(self, hessian: HessianFactor) -> ByteArray:
        """code8 by GPTQ for level 8 alone, uint8 [rows, K]. All 4-bit codes stay."""
        return self._codes(kernels.residual_codes, hessian, 1, np.float32(LEVEL_OFFSETS[8]))

    def _codes(self, kernel: Any, hessian: HessianFactor, levels: int, *settings: Any) -> ByteArray:
        order, rows = hessian.order.numpy(), self.rows
        stays = self.fixed[rows][:, order // BLOCK]
        base = _columns(np.where(stays, np.float32(16) * self.nested.q[rows][:, order], np.float32(-1)))
        zero = _columns(self.nested.zero[:, rows].T)
        unit = _columns(self.nested.scale[:, rows].T) / np.float32(16)
        inverse = np.divide(np.float32(1), unit, out=np.zeros_like(unit), where=unit > 0)
        grid = np.stack([unit, inverse, zero], axis=1)
        return gptq_passes(self.w[rows], hessian, kernel, levels, grid, base, *settings)


def gptq_passes(w: FloatArray, hessian: HessianFactor, kernel: Any, levels: int, *settings: Any) -> ByteArray:
    """Runs a kernel of GPTQ over all input channels, a few at a time: the codes of n outputs, uint8 [n, K].

    Args:
        w: weights, float32 [n, K].
        hessian: of these input channels.
        kernel: called as described in gptq_kernels.py, with `settings` after the arguments that all kernels take.
        levels: whose errors the kernel keeps.
    """
    order, factor = hessian.order.numpy(), hessian.factor
    blocks, columns = order // BLOCK, _columns(w[:, order])
    errors, codes = torch.empty(levels, *columns.shape), np.empty_like(columns)
    for begin in range(0, len(order), hessian.panel):
        panel = slice(begin, begin + hessian.panel)
        of_earlier = torch.matmul(factor[:begin, panel].T, errors[:, :begin])
        for start in range(begin, min(panel.stop, len(order)), CHANNELS_AT_ONCE):
            part = slice(start, start + CHANNELS_AT_ONCE)
            owed = of_earlier[:, start - begin : part.stop - begin].contiguous()
            if start > begin:
                for of_level, level_errors in zip(owed, errors, strict=True):
                    of_level.addmm_(factor[begin:start, part].T, level_errors[begin:start])
            own = factor[part, part].contiguous()
            kernel(columns, owed.numpy(), errors.numpy(), own.numpy(), start, blocks[part], codes, *settings)
    found = np.empty((len(w), len(order)), np.uint8)
    found[:, order] = codes[:, : len(w)].T
    return found


def _columns(values: npt.NDArray[Any]) -> FloatArray:
    """`values` [n, C] transposed, with zeros for outputs up to a multiple of LANES: float32 [C, R]."""
    rows, columns = values.shape
    padded = np.zeros((columns, -(-rows // LANES) * LANES), np.float32)
    padded[:, :rows] = values.T
    return padded
