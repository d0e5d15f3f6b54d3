"""A source's own 4-bit codes in the bundle's terms, where section 2 of docs/bundle.md can hold them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from sol_rt.bundle.config import BLOCK
from sol_rt.export.quantize.gptq import HessianFactor
from sol_rt.export.quantize.nested import ByteArray, FloatArray, Nested, quantize_matrix

# An offset in sixteenths of a step is off by half of one at most; float16 steps add a little at the outermost codes.
_LARGEST_ERROR = np.float32(0.6)
_FARTHEST = 1  # sixteenths that a zero point may go from the nearest one to make up for others


@dataclass(frozen=True)
class SourceCodes:
    """Rows of a matrix as the source stores them, blocks of 32 input channels: W = scale / 16 * (16 q - zero).

    Attributes:
        q: codes 0 … 15, uint8 [n, K].
        scale: 4-bit steps, never negative, float16 [n, K / 32].
        zero: zero points in sixteenths of a step, uint8 [n, K / 32].
        held: blocks for which all this is true, bool [n, K / 32]; the others' values mean nothing.
    """

    q: ByteArray
    scale: npt.NDArray[np.float16]
    zero: ByteArray
    held: npt.NDArray[np.bool_]


def source_codes(q: ByteArray, step: FloatArray, offset: FloatArray) -> SourceCodes:
    """Codes of weights step * q + offset, with the blocks marked that the format can hold.

    A block is held where its weights come back to within 0.6 sixteenths of a step: not where all of them are far from
    zero on one side, where the step is no float16 number, or where a number is not finite.

    Args:
        q: codes 0 … 15, uint8 [n, KB, 32].
        step: of either sign, float32 [n, KB].
        offset: float32 [n, KB].
    """
    # a negative step counts the other way: step * q + offset = -step * (15 - q) + (15 * step + offset)
    negative = step < 0
    q = np.where(negative[..., None], 15 - q, q).astype(np.uint8)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        offset = np.where(negative, 15 * step + offset, offset)
        step = np.abs(step)
        scale = step.astype(np.float16)
        exact_zero = np.where(step > 0, offset * np.float32(-16) / step, np.where(offset == 0, 0, np.nan))
        zero = np.rint(exact_zero)
        held = (zero >= 0) & (zero <= 255) & np.isfinite(scale)
        zero = np.where(held, zero, 0)
        # largest error of a block in sixteenths of its step: linear in q, so at q = 0 or at q = 15
        drift = np.where(step > 0, scale.astype(np.float32) / step, np.float32(1))
        for code in (0, 15):
            held &= np.abs(drift * (16 * code - zero) - (16 * code - exact_zero)) <= _LARGEST_ERROR
    return SourceCodes(q.reshape(len(q), -1), scale, zero.astype(np.uint8), held)


def choose_zeros(own: SourceCodes, w: FloatArray, metric: HessianFactor) -> SourceCodes:
    """Rounds zero points anew, each making up for those before it.

    A rounded zero point shifts a whole block by up to half a sixteenth of a step, and what a row loses by its shifts e
    is e^T S e, S being the second moment of the sums of the inputs over blocks: compensation of one number a block.

    Args:
        own: the source's codes.
        w: the same weights, float32 [n, K].
        metric: of the matrix's inputs.
    """
    n, blocks = own.scale.shape
    sums = torch.zeros(blocks, metric.factor.shape[1]).index_add_(0, metric.order // BLOCK, metric.factor)
    of_blocks = HessianFactor.of(sums @ sums.T)
    # in sixteenths of a step; where nothing is held any number will do, and there is no error
    sixteenth = torch.from_numpy(np.where(own.held, own.scale, np.float16(0)).astype(np.float32).T.copy()) / 16
    inverse = torch.where(sixteenth > 0, 1 / sixteenth, 0)
    codes = torch.from_numpy(own.q.reshape(n, blocks, BLOCK)).sum(2, dtype=torch.float32).T * (16 / BLOCK)
    means = torch.from_numpy(np.where(own.held, w.reshape(n, blocks, BLOCK).mean(2), 0).T.copy())
    exact = codes - means * inverse
    zero = torch.from_numpy(own.zero.T.astype(np.float32))
    errors = torch.zeros(blocks, n)
    for place, block in enumerate(of_blocks.order.tolist()):
        owed = of_blocks.factor[:place, place] @ errors[:place] / of_blocks.factor[place, place]
        wanted = (exact[block] + owed * inverse[block]).round_()
        nearest = exact[block].round()
        wanted = torch.minimum(torch.maximum(wanted, nearest - _FARTHEST), nearest + _FARTHEST).clamp_(0, 255)
        zero[block] = torch.where(sixteenth[block] > 0, wanted, zero[block])
        errors[place] = (exact[block] - zero[block]) * sixteenth[block]
    return replace(own, zero=np.ascontiguousarray(zero.T.to(torch.uint8).numpy()))


def nest(own: SourceCodes, w: FloatArray, planes: int, name: str = "matrix", six_bits: bool = True) -> Nested:
    """A nested matrix whose 4-bit level is the source's own, but for blocks that are not held.

    The residual planes code what rounding the zero point leaves, which is less than their step, and stay at the middle
    of the code: level 8 is then as good as level 4, and level 6, which has no value there, is 1.5 sixteenths of a step
    off.

    Args:
        own: the source's codes.
        w: the same weights, float32 [N, K].
        planes, name, six_bits: as of `quantize_matrix`, which does the blocks that are not held.

    Raises:
        CheckpointError: as `quantize_matrix`.
    """
    rows, channels = w.shape
    blocks = w.reshape(rows, channels // BLOCK, BLOCK)
    step = own.scale.astype(np.float32)
    inverse = np.divide(np.float32(16), step, out=np.zeros_like(step), where=own.held & (step > 0))
    position = np.where(own.held[..., None], blocks, 0)
    position *= inverse[..., None]
    position += own.zero.astype(np.float32)[..., None] + np.float32(8)
    np.rint(position, out=position)
    least = (own.q.reshape(blocks.shape) << 4).astype(np.float32)
    np.clip(position, least, least + 15, out=position)
    code, scale, zero = position.astype(np.uint8), own.scale.copy(), own.zero.copy()
    if not own.held.all():
        rest = ~own.held
        plain = quantize_matrix(blocks[rest], planes, name, six_bits)
        code[rest] = plain.codes
        scale[rest], zero[rest] = plain.scale[0], plain.zero[0]
    return Nested.of_codes(code.reshape(rows, channels), planes, scale.T, zero.T)
