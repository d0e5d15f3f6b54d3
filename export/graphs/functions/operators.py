"""The function bodies of the operators of domain `sol`, in standard operators.

docs/reference/bundle-details.md section 3 defines them.

ONNX Runtime inlines a body if no native kernel is registered. Rules for all bodies:
- Every operator used has a CPU and a WebGPU kernel.
- No shape arithmetic on int64 is left after constant folding: WebGPU would hand it to the CPU, which a strict session
  refuses. So positions come from CumSum in float32, which is exact below 2**24, and masks from comparisons of floats.
- Whatever depends on weights alone folds to constants when a session is made. A step then runs MatMulNBits on the
stored
  planes.

A product at a level is a sum over its planes. With x [rows, K], block-wise steps s and zero points z (section 2 there):

    level 4:  y = x . (q - 8) s + offset
    level 6:  y = level 4 + x . (b - 2) s / 4
    level 8:  y = level 4 + x . (b - 2) s / 4 + x . c s / 16
    offset  = sum over blocks of (sum of x over the block) s (128 - z [+ 1.5 at level 6]) / 16

Level 3 has no planes in common with these: its weights are entries of tables, which become 8-bit codes of one
MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import zip_longest

import numpy as np
import onnx
from onnx import TensorProto

from sol_rt.bundle.bits import SCREENED, THREE, Screen, screen_columns
from sol_rt.bundle.config import BLOCK
from sol_rt.export.graphs.nodes import NodeWriter, Ref

_CODES, _FLOATS = 4, 1
"""Accuracy levels of MatMulNBits: activations of 8 bits, as in the kernels, or float32. For weights of 2 bits the CPU
provider's float paths are 10 to 100 times slower; for 4 bits they are not."""
_ALL = 1e9  # larger than every count of channels
_TILE = 32  # outputs whose 3-bit codes share 12 bytes
DEQUANTIZED, PACKED = "Dequantized", "Packed"
"""Nodes that stand for what a host makes of a matrix when it loads the graph; `export/web.py` replaces them."""


class Products(Enum):
    """Product of a body by a nested matrix.

    FUSED: by the stored planes; ONNX Runtime makes MatMulNBits of a channel-major base. PACKED: the same, but the host
    gives that base as MatMulNBits reads it, uint8 [N, KB, 16]. FLOATS: by one float32 matrix [K, N], which the host
    makes at the level.
    """

    FUSED = "fused"
    PACKED = "packed"
    FLOATS = "floats"


_NESTED = ("base", "scale", "zero")
_CODED = ("low", "high", "block_scale", "output_scale", "codebook")
_CENTRE = 128.0
"""The z for which MatMulNBits' own zero point of the base plane, 8, gives the whole offset of levels 4 and 8."""
_LEFT_AT_6 = 1.5 / 16
"""The rest of level 6's offset beside plane 1's zero point, 2, in steps."""
_SHIFT = {4: 0.0, 6: 6.5, 8: 8.0}
"""Constant offset of each level, in sixteenths of a step."""


def planes(bits: int) -> int:
    """The number of residual planes that a level reads."""
    return (bits - 4) // 2


def weight_parts(bits: int) -> tuple[str, ...]:
    """Names of the parts of a matrix that is read at `bits`, in the order of the operators' inputs."""
    if bits == THREE:
        return _CODED
    return (*_NESTED, *(f"plane{index + 1}" for index in range(planes(bits))))


def mlp_weights(up_bits: int, down_bits: int) -> list[str]:
    """The tensors of an MLP's two matrices, as `up.base`, in the order of its inputs: the residual planes come last, by
    plane, then by matrix.
    """
    first, residual = [], []
    for side, bits in (("up", up_bits), ("down", down_bits)):
        parts = weight_parts(bits)
        count = len(_CODED) if bits == THREE else len(_NESTED)
        first += [f"{side}.{part}" for part in parts[:count]]
        residual.append([f"{side}.{part}" for part in parts[count:]])
    return [*first, *(name for pair in zip_longest(*residual) for name in pair if name is not None)]


