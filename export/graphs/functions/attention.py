"""The function body of `SparseAttention` (docs/reference/bundle-details.md section 3).

operators.py says what all bodies have to heed.

For query head h and its KV head g = h / (H / Hk), over the tokens t that are read:

    y[h] = sum over t of softmax_t(softmax_scale * q[h] . k[g, t]) v[g, t]

The body has three forms:
- Every token is read: GroupQueryAttention rotates q and k, appends k and v in place, and reads the cache once, up to
  the last token and not to its capacity. Under a soft cap plain operators do, over the whole cache.
- One new token reads chosen old ones: gathered_attention.py writes that form.
- An int8 cache: neither form has operators for it. Its body masks the tokens that are not read, and runs on the CPU.

Bodies choose tokens by the keys themselves, not by the key codes that the kernels use. WebGPU has no operators that
would store codes, so the tensors of codes pass through unread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from sol_rt.bundle.config import PAGE_SIZE
from sol_rt.export.graphs.functions import gathered_attention
from sol_rt.export.graphs.functions.attention_shape import (
    NEVER,
    WINDOW,
    AttentionShape,
    capped,
    first_seen,
    rotated,
    window_share,
)
from sol_rt.export.graphs.nodes import END, NodeWriter, Ref

_LOWEST_SCORE = 2.0**-100  # smaller scores count as 0
_ALL = 1e9  # larger than every position
_TINY = 1e-30  # replaces a step of 0 as a divisor
_LARGEST_KV_CODE = 127.0
_FUSED_ROTARY = 16
"""GroupQueryAttention can rotate a multiple of this many channels."""


def sparse_attention(
    shape: AttentionShape, *, int8: bool = False, floats: int = TensorProto.FLOAT16, joint: bool = True
) -> onnx.FunctionProto:
    """The body of `SparseAttention`. Its attributes are constants in it, except `gather_capacity` and `window`.

    A host that binds past and present to one buffer gets an append in place. GroupQueryAttention, ScatterElements and
    ScatterND write outputs of the function itself, and no other node reads `past_*`.

    Args:
        shape: the attributes, which all layers of a graph share but for their windows.
        int8: the cache holds int8 codes and scales of keys and values. Such a body runs on the CPU only.
        floats: the type of any other cache.
        joint: GroupQueryAttention gets q, k and v in one tensor; ONNX Runtime for the web (1.30) infers no shape then.
    """
    writer = NodeWriter()
    for part in ("key_codes", "key_range"):  # WebGPU has no Identity for uint8, but its Reshape takes it
        writer.op("Reshape", f"past_{part}", writer.ints(0, 0, 0, -1), out=f"present_{part}")
    if int8:
        _int8_attention(writer, shape)
    else:
        _float_attention(writer, shape, floats, joint)
    cache, scales = ["key", "value", "key_codes", "key_range"], ["key_scale", "value_scale"] if int8 else []
    inputs = ["qkv", *(f"past_{part}" for part in cache), "past_length", "kv_pages", "cos", "sin"]
    return writer.function(
        "SparseAttention",
        [*inputs, *(f"past_{part}" for part in scales), "total_length"],
        ["y", *(f"present_{part}" for part in cache + scales)],
        list(shape.attributes),
    )


def _float_attention(writer: NodeWriter, shape: AttentionShape, floats: int, joint: bool) -> None:
    results, types = ["y", "present_key", "present_value"], [TensorProto.FLOAT, floats, floats]

    def dense(inner: NodeWriter) -> list[str]:
        return _dense(inner, shape, joint)

    def chosen(inner: NodeWriter) -> list[str]:
        single = inner.op("Equal", inner.op("Shape", "qkv", start=1, end=2), inner.ints(1))
        names = [inner.name(part) for part in ("attended", "keys", "values")]
        return inner.branch(single, lambda one: gathered_attention.write(one, shape), dense, names, types)

    writer.branch(writer.nonempty("kv_pages"), chosen, dense, results, types)


def _dense(writer: NodeWriter, shape: AttentionShape, joint: bool) -> list[str]:
    """Attention that reads every token: names of y and of the new keys and values."""
    if shape.softcap:  # WebGPU's GroupQueryAttention leaves out the cap
        return _masked(writer, shape)
    op, name = writer.op, writer.name
    every, key, value = name("attended"), name("appended_key"), name("appended_value")
    rotates = shape.rotary_dim > 0 and shape.rotary_dim % _FUSED_ROTARY == 0
    further: dict[str, Any] = {"local_window_size": Ref(WINDOW)} if shape.windowed else {}
    query, tables = _rounded(writer, shape, joint) if rotates else _rounded_after_rotation(writer, shape)
    op(
        "GroupQueryAttention",
        *(*query, "past_key", "past_value", op("Sub", "total_length", writer.const([1], np.int32)), "total_length"),
        *tables,
        out=[every, key, value],
        domain="com.microsoft",
        num_heads=shape.num_heads,
        kv_num_heads=shape.kv_heads,
        scale=shape.softmax_scale,
        do_rotary=int(rotates),
        **further,
    )
    return [op("Cast", every, to=TensorProto.FLOAT), key, value]


def _masked(writer: NodeWriter, shape: AttentionShape) -> list[str]:
    """The same in plain operators, over the whole cache: what a token does not see is masked."""
    op, const, ints = writer.op, writer.const, writer.ints
    heads, kv_heads, size = shape.num_heads, shape.kv_heads, shape.head_dim
    ones = op("Expand", const(1.0), op("Shape", "qkv", start=1, end=2))
    past = op("Cast", "past_length", to=TensorProto.FLOAT)
    positions = op("Add", op("CumSum", ones, const(0, np.int64)), op("Sub", past, const(1.0)))  # [S]

    qk, v, q, k = (writer.name(part) for part in ("qk", "v", "q", "k"))
    widths = [count * size for count in (heads + kv_heads, kv_heads, heads)]
    op("Split", "qkv", ints(*widths[:2]), out=[qk, v], axis=-1)
    op("Split", rotated(writer, qk, heads + kv_heads, shape), ints(widths[2], widths[1]), out=[q, k], axis=-1)
    places = op("Mul", op("Reshape", positions, ints(1, 1, -1, 1)), const(np.ones((1, kv_heads, 1, size))))
    places = op("Cast", places, to=TensorProto.INT64)

    def by_head(x: str, count: int) -> str:
        return op("Transpose", op("Reshape", x, ints(0, 0, count, size)), perm=[0, 2, 1, 3])

    def appended(new: str, cache: str) -> str:
        return op("ScatterElements", cache, places, op("CastLike", by_head(new, kv_heads), cache), axis=2)

    keys, values = appended(k, "past_key"), appended(v, "past_value")
    # query rows are grouped by KV head; row g * S + s is at position s. Keys come first, so that they stay as they lie
    rows = op("Reshape", op("Mul", by_head(q, heads), const(shape.softmax_scale)), ints(1, kv_heads, -1, size))
    logits = _transposed(writer, op("MatMul", keys, _transposed(writer, op("CastLike", rows, keys))))
    logits = capped(writer, op("Cast", logits, to=TensorProto.FLOAT), shape)  # [1, Hk, G S, C]
    at = op("Reshape", op("Mul", positions, const(np.ones((shape.group, 1)))), ints(-1, 1))
    token = op("Sub", _count(writer, op("Shape", "past_key", start=2, end=3)), const(1.0))
    seen = op("LessOrEqual", token, at)  # [G S, C]
    if shape.windowed:
        seen = op("And", seen, op("LessOrEqual", first_seen(writer, at), token))
    weights = op("Softmax", op("Where", seen, logits, const(NEVER)), axis=-1)
    y = op("Cast", op("MatMul", op("CastLike", weights, values), values), to=TensorProto.FLOAT)
    y = op("Transpose", op("Reshape", y, ints(1, heads, -1, size)), perm=[0, 2, 1, 3])
    return [op("Reshape", y, ints(0, 0, heads * size)), keys, values]


def _rounded(writer: NodeWriter, shape: AttentionShape, joint: bool) -> tuple[list[str], list[str]]:
    """Inputs of a GroupQueryAttention that rotates: q, k and v, and the tables, in the type of the cache."""
    qkv, cos, sin = (writer.op("CastLike", name, "past_key") for name in ("qkv", "cos", "sin"))
    if joint:
        return [qkv, "", ""], [cos, sin]
    sizes = [heads * shape.head_dim for heads in (shape.num_heads, shape.kv_heads, shape.kv_heads)]
    writer.op("Split", qkv, writer.ints(*sizes), out=["q", "k", "v"], axis=-1)
    return ["q", "k", "v"], [cos, sin]


def _rounded_after_rotation(writer: NodeWriter, shape: AttentionShape) -> tuple[list[str], list[str]]:
    """Inputs of a GroupQueryAttention that does not rotate: q, k and v in the cache's type, rotated in float32."""
    op, ints = writer.op, writer.ints
    heads, kv_heads = shape.num_heads, shape.kv_heads
    sizes = [count * shape.head_dim for count in (heads + kv_heads, kv_heads, heads)]
    op("Split", "qkv", ints(*sizes[:2]), out=["qk", "v"], axis=-1)
    op("Split", rotated(writer, "qk", heads + kv_heads, shape), ints(sizes[2], sizes[1]), out=["q", "k"], axis=-1)
    return [op("CastLike", name, "past_key") for name in ("q", "k", "v")], []


