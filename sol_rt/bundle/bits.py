"""Weight bits: how many bits of its weights a graph reads, which may differ by matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MIXED = 5
"""Stands for mixed precision where bits are ordered or averaged: matrices of 4, 6 or 8 bits each. Never shown as a
number: configs and options say `mixed`, tags and file names `qmix`."""
_NAME, _TAG = "mixed", "mix"


def bits_tag(bits: int) -> str:
    """Bits as tags and file names have them: `q4`, `qmix`."""
    return f"q{_TAG if bits == MIXED else bits}"


def parse_bits_tag(text: str) -> int | None:
    """The bits of a tag, given without its q: `4`, `mix`. None for anything else."""
    return MIXED if text == _TAG else int(text) if text.isdecimal() else None


def bits_name(bits: int) -> int | str:
    """Bits as configs, options and tables have them: 4, "mixed"."""
    return _NAME if bits == MIXED else bits


def parse_bits_name(value: object) -> int | None:
    """The bits that a config or an option names: 4, "4" or "mixed". None for anything else, MIXED as a number too."""
    if value == _NAME:
        return MIXED
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value != MIXED else None


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
    """How many bits of each matrix a graph reads.

    Attributes:
        bits: of all its layers' matrices, or MIXED.
        lm_head_bits: of the LM head.
        layers: of every layer where `bits` is MIXED, None elsewhere.
    """

    bits: int
    lm_head_bits: int
    layers: tuple[LayerBits, ...] | None = None

    def layer(self, index: int) -> LayerBits:
        return LayerBits.alike(self.bits) if self.layers is None else self.layers[index]

    def of(self, matrix: str) -> int:
        """Bits of a matrix of a layer by its whole name, such as `layers.3.up`."""
        _, layer, name = matrix.split(".")
        return int(getattr(self.layer(int(layer)), name))

    @property
    def widest(self) -> int:
        """The most bits of any layer's matrix."""
        return self.bits if self.layers is None else max(map(max, self.layers))

    @property
    def stored(self) -> int:
        """The bits that weights have to be stored with: a mixed graph looks embeddings up at 8 bits, for in 4-bit codes
        of the source's own 6 bits have no value."""
        return self.bits if self.layers is None else 8
