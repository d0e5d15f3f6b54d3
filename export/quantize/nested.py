"""Nested quantization: one 8-bit code for each weight, whose leading bits are good 4-bit and 6-bit codes.

The format is section 2 of docs/reference/bundle-details.md. W has N outputs and K input channels, in KB = K / 32
blocks:

    code8 = 16 q + 4 b + c          q in 0..15 (base plane), b and c in 0..3 (residual planes 1 and 2)     uint8 [N, K]
    level 4:  W = s / 16 * (16 q               - z)
    level 6:  W = s / 16 * (16 q + 4 b - 6.5   - z)
    level 8:  W = s / 16 * (16 q + 4 b + c - 8 - z)

All levels share s, the 4-bit step, float16 [KB, N], and z, the zero point in sixteenths of s, uint8 [KB, N].

`quantize_matrix` chooses s and z for each block and output. Together they define a grid of 256 points, s / 16 apart.
The 4-bit level merges them into 16 groups of 16, and a group spans exactly the rounding interval of its 4-bit value.
The search minimises the squared error of the 4-bit level among the grids that cover every weight of the block. The
8-bit level is then as good as an 8-bit quantization on its own: its step is 1/240 to 1/256 of the block's range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.config import BLOCK
from sol_rt.errors import CheckpointError
from sol_rt.export.quantize.nested_kernels import offer as offer_grid

LEVEL_OFFSETS = {4: 0.0, 6: 6.5, 8: 8.0}
"""Constant offset of each level, in sixteenths of a step."""

# Candidates of the search: the block's range in 4-bit steps, and shifts of the grid from the centred one in sixteenths
# of a step. 15 steps put a code on both ends of the range; the 8-bit grid covers 16, half a step beyond the outer
# codes. On Gaussian weights the search lowers the squared error of rounding at 15 steps by a fifth; five times as many
# candidates would gain one percent more.
_COVERING = (
    (15.0, (0.0, -7.0, -3.5, 3.5, 7.0)),
    (15.2, (-5.0, 0.0, 5.0)),
    (15.4, (-4.0, 0.0, 4.0)),
    (15.6, (-3.0, 0.0, 3.0)),
    (15.8, (-1.0, 1.0)),
    (16.0, (0.0,)),
)
# without residual planes the outermost weights may be clipped
_CLIPPING = (*_COVERING, (16.6, (-5.0, 0.0, 5.0)), (17.2, (-8.0, -2.0, 2.0, 8.0)), (18.0, (-8.0, 0.0, 8.0)))

# Weight of the 6-bit level's squared error against the 4-bit level's. On a model with a 4-bit source, 1.5 adds 0.01
# nats to the loss of level 4 and takes 0.12 nats off that of level 6.
_SIX_BIT_WEIGHT = np.float32(1.5)

_BLOCKS_AT_ONCE = 4096  # temporaries of half a megabyte, which stay in the second-level cache
_LARGEST_RANGE = 15 * 65504.0  # 65504 is the largest float16 step
_SMALLEST_STEP = np.float16(2.0**-24)

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Nested:
    """A quantized matrix of N outputs and K input channels, KB = K / 32.

    Attributes:
        q: base codes 0 … 15, uint8 [N, K].
        b: residual codes 0 … 3 of plane 1, uint8 [N, K]; None in a bundle without this plane.
        c: residual codes 0 … 3 of plane 2, uint8 [N, K]; None in a bundle without this plane.
        scale: 4-bit steps, float16 [KB, N].
        zero: zero points in sixteenths of a step, uint8 [KB, N].
    """

    q: ByteArray
    b: ByteArray | None
    c: ByteArray | None
    scale: npt.NDArray[np.float16]
    zero: ByteArray

    @classmethod
    def of_codes(cls, codes: ByteArray, planes: int, scale: npt.NDArray[np.float16], zero: ByteArray) -> Nested:
        """Splits code8, uint8 [N, K], into the base plane and `planes` residual planes.

        `scale` float16 and `zero` uint8 are [KB, N].
        """
        return cls(
            q=np.right_shift(codes, 4, dtype=np.uint8),
            b=np.right_shift(codes, 2, dtype=np.uint8) & np.uint8(3) if planes >= 1 else None,
            c=codes & np.uint8(3) if planes >= 2 else None,
            scale=np.ascontiguousarray(scale),
            zero=np.ascontiguousarray(zero),
        )

    @classmethod
    def joined(cls, parts: Sequence[Nested]) -> Nested:
        """The matrix whose input channels are those of the parts, one after another."""
        return cls(
            q=np.concatenate([part.q for part in parts], axis=1),
            b=None if parts[0].b is None else np.concatenate([part.b for part in parts if part.b is not None], axis=1),
            c=None if parts[0].c is None else np.concatenate([part.c for part in parts if part.c is not None], axis=1),
            scale=np.concatenate([part.scale for part in parts]),
            zero=np.concatenate([part.zero for part in parts]),
        )

    @property
    def planes(self) -> int:
        """The number of residual planes: 0, 1 or 2."""
        return (self.b is not None) + (self.c is not None)

    @property
    def codes(self) -> ByteArray:
        """code8, uint8 [N, K]. Bits of absent planes are 0."""
        codes = np.left_shift(self.q, 4, dtype=np.uint8)
        for plane, shift in ((self.b, 2), (self.c, 0)):
            if plane is not None:
                codes |= np.left_shift(plane, shift, dtype=np.uint8)
        return codes


def quantize_matrix(
    w: FloatArray,
    planes: int,
    name: str = "matrix",
    six_bits: bool = True,
    importance: FloatArray | None = None,
    search: bool = True,
) -> Nested:
    """Quantizes a matrix in float32, some rows at a time. Temporaries take a few megabytes.

    Args:
        w: weights, float32 [N, K], K a multiple of 32.
        planes: number of residual planes: 0 for 4 bits only, 1 for up to 6 bits, 2 for up to 8.
        name: the tensor's name in error messages.
        six_bits: a graph will read the 6-bit level. If `planes` > 0, the zero points then take its error into account.
        importance: weights of the input channels' squared errors, float32 [K], not negative. None: all equal.
        search: whether steps and zero points are searched for the least error. If not, the grid spans the block's
            range, which takes a tenth of the time.

    Raises:
        CheckpointError: a weight is NaN or infinite, a block's range does not fit a float16 step, or K is not a
            multiple of 32.
    """
    rows, channels = w.shape
    if channels % BLOCK:
        raise CheckpointError(f"tensor {name}: got {channels} input channels, expected a multiple of {BLOCK}")
    blocks = channels // BLOCK
    codes = np.empty((rows, blocks, BLOCK), np.uint8)
    scale = np.empty((rows, blocks), np.float16)
    zero = np.empty((rows, blocks), np.uint8)
    weights = None if importance is None else _shares(importance).reshape(blocks, BLOCK).T

    for part in _row_parts(rows, max(1, _BLOCKS_AT_ONCE // blocks)):
        taken = w[part].reshape(-1, BLOCK).T
        block_codes, block_scale, block_zero = _quantize_blocks(
            np.ascontiguousarray(taken, np.float32),
            planes,
            name,
            six_bits,
            search,
            None if weights is None else np.tile(weights, taken.shape[1] // blocks),
        )
        codes[part] = block_codes.T.reshape(-1, blocks, BLOCK)
        scale[part] = block_scale.reshape(-1, blocks)
        zero[part] = block_zero.reshape(-1, blocks)
    return Nested.of_codes(codes.reshape(rows, channels), planes, scale.T, zero.T)


def _row_parts(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _shares(importance: FloatArray) -> FloatArray:
    """`importance` [K] divided by its mean. Products with squared steps then stay within float32's range."""
    mean = importance.mean(dtype=np.float64)
    return (importance / mean).astype(np.float32) if mean > 0 else np.ones_like(importance)