def _int8_attention(writer: NodeWriter, shape: AttentionShape) -> None:
    op, const, ints = writer.op, writer.const, writer.ints
    kv_heads, heads = shape.kv_heads, shape.num_heads
    past = op("Cast", "past_length", to=TensorProto.FLOAT)
    ones = op("Expand", const(1.0), op("Shape", "qkv", start=1, end=2))
    positions = op("Add", op("CumSum", ones, const(0, np.int64)), op("Sub", past, const(1.0)))  # [S]
    newest = op("Slice", positions, ints(-1), ints(END))

    # q [1, H, S, D], k and v [1, Hk, S, D]
    split = op("Reshape", "qkv", ints(0, 0, heads + 2 * kv_heads, shape.head_dim))
    split = op("Transpose", split, perm=[0, 2, 1, 3])
    qk = op("Split", split, ints(heads + kv_heads, kv_heads), out=["qk", "v"], axis=1)
    op("Split", rotated(writer, qk, heads + kv_heads, shape), ints(heads, kv_heads), out=["q", "k"], axis=1)
    rows = _scatter_rows(writer, positions, kv_heads)
    for new, side in (("k", "key"), ("v", "value")):
        rounded, scale = _codes(writer, new)
        op("ScatterND", f"past_{side}_scale", rows, scale, out=f"present_{side}_scale")
        op("ScatterND", f"past_{side}", rows, rounded, out=f"present_{side}")
    keys, values = (op("Cast", f"present_{part}", to=TensorProto.FLOAT) for part in ("key", "value"))
    key_scale, value_scale = (_scale_row(writer, f"present_{part}_scale") for part in ("key", "value"))

    # query rows are grouped by KV head, [1, Hk, group * S, D]; row g * S + s is at position s
    q = op("Reshape", op("Mul", "q", const(shape.softmax_scale)), ints(1, kv_heads, -1, shape.head_dim))
    logits = capped(writer, op("Mul", op("MatMul", q, _transposed(writer, keys)), key_scale), shape)
    at = op("Reshape", op("Mul", positions, const(np.ones((shape.group, 1)))), ints(-1, 1))
    token = _count(writer, op("Shape", logits, start=3, end=4))
    place = op("Sub", token, const(1.0))
    causal = op("LessOrEqual", place, at)  # [rows, C]
    if shape.windowed:
        causal = op("And", causal, op("LessOrEqual", first_seen(writer, at), place))

    def chosen(inner: NodeWriter) -> str:
        kept = _kept(inner, shape, logits, newest)  # has a meaning only if there is one new token
        single = inner.op("LessOrEqual", inner.op("Sub", newest, past), inner.const(0.0))
        several = inner.op("Not", single)
        return inner.op("And", causal, inner.op("Or", kept, several))

    seen = writer.where_any("kv_pages", chosen, lambda inner: inner.op("Identity", causal))
    weights = op("Softmax", op("Where", seen, logits, const(NEVER)), axis=-1)
    y = op("MatMul", op("Mul", weights, value_scale), values)
    y = op("Transpose", op("Reshape", y, ints(1, heads, -1, shape.head_dim)), perm=[0, 2, 1, 3])
    op("Reshape", y, ints(0, 0, heads * shape.head_dim), out="y")


