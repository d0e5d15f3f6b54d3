"""Keeps source codes, the 4-bit codes of a source that is itself quantized, where the bundle can represent them.

The source stores W = step * q + offset for each block of 32 input channels. The bundle's level 4 is W = s / 16 * (16 q
- z) (section 2 of docs/reference/bundle-details.md). So q stays, s is the step in float16, and z = -16 offset / step is
rounded to an integer from 0 to 255. Rounding z shifts a block by up to s / 32; the residual planes make up for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.config import BLOCK
from sol_rt.export.quantize.compiled import compiled
from sol_rt.export.quantize.gptq import HessianFactor
from sol_rt.export.quantize.nested import ByteArray, FloatArray, Nested, quantize_matrix

# In sixteenths of a step. Rounding the zero point gives an error of at most 0.5; rounding the step to float16 adds a
# little at the outermost codes.
_LARGEST_ERROR = np.float32(0.6)
# how far a zero point may move from the nearest one to make up for others, in sixteenths of a step
_FARTHEST = np.float32(1)


@dataclass(frozen=True)
class SourceCodes:
    """n rows of a matrix in the source's own codes: W = scale / 16 * (16 q - zero), in blocks of 32 input channels.

    Attributes:
        q: codes 0 … 15, uint8 [n, K].
        scale: 4-bit steps, never negative, float16 [n, K / 32].
        zero: zero points in sixteenths of a step, uint8 [n, K / 32].
        representable: blocks for which the formula holds, bool [n, K / 32]. Values of the other blocks mean nothing.
    """

    q: ByteArray
    scale: npt.NDArray[np.float16]
    zero: ByteArray
    representable: npt.NDArray[np.bool_]

    def of(self, channels: slice) -> SourceCodes:
        """The codes of some input channels, whole blocks of them."""
        blocks = slice(channels.start // BLOCK, channels.stop // BLOCK)
        return SourceCodes(
            self.q[:, channels], self.scale[:, blocks], self.zero[:, blocks], self.representable[:, blocks]
        )

    def times(self, factor: npt.ArrayLike) -> SourceCodes:
        """The codes of the weights times a positive factor, a number or float32 [n, 1].

        Scales are rounded to float16 once more. Blocks whose scale leaves its range are no longer representable.
        """
        scale = (self.scale.astype(np.float32) * np.asarray(factor, np.float32)).astype(np.float16)
        fits = np.isfinite(scale) & (scale >= np.finfo(np.float16).tiny)
        return replace(self, scale=scale, representable=self.representable & fits)


def source_codes(q: ByteArray, step: FloatArray, offset: FloatArray) -> SourceCodes:
    """Converts a source's codes, weights step * q + offset, and marks the blocks that the bundle's format can
    represent.

    In a representable block all weights come back to within 0.6 sixteenths of a step. A block is not representable in
    three cases: all its weights lie far from 0 on one side, its step does not fit float16, or a number is not finite.

    Args:
        q: codes 0 … 15, uint8 [n, KB, 32].
        step: float32 [n, KB], of either sign.
        offset: float32 [n, KB].
    """
    # a negative step is turned round: step * q + offset = -step * (15 - q) + (15 * step + offset)
    negative = step < 0
    q = np.where(negative[..., None], 15 - q, q).astype(np.uint8)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        offset = np.where(negative, 15 * step + offset, offset)
        step = np.abs(step)
        scale = step.astype(np.float16)
        exact_zero = np.where(step > 0, offset * np.float32(-16) / step, np.where(offset == 0, 0, np.nan))
        zero = np.rint(exact_zero)
        representable = (zero >= 0) & (zero <= 255) & np.isfinite(scale)
        zero = np.where(representable, zero, 0)
        # a block's error is linear in q, so it is largest at q = 0 or at q = 15
        drift = np.where(step > 0, scale.astype(np.float32) / step, np.float32(1))
        for code in (0, 15):
            representable &= np.abs(drift * (16 * code - zero) - (16 * code - exact_zero)) <= _LARGEST_ERROR
    return SourceCodes(q.reshape(len(q), -1), scale, zero.astype(np.uint8), representable)


def choose_zeros(source: SourceCodes, w: FloatArray, hessian: HessianFactor) -> SourceCodes:
    """Rounds the zero points again, by GPTQ over blocks: each makes up for the errors of those before it.

    A rounded zero point shifts all weights of its block by up to 1/32 of a step. The shifts e [KB] of a row cost e^T S
    e of squared output error, where S [KB, KB] is the second moment of the inputs summed over each block. So this is
    GPTQ with one number for each block.

    Args:
        source: the source's codes of n rows.
        w: the same weights, float32 [n, K].
        hessian: of the matrix's inputs.
    """
    of_blocks = hessian.of_blocks
    zero = source.zero.copy()
    # blocks that are not representable get a step of 0: any zero point will do there, and none has an error
    step = np.where(source.representable, source.scale, np.float16(0)).astype(np.float32)
    order, factor = of_blocks.order.numpy(), of_blocks.factor.contiguous().numpy()
    _choose_zeros(w, np.ascontiguousarray(source.q), step / np.float32(16), order, factor, zero)
    return replace(source, zero=zero)


@compiled
def _choose_zeros(w: Any, q: Any, unit: Any, order: Any, factor: Any, zero: Any) -> None:
    """Writes the zero points into `zero`, uint8 [n, KB].

    w is float32 [n, K], q uint8 [n, K], unit float32 [n, KB]: a sixteenth of the step. Order and factor are those of
    the blocks' Hessian.
    """
    blocks = len(order)
    errors = np.zeros(blocks, np.float32)
    for row in range(len(w)):
        for place in range(blocks):
            block = order[place]
            step = unit[row, block]
            errors[place] = 0
            if step == 0:
                continue
            codes, total = 0, np.float32(0)
            for channel in range(BLOCK * block, BLOCK * block + BLOCK):
                codes += q[row, channel]
                total += w[row, channel]
            exact = np.float32(codes) * np.float32(16 / BLOCK) - total * np.float32(1 / BLOCK) / step
            owed = np.float32(0)
            for earlier in range(place):
                owed += factor[earlier, place] * errors[earlier]
            nearest = np.rint(exact)
            wanted = np.rint(exact + owed / factor[place, place] / step)
            wanted = min(max(wanted, nearest - _FARTHEST), nearest + _FARTHEST)
            wanted = min(max(wanted, np.float32(0)), np.float32(255))
            zero[row, block] = np.uint8(wanted)
            errors[place] = (exact - wanted) * step


def nest(source: SourceCodes, w: FloatArray, planes: int, name: str = "matrix", six_bits: bool = True) -> Nested:
    """A nested matrix whose 4-bit codes are the source's. Blocks that are not representable are quantized anew.

    The residual planes code what rounding the zero point leaves. That is less than one step of theirs, so residual
    codes stay near the middle. Level 8 is then as good as level 4. Level 6 has no value in the middle and is off by 1.5
    sixteenths of a step.

    Args:
        source: the source's codes.
        w: the same weights, float32 [N, K].
        planes, name, six_bits: arguments of `quantize_matrix`, for the blocks that are not representable.

    Raises:
        CheckpointError: for the reasons of `quantize_matrix`.
    """
    rows, channels = w.shape
    blocks = w.reshape(rows, channels // BLOCK, BLOCK)
    step = source.scale.astype(np.float32)
    inverse = np.divide(np.float32(16), step, out=np.zeros_like(step), where=source.representable & (step > 0))
    position = np.where(source.representable[..., None], blocks, 0)
    position *= inverse[..., None]
    position += source.zero.astype(np.float32)[..., None] + np.float32(8)
    np.rint(position, out=position)
    least = (source.q.reshape(blocks.shape) << 4).astype(np.float32)
    np.clip(position, least, least + 15, out=position)
    code, scale, zero = position.astype(np.uint8), source.scale.copy(), source.zero.copy()
    if not source.representable.all():
        rest = ~source.representable
        plain = quantize_matrix(blocks[rest], planes, name, six_bits)
        code[rest] = plain.codes
        scale[rest], zero[rest] = plain.scale[0], plain.zero[0]
    return Nested.of_codes(code.reshape(rows, channels), planes, scale.T, zero.T)