def nested_matmul(bits: int, *, products: Products = Products.FUSED) -> onnx.FunctionProto:
    """`NestedMatMul` at one number of bits; K and N stay attributes of the node. x: float [rows, K] or [1, rows, K].

    `products` is as in `_nested_product`.
    """
    writer = NodeWriter()
    names = [f"plane{index + 1}" for index in range(planes(bits))]
    weights = ["base", "scale", "zero", *names]
    _nested_product(writer, "x", weights, bits, Ref("K"), Ref("N"), channel_major=False, products=products, out="y")
    return writer.function("NestedMatMul", ["x", *weights], ["y"], ["K", "N", "bits"])


def screened_matmul(bits: int, k: int, n: int, screen: Screen) -> onnx.FunctionProto:
    """`NestedMatMul` of a screened matrix of `k` channels and `n` outputs, an overload. x: float [rows, k].

    The candidates' weights become float32 [rows, candidates, k], and their product is exact.
    """
    writer = NodeWriter()
    op = writer.op
    names = [f"plane{index + 1}" for index in range(planes(bits))]
    weights, own = list(_NESTED), list(_CODED) if screen.bits == THREE else []
    if own:
        wide = _coded_product(writer, "x", own, k, screen_columns(n), out=None)
        scores = op("Slice", wide, writer.ints(0), writer.ints(n), writer.ints(-1))
    else:
        scores = _nested_product(writer, "x", weights, 4, k, n, channel_major=False, products=Products.FUSED)
    op("TopK", scores, writer.ints(screen.candidates), out=["highest", "candidates"], axis=-1)
    blocks = _gathered(writer, "candidates", names, bits)
    rows = op("Reshape", op("Transpose", blocks, perm=[1, 2, 0, 3]), writer.ints(0, 0, k))
    exact = op("MatMul", rows, op("Unsqueeze", "x", writer.ints(2)))
    tail = op("Add", scores, writer.const(screen.tail_offset))
    op("ScatterElements", tail, "candidates", op("Squeeze", exact, writer.ints(2)), out="y", axis=-1)
    attributes = ["K", "N", "bits", *screen.attributes]
    function = writer.function("NestedMatMul", ["x", *weights, *names, *own], ["y"], attributes)
    function.overload = SCREENED
    return function


def pruned_matmul(bits: int, *, products: Products = Products.FUSED) -> onnx.FunctionProto:
    """`PrunedMatMul` at one number of bits; K and N stay attributes of the node. x: float [1, rows, K].

    `products` is as in `_nested_product`.
    """
    writer = NodeWriter()
    weights = list(weight_parts(bits))
    x = _largest(writer, "x", "active")
    _nested_product(writer, x, weights, bits, Ref("K"), Ref("N"), channel_major=True, products=products, out="y")
    return writer.function("PrunedMatMul", ["x", "active", *weights], ["y"], ["K", "N", "bits"])


def nested_gather(bits: int, k: int, *, without_float16: bool = False) -> onnx.FunctionProto:
    """`NestedGather` of rows of `k` channels at one number of bits.

    `without_float16` makes the whole `scale` float32 where the session is made, for GPUs that have no float16.
    """
    writer = NodeWriter()
    names = [f"plane{index + 1}" for index in range(planes(bits))]
    blocks = _gathered(writer, "ids", names, bits, without_float16=without_float16)
    blocks = writer.op("Transpose", blocks, perm=[1, 2, 0, 3])
    writer.op("Reshape", blocks, writer.ints(1, -1, k), out="y")
    return writer.function("NestedGather", ["ids", "base", "scale", "zero", *names], ["y"], ["K", "N", "bits"])


