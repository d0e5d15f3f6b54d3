"""Attention of one new token to chosen old ones, for providers without kernels: it gathers what it attends to.

All keys are read once, for the scores; the kept keys and all that is read of the values are gathered rows. Which they
are is found without a sort of all pairs of KV head and token, which takes WebGPU a hundred dispatches: pairs are dealt
out to rows that it sorts in one, and each row's best are kept: at the margin others than the best of all.

How many are gathered of a row is the attribute `gather_capacity`, for WebGPU has to know sizes when it is told to
compute, and the count `kv_pages` lies on the GPU. What depends on the position alone is the same in all layers, and is
written so that ONNX Runtime sees it: from the length of the cache and constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from sol_rt.bundle.config import PAGE_SIZE
from sol_rt.engine.signature import GATHER_CAPACITY
from sol_rt.export.graphs.functions.attention_shape import NEVER, AttentionShape, rotated
from sol_rt.export.graphs.nodes import NodeWriter, Ref

_NOBODY = -1.0  # KV head of a pair that is not attended
_ALL = 1e9  # more than all pairs


@dataclass(frozen=True)
class _Pairs:
    """Names of tensors on pairs of KV head h and token t, dealt to rows: with R rows in use, t goes to row t mod R.

    Attributes:
        place: float [C / row_tokens, pairs of a row], h C + t; rows that are not in use hold places of others.
        index: the same in int64.
        head: float of the same shape, h of an old token that is no sink; _NOBODY else, and in rows that are not in use.
        young: bool [C], of each token whether it is not old.
        position, old, capacity: float [1], where the new token goes, how many are old, and C.
        rows: float [1], R: enough for the old tokens, and at least capacity_step / row_tokens.
        row: float [C / row_tokens, 1], the row's number.
    """

    place: str
    index: str
    head: str
    young: str
    position: str
    old: str
    capacity: str
    rows: str
    row: str


def write(writer: NodeWriter, shape: AttentionShape) -> list[str]:
    """Names of y float [1, 1, H D] and of the cache with the new token in it, keys and values [1, Hk, C, D].

    The nodes read the operator's inputs; `qkv` holds one token. C has to be a multiple of `capacity_step`.
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
    own = op("Equal", head, writer.const(np.arange(kv_heads).reshape(-1, 1, 1)))  # [Hk, 1, n]
    logits = op("Where", own, op("Reshape", logits, ints(kv_heads, group, -1)), writer.const(NEVER))
    weights = op("Reshape", op("Softmax", logits, axis=-1), ints(heads, -1))
    return [op("Reshape", op("MatMul", weights, v), ints(1, 1, heads * size)), keys, values]


def _appended(writer: NodeWriter, shape: AttentionShape, new: str, past: str) -> str:
    """The cache with a row in it: in place where a host binds one buffer to both."""
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
    young = op("LessOrEqual", old, every)

    rows = op("Floor", op("Mul", op("Add", old, const(row_tokens - 0.5)), const(1 / row_tokens)))
    rows = op("Max", rows, const(float(shape.capacity_step // row_tokens)))
    used = op("Unsqueeze", op("Less", row, rows), ints(2))
    token = op("Add", op("Mul", const(np.arange(row_tokens)), rows), op("Unsqueeze", row, ints(2)))
    head = const(np.arange(shape.kv_heads)[:, None])
    place = op("Add", op("Mul", head, capacity), token)
    choosable = op("And", op("Less", token, old), op("LessOrEqual", const(float(shape.sinks)), token))
    head = op("Where", op("And", choosable, used), head, const(_NOBODY))
    place, head = (op("Reshape", table, ints(-1, shape.row_pairs)) for table in (place, head))
    return _Pairs(place, op("Cast", place, to=TensorProto.INT64), head, young, position, old, capacity, rows, row)


def _scores(writer: NodeWriter, shape: AttentionShape, q: str, keys: str, pairs: _Pairs) -> str:
    """The shares of the old tokens, added up over a group's heads, float as `pairs.place`; 0 for others.

    q: float [1, Hk, group, D], scaled.
    """
    op, ints = writer.op, writer.ints
    # keys first: the other way round they would have to be transposed
    q = op("CastLike", op("Transpose", q, perm=[0, 1, 3, 2]), keys)
    logits = op("Transpose", op("MatMul", keys, q), perm=[0, 1, 3, 2])
    logits = op("Cast", logits, to=TensorProto.FLOAT)  # [1, Hk, group, C]
    shares = op("Softmax", op("Where", pairs.young, writer.const(NEVER), logits), axis=-1)
    scores = op("ReduceSum", shares, ints(2), keepdims=0) if shape.group > 1 else shares
    return op("Gather", op("Reshape", scores, ints(-1)), pairs.index, axis=0)


def _kept(writer: NodeWriter, shape: AttentionShape, scores: str, pairs: _Pairs) -> tuple[str, str]:
    """Places and KV heads of the best pairs of every row, float [C / row_tokens * room] each; a head is _NOBODY where
    it does not attend.

    Ranks are shared out among the rows in use one by one, so that the kept ones are as many as `kv_pages` tells.
    """
    op, const, ints = writer.op, writer.const, writer.ints
    room = op("Reshape", op("Constant", value_int=Ref(GATHER_CAPACITY)), ints(1))
    order = writer.name("order")
    op("TopK", scores, room, out=[f"{order}_scores", order], axis=-1)
    place, head = (op("GatherElements", table, order, axis=1) for table in (pairs.place, pairs.head))
    rank = op("Sub", op("CumSum", op("Expand", const(1.0), room), const(0, np.int64)), const(1.0))  # in a row
    rank = op("Add", op("Mul", rank, pairs.rows), pairs.row)
    most = op("Mul", pairs.old, const(float(shape.kv_heads)))
    kept = op("Mul", writer.count("kv_pages"), const(float(PAGE_SIZE * shape.kv_heads)))
    kept = op("Where", op("Less", kept, most), kept, const(_ALL))
    head = op("Where", op("Less", rank, kept), head, const(_NOBODY))
    return op("Reshape", place, ints(-1)), op("Reshape", head, ints(-1))


def _always(writer: NodeWriter, shape: AttentionShape, pairs: _Pairs) -> tuple[str, str]:
    """As of `_kept`, the sinks and the tokens of the newest page."""
    op, const, ints = writer.op, writer.const, writer.ints
    sinks = np.arange(shape.sinks + PAGE_SIZE) < shape.sinks
    token = op("Concat", const(np.arange(shape.sinks)), op("Add", pairs.old, const(np.arange(PAGE_SIZE))), axis=0)
    # the last one of each that is attended: an old one of the sinks, any up to the new one of the newest page
    before = op("Sub", op("Sub", pairs.old, const(1.0)), pairs.position)
    last = op("Add", pairs.position, op("Mul", const(sinks), before))
    attended = op("LessOrEqual", token, last)  # places beyond the cache there are none: it is whole pages
    head = const(np.arange(shape.kv_heads)[:, None])
    place = op("Add", op("Mul", head, pairs.capacity), token)
    head = op("Where", attended, head, const(_NOBODY))
    return op("Reshape", place, ints(-1)), op("Reshape", head, ints(-1))