def _kept(writer: NodeWriter, shape: AttentionShape, logits: str, newest: str) -> str:
    """Marks the tokens that a single new token reads, bool [1, Hk, 1, C]. Valid only if S = 1.

    Args:
        logits: scores of all query heads, with the softmax scale, float [1, Hk, group * S, C].
        newest: the new token's position, float [1].
    """
    op, const, ints = writer.op, writer.const, writer.ints
    newest_page = op("Floor", op("Mul", newest, const(1 / PAGE_SIZE)))
    token = _count(writer, op("Shape", logits, start=3, end=4))  # 1-based, [C]
    old = op("Mul", newest_page, const(float(PAGE_SIZE)))
    is_old, first = op("LessOrEqual", token, old), ""
    if shape.windowed:
        first = first_seen(writer, newest)
        is_old = op("And", is_old, op("Less", first, token))
    shares = op("Softmax", op("Where", is_old, logits, const(NEVER)), axis=-1)
    scores = op("ReduceSum", shares, ints(2), keepdims=1)
    scores = op("Where", op("LessOrEqual", const(_LOWEST_SCORE), scores), scores, const(0.0))
    scores = op("Reshape", op("Where", is_old, scores, const(-1.0)), ints(1, -1))  # [1, Hk C]
    pairs = op("Shape", scores, start=1, end=2)
    order = writer.name("order")
    op("TopK", scores, pairs, out=[f"{order}_scores", order], axis=-1)
    pages = writer.count("kv_pages")
    if shape.windowed:
        pages = window_share(writer, pages, first, old)
    kept = op("Mul", pages, const(float(PAGE_SIZE * shape.kv_heads)))
    by_rank = op("Where", op("LessOrEqual", _count(writer, pairs), kept), const(_ALL), const(float(shape.sinks)))
    # a token is read if its 1-based position is at most this limit: any for kept ones, that of the sinks for others
    limit = op("ScatterElements", scores, order, op("Unsqueeze", by_rank, ints(0)), axis=1)
    limit = op("Where", is_old, op("Reshape", limit, ints(1, shape.kv_heads, 1, -1)), const(_ALL))
    return op("LessOrEqual", token, op("Min", limit, op("Add", newest, const(1.0))))