def _gathered(writer: NodeWriter, ids: str, names: Sequence[str], bits: int, *, without_float16: bool = False) -> str:
    """The weights of outputs `ids`, int64 [R, S], of a block-major matrix: float [KB, R, S, 32].

    `names` are those of the level's residual planes.
    """

    def rows(tensor: str, to: int) -> str:
        return writer.op("Cast", writer.op("Gather", tensor, ids, axis=1), to=to)  # [KB, R, S] and [KB, R, S, bytes]

    def codes(tensor: str, size: int) -> str:
        per_byte = 8 // size
        table = np.arange(256)[:, None] >> (size * np.arange(per_byte)) & (2**size - 1)
        values = writer.op("Gather", writer.const(table), rows(tensor, TensorProto.INT32), axis=0)
        return writer.op("Reshape", values, writer.ints(0, 0, 0, BLOCK))

    code = writer.op("Mul", codes("base", 4), writer.const(16.0))
    for name, step in zip(names, (4.0, 1.0), strict=False):
        code = writer.op("Add", code, writer.op("Mul", codes(name, 2), writer.const(step)))
    zero = writer.op("Add", rows("zero", TensorProto.FLOAT), writer.const(_SHIFT[bits]))
    code = writer.op("Sub", code, writer.op("Unsqueeze", zero, writer.ints(3)))
    if without_float16:
        steps = writer.op("Gather", writer.op("Cast", "scale", to=TensorProto.FLOAT), ids, axis=1)
    else:
        steps = rows("scale", TensorProto.FLOAT)
    scale = writer.op("Mul", steps, writer.const(1 / 16))
    return writer.op("Mul", code, writer.op("Unsqueeze", scale, writer.ints(3)))


def pruned_mlp(
    bits: int,
    *,
    up_bits: int | None = None,
    down_bits: int | None = None,
    hidden: int,
    intermediate: int,
    gated: bool,
    activation: str,
    has_bias: bool,
    products: Products = Products.FUSED,
) -> onnx.FunctionProto:
    """`PrunedMLP` with its attributes inlined: all layers of a graph share them. x: float [1, rows, hidden].

    The matrices are read at `up_bits` and `down_bits` bits, by default `bits`. `products` is as in `_nested_product`.
    """
    writer = NodeWriter()
    matrix_bits = {"up": up_bits or bits, "down": down_bits or bits}
    up, down = ([f"{side}_{part}" for part in weight_parts(own)] for side, own in matrix_bits.items())
    up_size = intermediate * (2 if gated else 1)

    x = _largest(writer, "x", "active_up")
    u = _nested_product(writer, x, up, matrix_bits["up"], hidden, up_size, channel_major=True, products=products)
    if has_bias:
        u = writer.op("Add", u, "up_bias")
    if gated:
        writer.op("Split", u, out=["gate", "linear"], axis=-1, num_outputs=2)
        h = writer.op("Mul", _activation(writer, "gate", activation), "linear")
    else:
        h = _activation(writer, u, activation)
    h = _largest(writer, h, "active_down")
    out = None if has_bias else "y"
    y = _nested_product(
        writer, h, down, matrix_bits["down"], intermediate, hidden, channel_major=True, products=products, out=out
    )
    if has_bias:
        writer.op("Add", y, "down_bias", out="y")

    weights = [name.replace(".", "_") for name in mlp_weights(matrix_bits["up"], matrix_bits["down"])]
    inputs = ["x", "active_up", "active_down", *weights]
    if has_bias:
        inputs += ["up_bias", "down_bias"]
    own = [name for name, given in (("up_bits", up_bits), ("down_bits", down_bits)) if given]
    attributes = ["K", "I", "bits", *own, "gated", "activation", "has_bias"]
    return writer.function("PrunedMLP", inputs, ["y"], attributes)


