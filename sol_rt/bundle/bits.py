"""Widths: how many bits of its weights a graph reads, which may differ by matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MIXED = 5
"""The width of graphs whose layers' matrices have widths of their own, 4, 6 or 8."""


class LayerBits(NamedTuple):
    """Of a layer's matrices, in the order in which a token meets them."""

    qkv: int
    o: int
    up: int
    down: int

    @classmethod
    def alike(cls, bits: int) -> LayerBits:
        return cls(bits, bits, bits, bits)


@dataclass(frozen=True)
class Precision:
    """At which width a graph reads each matrix.

    Attributes:
        bits: the graph's own: of all its layers' matrices, or MIXED.
        head: that of the output matrix.
        layers: of every layer where `bits` is MIXED, None elsewhere.
    """

    bits: int
    head: int
    layers: tuple[LayerBits, ...] | None = None

    def layer(self, index: int) -> LayerBits:
        return LayerBits.alike(self.bits) if self.layers is None else self.layers[index]

    def of(self, matrix: str) -> int:
        """Width of a matrix of a layer by its whole name, such as `layers.3.up`."""
        _, layer, name = matrix.split(".")
        return int(getattr(self.layer(int(layer)), name))

    @property
    def widest(self) -> int:
        """The largest of the layers' widths."""
        return self.bits if self.layers is None else max(map(max, self.layers))

    @property
    def stored(self) -> int:
        """The width that weights have to be stored at: a mixed graph looks embeddings up at 8 bits, for in 4-bit codes
        of the source's own 6 bits have no value."""
        return self.bits if self.layers is None else 8
