"""Error compensation: codes of a matrix chosen one input channel after another, each making up for those before it.

What a layer's output loses by quantization is tr((W - Q) H (W - Q)^T), H = E[x x^T] being the second moment of the
matrix's inputs. With H = R R^T, R upper triangular, that is the sum over channels j of R[j, j]^2 (t[j] - Q[j])^2, where

    t[j] = W[j] + sum over i < j of (W[i] - Q[i]) R[i, j] / R[j, j],

so that the code nearest t[j], not W[j], is the best one given its predecessors (GPTQ, arXiv:2210.17323, in the form of
Babai's nearest plane, arXiv:2507.18553).

Here one code serves several levels, and levels want different ones: what makes up best at 4 bits may leave the 8-bit
level a residual it has no room for. Each level therefore has a target t of its own, and the code is the one with the
least weighted sum of the levels' squared errors.
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

# Of a level's squared error, in the sum that a code minimises. With these the 8-bit level is no further from the source
# than without compensation. Equal weights take another fifth off the error of level 4 and treble that of level 8.
_LEVEL_WEIGHTS = {4: 1.0, 6: 2.0, 8: 16.0}
_DAMPING = 0.01  # of the mean diagonal, added to the diagonal of H: a sample's moment is not quite the population's
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class HessianFactor:
    """How much errors at a matrix's inputs weigh, alone and together.

    Attributes:
        order: channels, most weighty first, int64 [K]: those that come last have few left to make up for them.
        factor: R of H = R R^T, channels in that order, upper triangular, float32 [K, K].
        importance: what an error alone weighs, H's diagonal, float32 [K].
    """

    order: Tensor
    factor: Tensor
    importance: FloatArray

    @classmethod
    def of(cls, moment: Tensor) -> HessianFactor:
        """Of a second moment H, float32 [K, K], finite."""
        diagonal = moment.diagonal()
        mean = max(float(diagonal.mean()), torch.finfo(torch.float32).tiny)
        order = torch.argsort(diagonal, descending=True, stable=True)
        # R is upper triangular: Cholesky's lower factor of the matrix read from its end
        backwards = order.flip(0)
        reversed_moment = moment[backwards][:, backwards]
        damping = _DAMPING
        while True:
            reversed_moment.diagonal().add_(damping * mean)
            lower, failed = torch.linalg.cholesky_ex(reversed_moment)
            if not failed:
                return cls(order, lower.flip(0, 1), diagonal.numpy().copy())
            damping *= 10


def compensate(
    w: FloatArray,
    nested: Nested,
    metric: HessianFactor,
    levels: Collection[int],
    kept: npt.NDArray[np.bool_] | None = None,
) -> Nested:
    """Chooses the codes of a quantized matrix anew, on its own grid.

    Args:
        w: weights, float32 [N, K].
        nested: the matrix quantized.
        metric: of the matrix's inputs.
        levels: those that are going to be read, of 4, 6 and 8.
        kept: blocks whose 4-bit codes stay, bool [N, K / 32]; of them only the residual planes are chosen.
    """
    rows, channels = w.shape
    codes = np.empty((rows, channels), np.uint8)

    def work(part: slice) -> None:
        base = None if kept is None else _Base(_columns(nested.q[part], metric), torch.from_numpy(kept[part].T.copy()))
        found = _codes(
            _columns(w[part], metric),
            torch.from_numpy(nested.scale[:, part].astype(np.float32)),
            torch.from_numpy(nested.zero[:, part].astype(np.float32)),
            metric,
            levels,
            base,
        )
        codes[part] = found.T.numpy()

    # thousands of small steps: threads that meet after each of them would mostly wait
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
class _Base:
    """4-bit codes, float32 [K, N], channels in the metric's order, and the blocks where they stay, bool [KB, N]."""

    codes: Tensor
    kept: Tensor


def _columns(values: npt.NDArray[Any], metric: HessianFactor) -> Tensor:
    """float32 [K, N] of [N, K]: a channel's values of all outputs together, channels in the metric's order."""
    return torch.from_numpy(values).T[metric.order].float().contiguous()


def _codes(
    w: Tensor, scale: Tensor, zero: Tensor, metric: HessianFactor, levels: Collection[int], base: _Base | None
) -> Tensor:
    """Codes uint8 [K, N] in the matrix's order; of weights [K, N] in the metric's, scale and zero [KB, N]."""
    factor, (channels, rows) = metric.factor, w.shape
    sixteenth = scale / 16  # codes count these
    inverse = torch.where(sixteenth > 0, 1 / sixteenth, 0)
    weights = torch.tensor([_LEVEL_WEIGHTS[level] * (level in levels) for level in LEVELS]).view(3, 1)
    offsets = torch.tensor([LEVEL_OFFSETS[level] for level in LEVELS]).view(3, 1)
    blocks = (metric.order // BLOCK).tolist()
    errors = torch.empty(3, channels, rows)  # W - Q of each level
    codes = torch.empty(channels, rows, dtype=torch.uint8)
    for start in range(0, channels, BLOCK):
        stop = min(start + BLOCK, channels)
        owed = torch.matmul(factor[:start, start:stop].T, errors[:, :start])  # [3, stop - start, N]
        for j in range(start, stop):
            block = blocks[j]
            target = w[j] + owed[:, j - start] / factor[j, j]
            position = target * inverse[block] + zero[block] + offsets
            code = _nearest(position, weights, None if base is None else (base.codes[j], base.kept[block]))
            values = torch.stack([(code / width).floor() * width for width in (16, 4, 1)])
            errors[:, j] = w[j] - (values - offsets - zero[block]) * sixteenth[block]
            codes[metric.order[j]] = code.to(torch.uint8)
            owed[:, j + 1 - start :] += factor[j, j + 1 : stop].view(1, -1, 1) * errors[:, j : j + 1]
    return codes


def _nearest(position: Tensor, weights: Tensor, base: tuple[Tensor, Tensor] | None) -> Tensor:
    """The code with the least weighted error.

    Args:
        position: the levels' targets as real codes: float32 [3, N].
        weights: of the levels, float32 [3, 1].
        base: 4-bit codes float32 [N], and where they stay, bool [N].

    Returns:
        Whole numbers 0 … 255, float32 [N].
    """
    four, six, eight = position
    # in question are the cell that the narrow level wants and the one that the wide level wants; in it, likewise
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
