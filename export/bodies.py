"""Function bodies of the operators of domain `sol`: the semantics of docs/bundle.md section 3 in standard ops.

ONNX Runtime inlines a body where no native kernel is registered. Every op used has a CPU and a WebGPU kernel, and no
shape arithmetic on int64 is left after constant folding: WebGPU would hand it to the CPU, which a strict session
refuses. Hence positions come from CumSum in float32 (exact below 2**24) and masks from comparisons of floats.

Everything that depends on weights alone folds to constants when a session is made, so a step runs MatMulNBits on the
stored planes. Activations are rounded beforehand, to the int8 steps of levels 4 and 6: a MatMulNBits that rounds them
itself finds nothing to round, one that does not gives the same result. The 16 bits of level 8 go in as two parts of 8,
as twice the rows. (WebGPU at accuracy level 4 rounds once more, in blocks of 128, where K is a multiple of that: half a
percent of a product, at level 8 as well.)
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from sol_rt.config import PAGE_SIZE
from sol_rt.export.nodes import END, NodeWriter, Ref

BLOCK = 32
_ACCURACY = 4  # int8 activations, as in the kernels; the float paths of the CPU provider are 10 to 100 times slower
_NEVER = -1e30  # score of a key that is not attended: finite, so that no NaN arises
_LOWEST_SCORE = 2.0**-100  # smaller scores of tokens count as 0
_ALL = 1e9  # beyond every position
_ROUNDING = 1.5 * 2.0**23  # float32 numbers of this size are whole
_TINY = 1e-30  # instead of a step of zero

_CENTRE = {4: 128.0, 6: 129.5, 8: 130.0}
"""z at which the zero points inside MatMulNBits (8 of 4 bits, 2 of 2 bits) already give the whole offset, by level."""
_SHIFT = {4: 0.0, 6: 6.5, 8: 8.0}
"""Middle of the codes that the planes of a level add."""
_LARGEST_CODE = {4: 127.0, 6: 127.0, 8: 32258.0}
"""Largest activation code, by level."""
_LARGEST_KV_CODE = 127.0
_LARGEST_KEY_CODE = 15.0
_LARGEST_QUERY_CODE = 127.0
_COARSE = 255.0
"""Level 8 splits a code into 255 c1 + c2. As 32258 = 255 * 127 - 127, both reach 127 in every block: what an int8
MatMulNBits scales by, so that it rounds neither again."""


def planes(bits: int) -> int:
    """Residual planes that a level reads."""
    return (bits - 4) // 2


def nested_matmul(bits: int) -> onnx.FunctionProto:
    """`NestedMatMul` at one width; K and N stay attributes of the node. x: float [rows, K] or [1, rows, K]."""
    writer = NodeWriter()
    names = [f"plane{index + 1}" for index in range(planes(bits))]
    weights = ["base", "scale", "zero", *names]
    _nested_product(writer, "x", weights, bits, Ref("K"), Ref("N"), channel_major=False, out="y")
    return writer.function("NestedMatMul", ["x", *weights], ["y"], ["K", "N", "bits"])


def pruned_matmul(bits: int) -> onnx.FunctionProto:
    """`PrunedMatMul` at one width; K and N stay attributes of the node. x: float [1, rows, K]."""
    writer = NodeWriter()
    weights = ["base", "scale", "zero", *(f"plane{index + 1}" for index in range(planes(bits)))]
    x = _largest(writer, "x", "keep")
    _nested_product(writer, x, weights, bits, Ref("K"), Ref("N"), channel_major=True, out="y")
    return writer.function("PrunedMatMul", ["x", "keep", *weights], ["y"], ["K", "N", "bits"])


def nested_gather(bits: int, k: int) -> onnx.FunctionProto:
    """`NestedGather` of rows of `k` channels at one width."""
    writer = NodeWriter()
    names = [f"plane{index + 1}" for index in range(planes(bits))]

    def rows(tensor: str, to: int) -> str:
        return writer.op("Cast", writer.op("Gather", tensor, "ids", axis=1), to=to)  # [KB, 1, S] and [KB, 1, S, bytes]

    def codes(tensor: str, width: int) -> str:
        per_byte = 8 // width
        table = np.arange(256)[:, None] >> (width * np.arange(per_byte)) & (2**width - 1)
        values = writer.op("Gather", writer.const(table), rows(tensor, TensorProto.INT32), axis=0)
        return writer.op("Reshape", values, writer.ints(0, 0, 0, BLOCK))

    code = writer.op("Mul", codes("base", 4), writer.const(16.0))
    for name, step in zip(names, (4.0, 1.0), strict=False):
        code = writer.op("Add", code, writer.op("Mul", codes(name, 2), writer.const(step)))
    zero = writer.op("Add", rows("zero", TensorProto.FLOAT), writer.const(_SHIFT[bits]))
    code = writer.op("Sub", code, writer.op("Unsqueeze", zero, writer.ints(3)))
    scale = writer.op("Mul", rows("scale", TensorProto.FLOAT), writer.const(1 / 16))
    blocks = writer.op("Mul", code, writer.op("Unsqueeze", scale, writer.ints(3)))
    blocks = writer.op("Transpose", blocks, perm=[1, 2, 0, 3])
    writer.op("Reshape", blocks, writer.ints(1, -1, k), out="y")
    return writer.function("NestedGather", ["ids", "base", "scale", "zero", *names], ["y"], ["K", "N", "bits"])


def pruned_mlp(
    bits: int,
    *,
    hidden: int,
    intermediate: int,
    gated: bool,
    activation: str,
    has_bias: bool,
) -> onnx.FunctionProto:
    """`PrunedMLP` with its attributes inlined: all layers of a graph share them. x: float [1, rows, hidden]."""
    writer = NodeWriter()
    up, down = (
        [f"{side}_{part}" for part in ("base", "scale", "zero", *(f"plane{i + 1}" for i in range(planes(bits))))]
        for side in ("up", "down")
    )
    up_size = intermediate * (2 if gated else 1)

    x = _largest(writer, "x", "keep_in")
    u = _nested_product(writer, x, up, bits, hidden, up_size, channel_major=True)
    if has_bias:
        u = writer.op("Add", u, "up_bias")
    if gated:
        writer.op("Split", u, out=["gate", "linear"], axis=-1, num_outputs=2)
        h = writer.op("Mul", _activation(writer, "gate", activation), "linear")
    else:
        h = _activation(writer, u, activation)
    h = _largest(writer, h, "keep_mid")
    y = _nested_product(writer, h, down, bits, intermediate, hidden, channel_major=True, out=None if has_bias else "y")
    if has_bias:
        writer.op("Add", y, "down_bias", out="y")

    inputs = ["x", "keep_in", "keep_mid", *up[:3], *down[:3]]
    for plane in zip(up[3:], down[3:], strict=True):
        inputs += plane
    if has_bias:
        inputs += ["up_bias", "down_bias"]
    attributes = ["K", "I", "bits", "gated", "activation", "has_bias"]
    return writer.function("PrunedMLP", inputs, ["y"], attributes)


def sparse_attention(
    *,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    sinks: int,
    softmax_scale: float,
    int8: bool = False,
) -> onnx.FunctionProto:
    """`SparseAttention` with its attributes inlined: all layers of a graph share them.

    Reads the whole capacity and masks: what is left out saves no time here. The ScatterND that append keys and values
    write outputs of the function itself and nothing else reads `past_*`, so a host that binds past and present to one
    buffer gets an append in place. Codes of the keys are made of all keys where they are used: WebGPU has no operators
    that would store them, and their tensors pass through unread. An `int8` cache holds codes and scales of keys and
    values, for which WebGPU has no operators at all.
    """
    writer = NodeWriter()
    op, const, ints = writer.op, writer.const, writer.ints
    group = num_heads // kv_heads

    # positions of the new tokens, float [S]; the newest one and its page, float [1]
    ones = op("Expand", const(1.0), op("Shape", "qkv", start=1, end=2))
    past = op("Cast", "past_length", to=TensorProto.FLOAT)
    positions = op("Add", op("CumSum", ones, const(0, np.int64)), op("Sub", past, const(1.0)))
    newest = op("Slice", positions, ints(-1), ints(END))
    newest_page = op("Floor", op("Mul", newest, const(1 / PAGE_SIZE)))

    # q [1, H, S, D], k and v [1, Hk, S, D]
    heads = op("Reshape", "qkv", ints(0, 0, num_heads + 2 * kv_heads, head_dim))
    heads = op("Transpose", heads, perm=[0, 2, 1, 3])
    qk = op("Split", heads, ints(num_heads + kv_heads, kv_heads), out=["qk", "v"], axis=1)
    rotated = op(
        "RotaryEmbedding",
        qk,
        "past_length",
        "cos",
        "sin",
        domain="com.microsoft",
        num_heads=num_heads + kv_heads,
        rotary_embedding_dim=0 if rotary_dim == head_dim else rotary_dim,
    )
    q = op("Split", rotated, ints(num_heads, kv_heads), out=["q", "k"], axis=1)

    # append: row (0, head, position) of the cache
    rows = _scatter_rows(writer, positions, kv_heads)
    for new, side in (("k", "key"), ("v", "value")):
        if int8:
            rounded, scale = _codes(writer, new)
            op("ScatterND", f"past_{side}_scale", rows, scale, out=f"present_{side}_scale")
        else:
            rounded = op("Cast", new, to=TensorProto.FLOAT16)
        op("ScatterND", f"past_{side}", rows, rounded, out=f"present_{side}")

    # scores of all tokens for the newest query, float [1, Hk, 1, C]: what the group's softmaxes give each in sum
    for part in ("key_codes", "key_range"):  # WebGPU passes uint8 through this, but not through Identity
        op("Reshape", f"past_{part}", ints(0, 0, 0, -1), out=f"present_{part}")
    last = op("Slice", q, ints(-1), ints(END), ints(2))
    last = op("Reshape", last, ints(1, kv_heads, group, head_dim))
    keys = op("Cast", "present_key", to=TensorProto.FLOAT)
    scores = _token_scores(writer, last, _scaled(writer, keys, "present_key_scale") if int8 else keys)
    token_count = op("Shape", scores, start=3, end=4)
    token = op("CumSum", op("Expand", const(1.0), token_count), const(0, np.int64))  # 1-based, [C]
    is_old = op("LessOrEqual", token, op("Mul", newest_page, const(float(PAGE_SIZE))))
    scores = op("Where", is_old, op("Mul", scores, const(softmax_scale)), const(_NEVER))
    scores = op("ReduceSum", op("Softmax", scores, axis=-1), ints(2), keepdims=1)
    scores = op("Where", op("LessOrEqual", const(_LOWEST_SCORE), scores), scores, const(0.0))
    scores = op("Reshape", op("Where", is_old, scores, const(-1.0)), ints(1, -1))  # [1, Hk C]

    # last position that each token is given to attention for: any where kept, the sinks alone where not
    pair_count = op("Shape", scores, start=1, end=2)
    rank = op("CumSum", op("Expand", const(1.0), pair_count), const(0, np.int64))  # 1-based, [Hk C]
    several = op("Mul", op("Sub", newest, past), const(_ALL))  # 0 with one new token; otherwise every token is kept
    keep = op("Mul", op("Cast", "attn_keep", to=TensorProto.FLOAT), const(float(PAGE_SIZE * kv_heads)))
    by_rank = op("Where", op("LessOrEqual", rank, op("Add", keep, several)), const(_ALL), const(sinks - 1.0))
    op("TopK", scores, pair_count, out=["token_scores", "order"], axis=-1)
    limit = op("ScatterElements", scores, "order", op("Unsqueeze", by_rank, ints(0)), axis=1)
    limit = op("Where", is_old, op("Reshape", limit, ints(1, kv_heads, 1, -1)), const(_ALL))  # [1, Hk, 1, C]

    # attention: query rows are grouped by KV head, [1, Hk, group * S, D]; row g * S + s is at position s
    if group > 1:
        positions = op("Reshape", op("Mul", positions, const(np.ones((group, 1)))), ints(-1))
    until = op("Min", op("Unsqueeze", positions, ints(1)), limit)  # [1, Hk, rows, C]
    seen = op("LessOrEqual", op("Sub", token, const(1.0)), until)
    q = op("Reshape", op("Mul", q, const(softmax_scale)), ints(1, kv_heads, -1, head_dim))
    logits = op("MatMul", q, _transposed(writer, keys))
    if int8:
        logits = op("Mul", logits, _scale_row(writer, "present_key_scale"))
    weights = op("Softmax", op("Where", seen, logits, const(_NEVER)), axis=-1)
    if int8:
        weights = op("Mul", weights, _scale_row(writer, "present_value_scale"))
    y = op("MatMul", weights, op("Cast", "present_value", to=TensorProto.FLOAT))
    y = op("Transpose", op("Reshape", y, ints(1, num_heads, -1, head_dim)), perm=[0, 2, 1, 3])
    op("Reshape", y, ints(0, 0, num_heads * head_dim), out="y")

    cache, scales = ["key", "value", "key_codes", "key_range"], ["key_scale", "value_scale"] if int8 else []
    inputs = ["qkv", *(f"past_{part}" for part in cache), "past_length", "attn_keep", "cos", "sin"]
    return writer.function(
        "SparseAttention",
        [*inputs, *(f"past_{part}" for part in scales)],
        ["y", *(f"present_{part}" for part in cache + scales)],
        ["num_heads", "kv_heads", "head_dim", "rotary_dim", "page_size", "sinks", "softmax_scale"],
    )


def _nested_product(
    writer: NodeWriter,
    x: str,
    weights: list[str],
    bits: int,
    k: int | Ref,
    n: int | Ref,
    *,
    channel_major: bool,
    out: str | None = None,
) -> str:
    """x W at a level, W being base, scale, zero and the level's planes.

    One product a plane, of both parts of x at level 8, and block sums of x times what the planes' own zero points leave
    of the offset.
    """
    base, scale, zero, *residual = weights
    op, const = writer.op, writer.const
    x, sums = _rounded(writer, x, scale, bits)
    steps = op("Cast", scale, to=TensorProto.FLOAT)  # [KB, N]
    block_scale = op("Transpose", steps, perm=[1, 0])

    def product(codes: str, code_scale: str, width: int) -> str:
        """x times a block-major plane, which MatMulNBits wants outputs first."""
        return op(
            "MatMulNBits",
            x,
            op("Transpose", codes, perm=[1, 0, 2]),
            code_scale,
            domain="com.microsoft",
            K=k,
            N=n,
            bits=width,
            block_size=BLOCK,
            accuracy_level=_ACCURACY,
        )

    if channel_major:  # the pattern that ONNX Runtime fuses to MatMulNBits, transposing the weights once
        eight = op("Expand", const(8, np.uint8), op("Shape", scale))
        eight = op("Cast", eight, to=TensorProto.UINT4)
        y = op("MatMul", x, op("DequantizeLinear", base, steps, eight, axis=0, block_size=BLOCK))
    else:
        y = product(base, block_scale, 4)
    for index, plane in enumerate(residual):
        plane_scale = op("Mul", block_scale, const(0.25 ** (index + 1)))
        y = op("Add", y, product(plane, plane_scale, 2))
    if bits == 8:
        parts = f"parts_{len(writer.nodes)}"
        op("Split", y, out=[f"{parts}_coarse", f"{parts}_fine"], axis=0, num_outputs=2)
        y = op("Add", f"{parts}_coarse", f"{parts}_fine")
    left = op("Sub", const(_CENTRE[bits]), op("Cast", zero, to=TensorProto.FLOAT))
    offset = op("Mul", left, op("Mul", steps, const(1 / 16)))
    return op("Add", y, op("MatMul", sums, offset), out=out)


def _rounded(writer: NodeWriter, x: str, scale: str, bits: int) -> tuple[str, str]:
    """x [..., K] as codes of its blocks stand for it, and the sums of the blocks, [rows, KB].

    At level 8 the first axis is twice as long: first the multiples of 255 steps, then what is left.
    """
    op, const = writer.op, writer.const
    shape = op("Concat", writer.ints(-1), op("Shape", scale, end=1), writer.ints(BLOCK), axis=0)
    blocks = op("Reshape", x, shape)
    largest = op("ReduceMax", op("Abs", blocks), writer.ints(2), keepdims=1)
    step = op("Mul", largest, const(1 / _LARGEST_CODE[bits]))
    codes = _whole(writer, op("Div", blocks, op("Max", step, const(_TINY))))
    rounded = op("Mul", codes, step)
    sums = op("ReduceSum", rounded, writer.ints(2), keepdims=0)
    x_shape = op("Shape", x)
    if bits < 8:
        return op("Reshape", rounded, x_shape), sums
    upper = _whole(writer, op("Mul", codes, const(1 / _COARSE)))
    coarse = op("Mul", upper, op("Mul", step, const(_COARSE)))
    parts = (op("Reshape", part, x_shape) for part in (coarse, op("Sub", rounded, coarse)))
    return op("Concat", *parts, axis=0), sums


def _whole(writer: NodeWriter, x: str) -> str:
    """x rounded half to even, in a way for which WebGPU has operators: Round it has not.

    The sum goes through memory between the two nodes, so no compiler cancels it.
    """
    rounding = writer.const(_ROUNDING)
    return writer.op("Sub", writer.op("Add", x, rounding), rounding)


def _largest(writer: NodeWriter, x: str, keep: str) -> str:
    """x with all but the values of largest magnitude of its last axis zero; TopK orders ties by index.

    `keep` int64 [1] says how many stay; at 0 all do, and TopK has nothing to sort.
    """
    op, index = writer.op, f"kept_{len(writer.nodes)}"
    op("TopK", op("Abs", x), keep, out=[f"{index}_values", index], axis=-1)
    kept = op("GatherElements", x, index, axis=-1)
    pruned = op("ScatterElements", op("Mul", x, writer.const(0.0)), index, kept, axis=-1)
    everything = op("LessOrEqual", op("Cast", keep, to=TensorProto.FLOAT), writer.const(0.0))
    return op("Where", everything, x, pruned)


def _activation(writer: NodeWriter, x: str, name: str) -> str:
    if name == "silu":
        return writer.op("Mul", x, writer.op("Sigmoid", x))
    if name == "relu":
        return writer.op("Relu", x)
    return writer.op("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")


def _scatter_rows(writer: NodeWriter, index: str, kv_heads: int) -> str:
    """Indices int64 [1, Hk, n, 3] of the rows (0, head, index) for `index` float [n]."""
    column = writer.op("Mul", writer.op("Unsqueeze", index, writer.ints(1)), writer.const([0.0, 0.0, 1.0]))
    heads = np.zeros((1, kv_heads, 1, 3))
    heads[0, :, 0, 1] = np.arange(kv_heads)
    return writer.op("Cast", writer.op("Add", column, writer.const(heads)), to=TensorProto.INT64)


def _codes(writer: NodeWriter, x: str) -> tuple[str, str]:
    """Rows of x float [1, Hk, S, D] as int8 codes of the same shape and float16 scales [1, Hk, S]."""
    op, const = writer.op, writer.const
    largest = op("ReduceMax", op("Abs", x), writer.ints(3), keepdims=1)
    scale = op("Cast", op("Div", largest, const(_LARGEST_KV_CODE)), to=TensorProto.FLOAT16)
    step = op("Cast", scale, to=TensorProto.FLOAT)
    steps = op("Clip", op("Div", x, op("Max", step, const(_TINY))), const(-_LARGEST_KV_CODE), const(_LARGEST_KV_CODE))
    codes = op("Where", op("Equal", step, const(0.0)), const(0.0), op("Round", steps))
    return op("Cast", codes, to=TensorProto.INT8), op("Squeeze", scale, writer.ints(3))


def _scaled(writer: NodeWriter, codes: str, scale: str) -> str:
    """Codes as floats [..., D] times a float16 scale [...]."""
    factor = writer.op("Cast", scale, to=TensorProto.FLOAT)
    return writer.op("Mul", codes, writer.op("Unsqueeze", factor, writer.ints(-1)))


def _scale_row(writer: NodeWriter, scale: str) -> str:
    """float16 [1, Hk, C] -> float [1, Hk, 1, C]."""
    return writer.op("Unsqueeze", writer.op("Cast", scale, to=TensorProto.FLOAT), writer.ints(2))


def _token_scores(writer: NodeWriter, query: str, keys: str) -> str:
    """Scores float [1, Hk, group, C] of keys [1, Hk, C, D] for queries [1, Hk, group, D], both rounded to codes."""
    op, const, ints = writer.op, writer.const, writer.ints
    low, high = (op(reduce, keys, ints(3), keepdims=1) for reduce in ("ReduceMin", "ReduceMax"))
    step = op("Div", op("Sub", high, low), const(_LARGEST_KEY_CODE))
    low, step = (op("Cast", op("Cast", x, to=TensorProto.FLOAT16), to=TensorProto.FLOAT) for x in (low, step))
    # where the step is 0 the codes count nothing, whatever they are
    codes = _whole(writer, op("Div", op("Sub", keys, low), op("Max", step, const(_TINY))))
    codes = op("Clip", codes, const(0.0), const(_LARGEST_KEY_CODE))
    unit = op("Div", op("ReduceMax", op("Abs", query), ints(3), keepdims=1), const(_LARGEST_QUERY_CODE))
    whole = _whole(writer, op("Div", query, op("Max", unit, const(_TINY))))
    low, step = (op("Reshape", x, ints(0, 0, 1, -1)) for x in (low, step))
    products = op("Mul", step, op("MatMul", whole, _transposed(writer, codes)))
    offsets = op("Mul", low, op("ReduceSum", whole, ints(3), keepdims=1))
    return op("Mul", unit, op("Add", products, offsets))


def _transposed(writer: NodeWriter, x: str) -> str:
    """[1, Hk, n, D] -> [1, Hk, D, n]."""
    return writer.op("Transpose", x, perm=[0, 1, 3, 2])
