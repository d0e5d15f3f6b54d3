"""What both ways to write attention's function body share: sizes, and rotation by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sol_rt.bundle.config import PAGE_SIZE, KvLayout
from sol_rt.engine.signature import GATHER_CAPACITY
from sol_rt.export.graphs.nodes import NodeWriter
from sol_rt.export.sources.decoder import MOST_KV_HEADS, Decoder

NEVER = -1e30
"""Score of a key that is not attended: finite, so that no NaN arises."""
_SORTED_AT_ONCE = MOST_KV_HEADS
"""WebGPU's TopK sorts so many numbers in one dispatch, and more of them in dozens."""


@dataclass(frozen=True)
class AttentionShape:
    """What the operator's attributes say, all but the page size, and the step in which caches grow, in tokens."""

    num_heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    sinks: int
    softmax_scale: float
    capacity_step: int

    @classmethod
    def of(cls, decoder: Decoder, kv: KvLayout) -> AttentionShape:
        """That of a decoder's layers."""
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
        """Of the operator; bodies may gather all pairs."""
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
        """Query heads that read one KV head."""
        return self.num_heads // self.kv_heads

    @property
    def row_tokens(self) -> int:
        """Tokens in a row of pairs of KV head and token, which bodies sort together: docs/function-bodies.md."""
        fitting = [n for n in range(1, self.capacity_step + 1) if n * self.kv_heads <= _SORTED_AT_ONCE]
        return max(n for n in fitting if self.capacity_step % n == 0)

    @property
    def row_pairs(self) -> int:
        """Pairs in a row."""
        return self.row_tokens * self.kv_heads


def rotated(writer: NodeWriter, x: str, heads: int, shape: AttentionShape) -> str:
    """x float [1, heads, S, D] or [1, S, heads * D] at the positions from `past_length` on."""
    return writer.op(
        "RotaryEmbedding",
        *(x, "past_length", "cos", "sin"),
        domain="com.microsoft",
        num_heads=heads,
        rotary_embedding_dim=0 if shape.rotary_dim == shape.head_dim else shape.rotary_dim,
    )
