"""Attention of one new token to chosen old tokens, for providers without kernels: it gathers the rows that it reads.

It reads all keys once, to score them. Then it gathers the keys and values of the chosen pairs of KV head and token, and
computes attention over these.

Sorting all pairs would take WebGPU a hundred dispatches. Instead the pairs are dealt to rows short enough to be sorted
in one dispatch, and the best of each row are kept. At the margin these differ from the best of all.

The attribute `gather_capacity` says how many pairs of a row are gathered: WebGPU has to know sizes on the host, and the
count `kv_pages` lies on the GPU. Values that depend on the position alone are the same in all layers. They are computed
from constants and the length of the cache, so that ONNX Runtime can share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from sol_rt.bundle.config import PAGE_SIZE
from sol_rt.engine.signature import GATHER_CAPACITY
from sol_rt.export.graphs.functions.attention_shape import (
    NEVER,
    AttentionShape,
    capped,
    first_seen,
    rotated,
    window_share,
)
from sol_rt.export.graphs.nodes import NodeWriter, Ref

_NOBODY = -1.0  # stands for the KV head of a pair that is not read
_ALL = 1e9  # larger than the number of all pairs


@dataclass(frozen=True)
class _Pairs:
    """Names of tensors that describe the pairs of KV head h and token t. With R rows in use, t goes to row t mod R.

    Attributes:
        place: h C + t, float [C / row_tokens, pairs of a row]. Rows not in use hold places of other rows.
        index: the same as int64.
        head: h if the token is old, no sink and in the window, else _NOBODY, as in rows not in use. Float, shaped as
            `place`.
        young: whether a token is not old, bool [C].
        before: whether it is before the window, bool [C]; empty if no layer has a window.
        position, old, capacity: the new token's position, the number of old tokens, and C; float [1] each.
        rows: R, float [1]: enough for the old tokens, and at least capacity_step / row_tokens.
        row: the row's number, float [C / row_tokens, 1].
        first: the window's first position, float [1], which may be below 0; empty if no layer has a window.
    """

    place: str
    index: str
    head: str
    young: str
    before: str
    position: str
    old: str
    capacity: str
    rows: str
    row: str
    first: str


def write(writer: NodeWriter, shape: AttentionShape) -> list[str]:
    """Writes the nodes, which read the operator's inputs; `qkv` holds one token, and C is a multiple of
    `capacity_step`.

    Returns the names of y, float [1, 1, H D], and of the keys and values with the new token, [1, Hk, C, D] each.
    """
    op, ints = writer.op, writer.ints
    heads, kv_heads, group, size = shape.num_heads, shape.kv_heads, shape.group, shape.head_dim
    widths = [count * size for count in (heads + kv_heads, kv_heads, heads)]
    qk, q, k, v = (writer.name(part) for part in ("qk", "q", "k", "v"))
    op("Split", "qkv", ints(*widths[:2]), out=[qk, v], axis=-1)
    op("Split", rotated(writer, qk, heads + kv_heads, shape), ints(widths[2], widths[1]), out=[q, k], axis=-1)
    keys, values = (_appended(writer, shape, new, f"past_{part}") for new, part in ((k, "key"), (v, "value")))
    q = op("Reshape", op("Mul", q, writer.const(shape.softmax_scale)), ints(1, kv_heads, group, size))

    pairs = _pairs(writer, shape)
    place, head = _kept(writer, shape, _scores(writer, shape, q, keys, pairs), pairs)
    others, other_heads = _always(writer, shape, pairs)
    index = op("Cast", op("Concat", place, others, axis=0), to=TensorProto.INT64)
    head = op("Concat", head, other_heads, axis=0)  # [n]
    k, v = (
        op("Cast", op("Gather", op("Reshape", cache, ints(-1, size)), index, axis=0), to=TensorProto.FLOAT)
        for cache in (keys, values)
    )
    logits = op("Gemm", op("Reshape", q, ints(heads, size)), k, transB=1)  # [H, n]
    logits = capped(writer, logits, shape)
    own = op("Equal", head, writer.const(np.arange(kv_heads).reshape(-1, 1, 1)))  # [Hk, 1, n]
    logits = op("Where", own, op("Reshape", logits, ints(kv_heads, group, -1)), writer.const(NEVER))
    weights = op("Reshape", op("Softmax", logits, axis=-1), ints(heads, -1))
    return [op("Reshape", op("MatMul", weights, v), ints(1, 1, heads * size)), keys, values]


def _appended(writer: NodeWriter, shape: AttentionShape, new: str, past: str) -> str:
    """The cache with the new token's row in it. Happens in place if the host binds past and present to one buffer."""
    op, size = writer.op, [1, shape.kv_heads, 1, shape.head_dim]
    row = op("CastLike", op("Reshape", new, writer.ints(*size)), past)
    at = op("Expand", op("Reshape", "past_length", writer.ints(1, 1, 1, 1)), writer.ints(*size))
    return op("ScatterElements", past, at, row, out=writer.name("appended"), axis=2)