def _quantize_blocks(
    w: FloatArray, planes: int, name: str, six_bits: bool, search: bool, weights: FloatArray | None
) -> tuple[ByteArray, npt.NDArray[np.float16], ByteArray]:
    """Quantizes B blocks, the columns of w float32 [32, B].

    `weights`, float32 [32, B], are the importances of the squared errors. Returns code8 uint8 [32, B], steps float16
    [B] and zero points uint8 [B].
    """
    # the range always includes 0: z, a uint8, cannot place a grid far from 0
    low, high = np.minimum(w.min(axis=0), 0), np.maximum(w.max(axis=0), 0)
    _check(low, high, name)
    step, zero = _search(w, low, high, planes, weights) if search else _spanned(low, high)
    if planes and six_bits:
        zero = _share_shift(w, low, high, step, zero)
    inverse = np.divide(np.float32(16), step, out=np.zeros_like(step), where=step > 0)
    scaled = np.rint(w * inverse)
    scaled += zero + np.float32(8)
    np.clip(scaled, 0, 255, out=scaled)
    return scaled.astype(np.uint8), step.astype(np.float16), zero.astype(np.uint8)


def not_finite(name: str) -> CheckpointError:
    """The error for a tensor that holds NaN or infinite weights."""
    return CheckpointError(f"tensor {name}: got NaN or infinite weights, expected finite ones; it is damaged")


