"""The sizes of attention, and rotation by position, for every form of its function body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sol_rt.bundle.config import PAGE_SIZE, KvLayout
from sol_rt.engine.signature import GATHER_CAPACITY
from sol_rt.export.graphs.nodes import NodeWriter
from sol_rt.export.sources.decoder import MOST_KV_HEADS, Decoder

NEVER = -1e30
"""The score of a key that is not read. It is finite, so that a softmax over such scores gives no NaN."""
_SORTED_AT_ONCE = MOST_KV_HEADS
"""WebGPU's TopK sorts up to this many numbers in one dispatch, and more in dozens of them."""


@dataclass(frozen=True)
class AttentionShape:
    """The attributes of `SparseAttention` except the page size, and the step by which caches grow, in tokens."""

    num_heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    sinks: int
    softmax_scale: float
    capacity_step: int

    @classmethod
    def of(cls, decoder: Decoder, kv: KvLayout) -> AttentionShape:
        """The shape of a decoder's attention."""
        return cls(
            decoder.num_heads,
            decoder.num_kv_heads,
            decoder.head_dim,
            decoder.rotary_dim,
            kv.sinks,
            decoder.softmax_scale,
            kv.capacity_step,
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """The operator's attributes. With this `gather_capacity` a body can gather every pair."""
        return {
            "num_heads": self.num_heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rotary_dim": self.rotary_dim,
            "page_size": PAGE_SIZE,
            "sinks": self.sinks,
            "softmax_scale": self.softmax_scale,
            GATHER_CAPACITY: self.row_pairs,
        }

    @property
    def group(self) -> int:
        """The number of query heads that share one KV head."""
        return self.num_heads // self.kv_heads

    @property
    def row_tokens(self) -> int:
        """The number of tokens whose pairs of KV head and token form a row, which bodies sort at once
        (docs/function-bodies.md)."""
        fitting = [n for n in range(1, self.capacity_step + 1) if n * self.kv_heads <= _SORTED_AT_ONCE]
        return max(n for n in fitting if self.capacity_step % n == 0)

    @property
    def row_pairs(self) -> int:
        """The number of pairs in a row."""
        return self.row_tokens * self.kv_heads


def rotated(writer: NodeWriter, x: str, heads: int, shape: AttentionShape) -> str:
    """Rotates x float [1, heads, S, D] or [1, S, heads * D], whose first token is at position `past_length`."""
    return writer.op(
        "RotaryEmbedding",
        *(x, "past_length", "cos", "sin"),
        domain="com.microsoft",
        num_heads=heads,
        rotary_embedding_dim=0 if shape.rotary_dim == shape.head_dim else shape.rotary_dim,
    )