def _pairs(writer: NodeWriter, shape: AttentionShape) -> _Pairs:
    op, const, ints = writer.op, writer.const, writer.ints
    row_tokens = shape.row_tokens
    in_rows = op("Reshape", op("Expand", const(1.0), op("Shape", "past_key", start=2, end=3)), ints(-1, row_tokens))
    ones = op("Expand", const(1.0), op("Shape", in_rows, start=0, end=1))
    capacity = op("Mul", op("ReduceSum", ones, ints(0), keepdims=1), const(float(row_tokens)))
    row = op("Unsqueeze", op("Sub", op("CumSum", ones, const(0, np.int64)), const(1.0)), ints(1))
    position = op("Cast", "past_length", to=TensorProto.FLOAT)
    old = op("Mul", op("Floor", op("Mul", position, const(1 / PAGE_SIZE))), const(float(PAGE_SIZE)))
    every = op("Reshape", op("Add", op("Mul", row, const(float(row_tokens))), const(np.arange(row_tokens))), ints(-1))
    young, before, first = op("LessOrEqual", old, every), "", ""
    if shape.windowed:
        first = first_seen(writer, position)
        before = op("Less", every, first)

    rows = op("Floor", op("Mul", op("Add", old, const(row_tokens - 0.5)), const(1 / row_tokens)))
    rows = op("Max", rows, const(float(shape.capacity_step // row_tokens)))
    used = op("Unsqueeze", op("Less", row, rows), ints(2))
    token = op("Add", op("Mul", const(np.arange(row_tokens)), rows), op("Unsqueeze", row, ints(2)))
    head = const(np.arange(shape.kv_heads)[:, None])
    place = op("Add", op("Mul", head, capacity), token)
    choosable = op("And", op("Less", token, old), op("LessOrEqual", const(float(shape.sinks)), token))
    if shape.windowed:
        choosable = op("And", choosable, op("LessOrEqual", first, token))
    head = op("Where", op("And", choosable, used), head, const(_NOBODY))
    place, head = (op("Reshape", table, ints(-1, shape.row_pairs)) for table in (place, head))
    return _Pairs(
        place, op("Cast", place, to=TensorProto.INT64), head, young, before, position, old, capacity, rows, row, first
    )


def _scores(writer: NodeWriter, shape: AttentionShape, q: str, keys: str, pairs: _Pairs) -> str:
    """The score of every pair: the softmax shares that a group's query heads give the token, added up.

    `q` is float [1, Hk, group, D], with the softmax scale. Returns float, shaped as `pairs.place`; 0 for tokens that
    are not old.
    """
    op, ints = writer.op, writer.ints
    # keys come first in the product; otherwise the whole cache would have to be transposed
    q = op("CastLike", op("Transpose", q, perm=[0, 1, 3, 2]), keys)
    logits = op("Transpose", op("MatMul", keys, q), perm=[0, 1, 3, 2])
    logits = capped(writer, op("Cast", logits, to=TensorProto.FLOAT), shape)  # [1, Hk, group, C]
    logits = op("Where", pairs.young, writer.const(NEVER), logits)
    if shape.windowed:  # WebGPU has no Or
        logits = op("Where", pairs.before, writer.const(NEVER), logits)
    shares = op("Softmax", logits, axis=-1)
    scores = op("ReduceSum", shares, ints(2), keepdims=0) if shape.group > 1 else shares
    return op("Gather", op("Reshape", scores, ints(-1)), pairs.index, axis=0)


def _kept(writer: NodeWriter, shape: AttentionShape, scores: str, pairs: _Pairs) -> tuple[str, str]:
    """Places and KV heads of the best pairs of every row, float [C / row_tokens * gather_capacity] each.

    The head of a pair that is not read is _NOBODY. Every row in use gives its best pair, then every row its second, and
    so on, until there are as many as `kv_pages` says.
    """
    op, const, ints = writer.op, writer.const, writer.ints
    gathered = op("Reshape", op("Constant", value_int=Ref(GATHER_CAPACITY)), ints(1))
    order = writer.name("order")
    op("TopK", scores, gathered, out=[f"{order}_scores", order], axis=-1)
    place, head = (op("GatherElements", table, order, axis=1) for table in (pairs.place, pairs.head))
    rank = op("Sub", op("CumSum", op("Expand", const(1.0), gathered), const(0, np.int64)), const(1.0))  # in a row
    rank = op("Add", op("Mul", rank, pairs.rows), pairs.row)
    most = op("Mul", pairs.old, const(float(shape.kv_heads)))
    pages = writer.count("kv_pages")
    if shape.windowed:
        pages = window_share(writer, pages, pairs.first, pairs.old)
        before = op("Max", pairs.first, const(0.0))
        most = op("Mul", op("Sub", pairs.old, before), const(float(shape.kv_heads)))
    kept = op("Mul", pages, const(float(PAGE_SIZE * shape.kv_heads)))
    kept = op("Where", op("Less", kept, most), kept, const(_ALL))
    head = op("Where", op("Less", rank, kept), head, const(_NOBODY))
    return op("Reshape", place, ints(-1)), op("Reshape", head, ints(-1))


def _always(writer: NodeWriter, shape: AttentionShape, pairs: _Pairs) -> tuple[str, str]:
    """Places and KV heads of the pairs that are always read, those of the sinks and of the newest page."""
    op, const, ints = writer.op, writer.const, writer.ints
    sinks = np.arange(shape.sinks + PAGE_SIZE) < shape.sinks
    token = op("Concat", const(np.arange(shape.sinks)), op("Add", pairs.old, const(np.arange(PAGE_SIZE))), axis=0)
    # sinks are read up to the last old token, tokens of the newest page up to the new one
    before = op("Sub", op("Sub", pairs.old, const(1.0)), pairs.position)
    last = op("Add", pairs.position, op("Mul", const(sinks), before))
    attended = op("LessOrEqual", token, last)  # the cache holds whole pages, so no place is beyond it
    if shape.windowed:
        attended = op("And", attended, op("LessOrEqual", pairs.first, token))
    head = const(np.arange(shape.kv_heads)[:, None])
    place = op("Add", op("Mul", head, pairs.capacity), token)
    head = op("Where", attended, head, const(_NOBODY))
    return op("Reshape", place, ints(-1)), op("Reshape", head, ints(-1))