def _check(low: FloatArray, high: FloatArray, name: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        spread = high - low
        if (spread <= _LARGEST_RANGE).all():
            return
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise not_finite(name)
    raise CheckpointError(
        f"tensor {name}: got weights {float(spread.max()):.3g} apart in a block, "
        f"expected at most {_LARGEST_RANGE:.3g}, the largest float16 step"
    )


def _search(
    w: FloatArray, low: FloatArray, high: FloatArray, planes: int, weights: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """The step and the zero point of each block with the least squared error of the 4-bit level.

    Returns two arrays float32 [B], whose values float16 and uint8 hold exactly.
    """
    spread = high - low
    evaluate = _Steps(w, weights)
    importance = w[:0] if weights is None else weights
    best = np.full(spread.shape, np.inf, np.float32)
    best_step, best_zero = np.zeros_like(spread), np.zeros_like(spread)

    def offer(zero: FloatArray) -> None:
        # the first candidate is taken even if its grid does not cover a block
        covering = bool(planes and np.isfinite(best).all())
        grid = (evaluate.step, evaluate.inverse, zero)
        offer_grid(w, importance, low, high, *grid, covering, best, best_step, best_zero)

    for width, shifts in _COVERING if planes else _CLIPPING:
        evaluate.set_step(_float16(spread / np.float32(width), spread / np.float32(max(width, 16.0))))
        # the zero point that puts the middle of the range on the middle of the codes
        centre = np.rint(evaluate.inverse * low * np.float32(-16) + np.float32(8 * (15 - width)))
        for shift in shifts:
            offer(np.clip(centre + np.rint(np.float32(shift)), 0, 255))
    # the least-squares step for these codes gains another percent
    evaluate.set_step(best_step)
    step = evaluate.least_squares_step(best_zero)
    evaluate.set_step(_float16(step, spread / np.float32(16 if planes else 18)))
    offer(best_zero.copy())
    return best_step, best_zero


def _spanned(low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The step and the zero point of a grid that spans each block's range: two arrays like those of `_search`."""
    spread = high - low
    step = _float16(spread / np.float32(15), spread / np.float32(16))
    inverse = np.divide(np.float32(-16), step, out=np.zeros_like(step), where=step > 0)
    return step, np.clip(np.rint(inverse * low), 0, 255)


def _covers(low: FloatArray, high: FloatArray, inverse: FloatArray, zero: FloatArray) -> npt.NDArray[np.bool_]:
    """True if the 8-bit grid reaches both ends of a block's range, to within 0.1 of its step: bool [B]."""
    covered: npt.NDArray[np.bool_] = (low * inverse + zero >= -8.6) & (high * inverse + zero <= 247.6)
    return covered


def _share_shift(w: FloatArray, low: FloatArray, high: FloatArray, step: FloatArray, zero: FloatArray) -> FloatArray:
    """Moves a block's zero point by one sixteenth of a step if that lowers the error of levels 4 and 6 together.

    The values of the 6-bit level lie 1.5 sixteenths of a step or more from those of the 4-bit level. If the weights
    were quantized to 4 bits before, they all lie on 4-bit values, and level 6 would be off by that much, always to the
    same side. Other weights are spread over a step; they gain nothing, so their zero points stay. Returns float32 [B].
    """
    inverse = np.divide(np.float32(16), step, out=np.zeros_like(step), where=step > 0)
    position = w * inverse + (zero + np.float32(8))
    best, best_zero = _shared_error(position), zero.copy()
    for shift in (np.float32(1), np.float32(-1)):
        moved = zero + shift
        error = _shared_error(position + shift)
        better = (error < best) & _covers(low, high, inverse, moved) & (moved >= 0) & (moved <= 255)
        np.copyto(best, error, where=better)
        np.copyto(best_zero, moved, where=better)
    return best_zero


def _shared_error(position: FloatArray) -> FloatArray:
    """Weighted sum of the squared errors of levels 4 and 6, in sixteenths of a step: float32 [B].

    `position` [32, B] holds the weights as real-valued codes on the 256-point grid.
    """
    code = np.rint(position)
    four = position - (np.floor(code / 16) * 16 + 8)
    six = position - (np.floor(code / 4) * 4 + np.float32(1.5))
    error: FloatArray = (four * four).sum(axis=0) + _SIX_BIT_WEIGHT * (six * six).sum(axis=0)
    return error


def _float16(wanted: FloatArray, least: FloatArray) -> FloatArray:
    """`wanted` rounded to float16, upwards if the nearest value is below `least`, which covers the block's weights.

    Only among denormal numbers are the gaps wide enough for that.
    """
    rounded = np.minimum(wanted, np.float32(65504)).astype(np.float16)
    found = rounded.astype(np.float32)
    short = found < least * np.float32(0.998)
    if short.any():
        found[short] = np.maximum(np.nextafter(rounded[short], np.float16(np.inf)), _SMALLEST_STEP)
    return found


class _Steps:
    """A step for each of the blocks w [32, B], and the least-squares step for the codes that it gives."""

    def __init__(self, w: FloatArray, weights: FloatArray | None) -> None:
        self._w, self._weights = w, weights

    def set_step(self, step: FloatArray) -> None:
        self.step = step
        self.inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)

    def least_squares_step(self, zero: FloatArray) -> FloatArray:
        shift = zero * np.float32(1 / 16)
        code = np.clip(np.rint(self._w * self.inverse + shift), 0, 15) - shift
        factor = code if self._weights is None else code * self._weights
        weight = (code * factor).sum(axis=0)
        return np.divide((factor * self._w).sum(axis=0), weight, out=self.step.copy(), where=weight > 0)


def dequantize(nested: Nested, level: int) -> FloatArray:
    """The weights of a level (4, 6 or 8 bits), float32 [N, K]. Raises ValueError if the level needs an absent plane."""
    code = nested.q.astype(np.float32) * 16
    if level >= 6:
        if nested.b is None:
            raise ValueError(f"level {level}: plane 1 is absent")
        code += nested.b.astype(np.float32) * 4
    if level >= 8:
        if nested.c is None:
            raise ValueError(f"level {level}: plane 2 is absent")
        code += nested.c
    rows, channels = nested.q.shape
    blocked = code.reshape(rows, channels // BLOCK, BLOCK)
    blocked -= (nested.zero.T.astype(np.float32) + np.float32(LEVEL_OFFSETS[level]))[:, :, None]
    blocked *= (nested.scale.T.astype(np.float32) / 16)[:, :, None]
    return code


def pack_base_block_major(q: ByteArray) -> ByteArray:
    """q uint8 [N, K] -> uint8 [KB, N, 16], channel 2j of a block in the low nibble of byte j."""
    rows, channels = q.shape
    pairs = q.reshape(rows, channels // BLOCK, BLOCK // 2, 2)
    return np.ascontiguousarray((pairs[..., 0] | pairs[..., 1] << 4).transpose(1, 0, 2))


def pack_base_channel_major(q: ByteArray) -> ByteArray:
    """q uint8 [N, K] -> uint8 [K, N / 2], output 2j of a channel in the low nibble of byte j: packed uint4 [K, N]."""
    return np.ascontiguousarray((q[0::2] | q[1::2] << 4).T)


def pack_plane(codes: ByteArray) -> ByteArray:
    """Codes 0 … 3, uint8 [N, K] -> uint8 [KB, N, 8], channel 4j of a block in the lowest bits of byte j."""
    rows, channels = codes.shape
    fours = codes.reshape(rows, channels // BLOCK, BLOCK // 4, 4)
    packed = fours[..., 0] | fours[..., 1] << 2 | fours[..., 2] << 4 | fours[..., 3] << 6
    return np.ascontiguousarray(packed.transpose(1, 0, 2))
