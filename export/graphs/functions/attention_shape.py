"""The sizes of attention, and rotation by position, for every form of its function body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from sol_rt.bundle.config import PAGE_SIZE, KvLayout
from sol_rt.engine.signature import GATHER_CAPACITY
from sol_rt.export.graphs.nodes import NodeWriter, Ref
from sol_rt.export.sources.decoder import MOST_KV_HEADS, Decoder

WINDOW, NO_WINDOW = "window", -1
"""The attribute that says how many tokens a layer attends to, and its value in layers that attend to all."""
NEVER = -1e30
"""The score of a key that is not read. It is finite, so that a softmax over such scores gives no NaN."""
_EVERY = 1e9  # longer than every context
_SORTED_AT_ONCE = MOST_KV_HEADS
"""WebGPU's TopK sorts up to this many numbers in one dispatch, and more in dozens of them."""


@dataclass(frozen=True)
class AttentionShape:
    """The attributes of `SparseAttention` except the page size, and the step by which caches grow, in tokens.

    Attributes:
        windowed: some layers attend to the tokens of a window only. Their nodes say how many these are.
        softcap: the soft cap on the products of q and k; 0: none.
    """

    num_heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    sinks: int
    softmax_scale: float
    capacity_step: int
    windowed: bool = False
    softcap: float = 0.0

    @classmethod
    def of(cls, decoder: Decoder, kv: KvLayout) -> AttentionShape:
        """The shape of a decoder's attention."""
        return cls(
            decoder.num_heads,
            decoder.num_kv_heads,
            decoder.head_dim,
            0 if decoder.qk_norm_after_rope else decoder.rotary_dim,
            kv.sinks,
            decoder.softmax_scale,
            kv.capacity_step,
            bool(decoder.windows),
            decoder.attention_cap,
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """The operator's attributes. With this `gather_capacity` a body can gather every pair.

        `window` and `softcap` are left out where no layer has them.
        """
        return {
            "num_heads": self.num_heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rotary_dim": self.rotary_dim,
            "page_size": PAGE_SIZE,
            "sinks": self.sinks,
            "softmax_scale": self.softmax_scale,
            GATHER_CAPACITY: self.row_pairs,
            **({WINDOW: NO_WINDOW} if self.windowed else {}),
            **({"softcap": self.softcap} if self.softcap else {}),
        }

    @property
    def group(self) -> int:
        """The number of query heads that share one KV head."""
        return self.num_heads // self.kv_heads

    @property
    def row_tokens(self) -> int:
        """The number of tokens whose pairs of KV head and token form a row, which bodies sort at once
        (docs/design/function-bodies.md)."""
        fitting = [n for n in range(1, self.capacity_step + 1) if n * self.kv_heads <= _SORTED_AT_ONCE]
        return max(n for n in fitting if self.capacity_step % n == 0)

    @property
    def row_pairs(self) -> int:
        """The number of pairs in a row."""
        return self.row_tokens * self.kv_heads


def rotated(writer: NodeWriter, x: str, heads: int, shape: AttentionShape) -> str:
    """Rotates x float [1, heads, S, D] or [1, S, heads * D], whose first token is at position `past_length`."""
    if shape.rotary_dim == 0:
        return x
    return writer.op(
        "RotaryEmbedding",
        *(x, "past_length", "cos", "sin"),
        domain="com.microsoft",
        num_heads=heads,
        rotary_embedding_dim=0 if shape.rotary_dim == shape.head_dim else shape.rotary_dim,
    )


def capped(writer: NodeWriter, scores: str, shape: AttentionShape) -> str:
    """Scores under the soft cap, if there is one."""
    if not shape.softcap:
        return scores
    inner = writer.op("Tanh", writer.op("Mul", scores, writer.const(1 / shape.softcap)))
    return writer.op("Mul", inner, writer.const(shape.softcap))


def first_seen(writer: NodeWriter, position: str) -> str:
    """The first position in the window of a token at `position`, float of the same shape: below 0 without a window."""
    op, const = writer.op, writer.const
    window = op("Cast", op("Reshape", op("Constant", value_int=Ref(WINDOW)), writer.ints(1)), to=TensorProto.FLOAT)
    window = op("Where", op("Less", const(0.0), window), window, const(_EVERY))
    return op("Sub", position, op("Sub", window, const(1.0)))


def window_share(writer: NodeWriter, pages: str, first: str, old: str) -> str:
    """Number of old pages that a layer with a window reads, float [1]: `pages` * old pages in the window / all old
    pages.

    Rounded up.

    Args:
        pages: float [1].
        first: the window's first position, float [1], which may be below 0.
        old: the number of old tokens, float [1].
    """
    op, const = writer.op, writer.const
    of_all = op("Max", op("Mul", old, const(1 / PAGE_SIZE)), const(1.0))
    before = op("Floor", op("Mul", op("Max", first, const(0.0)), const(1 / PAGE_SIZE)))
    share = op("Mul", pages, op("Sub", of_all, before))
    return op("Floor", op("Div", op("Add", share, op("Sub", of_all, const(0.5))), of_all))