def _nested_product(
    writer: NodeWriter,
    x: str,
    weights: list[str],
    bits: int,
    k: int | Ref,
    n: int | Ref,
    *,
    channel_major: bool,
    products: Products,
    out: str | None = None,
) -> str:
    """Writes x W at a level, by the formula of this module; W is base, scale, zero and the level's planes.

    x and the result are [1, rows, ·] or [rows, ·]. Scales and offsets have the same values at every nested level, so a
    host that shares them holds them once.
    """
    if bits == THREE:
        return _coded_product(writer, x, weights, k, n, out=out)
    base, scale, zero, *residual = weights
    op, const = writer.op, writer.const
    if products is Products.FLOATS:
        return op("MatMul", x, op(DEQUANTIZED, *weights, domain="sol", bits=bits), out=out)
    steps = op("Cast", scale, to=TensorProto.FLOAT)  # [KB, N]
    block_scale = op("Transpose", steps, perm=[1, 0])

    def product(codes: str, size: int, accuracy: int, *zero_points: str) -> str:
        """x times a plane [N, KB, bytes of a block]."""
        return op(
            "MatMulNBits",
            x,
            codes,
            block_scale,
            *zero_points,
            domain="com.microsoft",
            K=k,
            N=n,
            bits=size,
            block_size=BLOCK,
            accuracy_level=accuracy,
        )

    def transposed(plane: str) -> str:
        """A block-major plane with the outputs as its first axis, as MatMulNBits takes it."""
        return op("Transpose", plane, perm=[1, 0, 2])

    accuracy = _FLOATS if bits == 8 else _CODES
    if channel_major and products is Products.PACKED:
        y = product(op(PACKED, base, scale, domain="sol"), 4, accuracy)
    elif channel_major:  # ONNX Runtime fuses this pattern to MatMulNBits, with the weights transposed once
        eight = op("Expand", const(8, np.uint8), op("Shape", scale))
        eight = op("Cast", eight, to=TensorProto.UINT4)
        y = op("MatMul", x, op("DequantizeLinear", base, steps, eight, axis=0, block_size=BLOCK))
    else:
        y = product(transposed(base), 4, accuracy)
    # with zero points 2 of plane 1 and 0 of plane 2, the offset of level 8 is 4 * 2 + 0 = 8
    zero_points = [(), (_no_zero_points(writer, scale),)] if bits == 8 else [()]
    for index, plane in enumerate(residual):
        part = product(transposed(plane), 2, _CODES, *zero_points[index])
        y = op("Add", y, op("Mul", part, const(0.25 ** (index + 1))))
    blocks = op("Concat", writer.ints(-1), op("Shape", scale, end=1), writer.ints(BLOCK), axis=0)
    sums = op("ReduceSum", op("Reshape", x, blocks), writer.ints(2), keepdims=0)  # [rows, KB]
    left = op("Sub", const(_CENTRE), op("Cast", zero, to=TensorProto.FLOAT))
    offset = op("Mul", left, op("Mul", steps, const(1 / 16)))
    flat = op("Concat", writer.ints(-1), op("Shape", scale, start=1), axis=0)
    total = op("Gemm", sums, offset, op("Reshape", y, flat))
    if bits == 6:
        total = op("Gemm", sums, block_scale, total, alpha=_LEFT_AT_6, transB=1)
    return op("Reshape", total, op("Shape", y), out=out)