def _count(writer: NodeWriter, size: str) -> str:
    """1, 2, … `size` as float [size]; `size` is int64 [1]. CumSum in float32 is exact below 2**24."""
    return writer.op("CumSum", writer.op("Expand", writer.const(1.0), size), writer.const(0, np.int64))


def _scatter_rows(writer: NodeWriter, index: str, kv_heads: int) -> str:
    """Indices of the rows (0, head, index) of a cache, int64 [1, Hk, n, 3], for `index` float [n]."""
    column = writer.op("Mul", writer.op("Unsqueeze", index, writer.ints(1)), writer.const([0.0, 0.0, 1.0]))
    heads = np.zeros((1, kv_heads, 1, 3))
    heads[0, :, 0, 1] = np.arange(kv_heads)
    return writer.op("Cast", writer.op("Add", column, writer.const(heads)), to=TensorProto.INT64)


def _codes(writer: NodeWriter, x: str) -> tuple[str, str]:
    """Quantizes rows of x float [1, Hk, S, D]: int8 codes of the same shape, and float16 scales [1, Hk, S]."""
    op, const = writer.op, writer.const
    largest = op("ReduceMax", op("Abs", x), writer.ints(3), keepdims=1)
    scale = op("Cast", op("Div", largest, const(_LARGEST_KV_CODE)), to=TensorProto.FLOAT16)
    step = op("Cast", scale, to=TensorProto.FLOAT)
    steps = op("Clip", op("Div", x, op("Max", step, const(_TINY))), const(-_LARGEST_KV_CODE), const(_LARGEST_KV_CODE))
    codes = op("Where", op("Equal", step, const(0.0)), const(0.0), op("Round", steps))
    return op("Cast", codes, to=TensorProto.INT8), op("Squeeze", scale, writer.ints(3))


def _scale_row(writer: NodeWriter, scale: str) -> str:
    """Scales float16 [1, Hk, C] -> float [1, Hk, 1, C]."""
    return writer.op("Unsqueeze", writer.op("Cast", scale, to=TensorProto.FLOAT), writer.ints(2))


def _transposed(writer: NodeWriter, x: str) -> str:
    """x [1, Hk, n, D] -> [1, Hk, D, n]."""
    return writer.op("Transpose", x, perm=[0, 1, 3, 2])