def _coded_product(
    writer: NodeWriter, x: str, weights: list[str], k: int | Ref, n: int | Ref, *, out: str | None
) -> str:
    """Writes x W at level 3.

    Table entries plus 128 are codes of 8 bits, and a block's scale times the output's is their step. All of that folds
    to constants, one byte a weight.
    """
    low, high, block_scale, output_scale, codebook = weights
    op, const, ints = writer.op, writer.const, writer.ints

    def codes(plane: str, of_byte: Sequence[np.ndarray]) -> str:
        """Contribution of a plane's bytes to the codes, int32 [K, N]. A tile of 32 outputs has 32 / F bytes.

        `of_byte` has F arrays [256]: what byte j adds to outputs j, j + 32 / F, j + 2 * 32 / F, ….
        """
        table = const(np.stack(of_byte, axis=1), np.int32)
        fields = op("Gather", table, op("Cast", plane, to=TensorProto.INT32), axis=0)
        tiles = op("Reshape", fields, ints(0, -1, _TILE // len(of_byte), len(of_byte)))
        return op("Reshape", op("Transpose", tiles, perm=[0, 1, 3, 2]), ints(0, -1))

    byte, none = np.arange(256), np.zeros(256, int)
    first, second = byte & 7, byte >> 3 & 7
    lows = codes(low, [first, second, none, byte >> 6])
    highs = codes(high, [none, none, none, none, first, second, byte >> 4 & 4, byte >> 5 & 4])
    code = op("Add", lows, highs)
    blocks = op("Concat", op("Shape", block_scale, end=1), ints(BLOCK), op("Shape", block_scale, start=1), axis=0)
    scale_byte = op("Cast", block_scale, to=TensorProto.INT32)  # [KB, N]
    table_start = op("Gather", const((np.arange(256) >> 6) * 8, np.int32), scale_byte, axis=0)
    index = op("Add", op("Reshape", code, blocks), op("Unsqueeze", table_start, ints(1)))
    entries = op("Add", op("Reshape", op("Cast", codebook, to=TensorProto.INT32), ints(-1)), const(128, np.int32))
    entry = op("Gather", op("Cast", entries, to=TensorProto.UINT8), index, axis=0)  # [KB, 32, N]
    multiple = op("Gather", const(np.arange(256) & 63), scale_byte, axis=0)
    steps = op("Mul", multiple, op("Cast", output_scale, to=TensorProto.FLOAT))
    return op(
        "MatMulNBits",
        x,
        op("Transpose", entry, perm=[2, 0, 1]),
        op("Transpose", steps, perm=[1, 0]),
        out=out,
        domain="com.microsoft",
        K=k,
        N=n,
        bits=8,
        block_size=BLOCK,
        accuracy_level=_CODES,
    )


def _no_zero_points(writer: NodeWriter, scale: str) -> str:
    """2-bit zero points that are all 0, uint8 [N, KB / 4], for a scale [KB, N]."""
    op, const = writer.op, writer.const
    blocks, outputs = op("Shape", scale, end=1), op("Shape", scale, start=1)
    size = op("Div", op("Add", blocks, writer.ints(3)), writer.ints(4))
    return op("Expand", const(0, np.uint8), op("Concat", outputs, size, axis=0))


def _largest(writer: NodeWriter, x: str, active: str) -> str:
    """x with all but the values of largest magnitude along its last axis set to 0. Of equal values the first ones stay.

    `active`, int64, says how many stay; all do if it is empty or 0. TopK sorts all values, since it could not read a
    count that lies on the GPU.
    """

    def pruned(inner: NodeWriter) -> str:
        op, order = inner.op, inner.name("order")
        channels = op("Shape", x, start=-1)
        op("TopK", op("Abs", x), channels, out=[f"{order}_values", order], axis=-1)
        count = inner.count(active)
        count = op("Where", op("LessOrEqual", count, inner.const(0.0)), inner.const(_ALL), count)
        rank = op("CumSum", op("Expand", inner.const(1.0), channels), inner.const(0, np.int64))
        stays = op("Where", op("LessOrEqual", rank, count), inner.const(1.0), inner.const(0.0))
        stays = op("Expand", stays, op("Shape", f"{order}_values"))
        return op("Mul", x, op("ScatterElements", x, order, stays, axis=-1))

    return writer.where_any(active, pruned, lambda inner: inner.op("Identity", x))


def _activation(writer: NodeWriter, x: str, name: str) -> str:
    if name == "silu":
        return writer.op("Mul", x, writer.op("Sigmoid", x))
    if name == "relu":
        return writer.op("Relu", x)
    if name == "relu2":
        rectified = writer.op("Relu", x)
        return writer.op("Mul", rectified, rectified)
    return writer.op("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
