"""Weight bits: how many bits per weight a graph reads. The number may differ by matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

THREE = 3
"""The level of 3 bits: codes and tables of its own, beside the nested weights of the other levels."""
MIXED = 5
"""Mixed precision: matrices of 4, 6 or 8 bits each. The number is used only to sort and average bits, and never shown:
configs and options say `mixed`, tags and file names `qmix`."""
_NAME, _TAG = "mixed", "mix"


def bits_tag(bits: int) -> str:
    """Bits as tags and file names write them: `q4`, `qmix`."""
    return f"q{_TAG if bits == MIXED else bits}"


def parse_bits_tag(text: str) -> int | None:
    """Reads bits that a tag writes, without the `q`: `4` or `mix`. None for any other text, such as `04`."""
    if text == _TAG:
        return MIXED
    bits = int(text) if text.isdecimal() else None
    return bits if str(bits) == text else None


def bits_name(bits: int) -> int | str:
    """Bits as configs, options and tables write them: 4, "mixed"."""
    return _NAME if bits == MIXED else bits


def parse_bits_name(value: object) -> int | None:
    """Reads bits of a config or an option: 4, "4" or "mixed". None for any other value, including MIXED's number."""
    if value == _NAME:
        return MIXED
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value != MIXED else None


class LayerBits(NamedTuple):
    """Bits of a layer's matrices, in the order in which a token passes them."""

    qkv: int
    o: int
    up: int
    down: int

    @classmethod
    def alike(cls, bits: int) -> LayerBits:
        return cls(bits, bits, bits, bits)


SCREENED = "screened"
"""The overload of NestedMatMul in graphs whose LM head is screened."""


class Screen(NamedTuple):
    """Screen of an LM head: every row is read at few bits, and the rows with the highest scores at all bits.

    Attributes:
        candidates: number of rows that are read at all bits.
        tail_offset: what is added to the logits of the other rows.
        bits: of the first pass: 4, those of the base, or 3, codes and tables of the screen's own.
    """

    candidates: int
    tail_offset: float
    bits: int = 4

    @property
    def attributes(self) -> dict[str, float]:
        """ONNX attributes that a screened node of `NestedMatMul` has beside a whole one's."""
        own = {"screen_bits": self.bits} if self.bits == THREE else {}
        return {"candidates": self.candidates, "tail_offset": self.tail_offset, **own}


def screen_matrix(matrix: str) -> str:
    """The name in the weights file of the 3-bit matrix that screens the LM head `matrix`."""
    return f"{matrix}.screen"


def is_of_screen(tensor: str) -> bool:
    """True if a tensor of the weights file belongs to the 3-bit matrix that screens the LM head."""
    return tensor.startswith(("embed.screen.", "head.screen."))


def screen_columns(outputs: int) -> int:
    """Places in a row of the 3-bit matrix that screens `outputs` outputs: an odd multiple of 256."""
    return 256 * (-(-outputs // 256) | 1)


@dataclass(frozen=True)
class Precision:
    """Bits at which a graph reads each matrix.

    Attributes:
        bits: bits of the matrices of all layers, or MIXED. Of a 3-bit graph some may be read at 4.
        lm_head_bits: bits of the LM head.
        layers: bits of each layer's matrices if `bits` is MIXED or some matrices of a 3-bit graph are read at 4, else
            None.
        lm_head_screen: how the LM head is screened; None: every row is read at `lm_head_bits`.
    """

    bits: int
    lm_head_bits: int
    layers: tuple[LayerBits, ...] | None = None
    lm_head_screen: Screen | None = None

    def layer(self, index: int) -> LayerBits:
        return LayerBits.alike(self.bits) if self.layers is None else self.layers[index]

    def of(self, matrix: str) -> int:
        """Bits of a layer's matrix by its full name, such as `layers.3.up`."""
        _, layer, name = matrix.split(".")
        return int(getattr(self.layer(int(layer)), name))

    @property
    def widest(self) -> int:
        """The most bits of any layer's matrix."""
        return self.bits if self.layers is None else max(map(max, self.layers))

    @property
    def reads_three_bits(self) -> bool:
        """True if any layer's matrix is read at 3 bits."""
        return self.bits == THREE

    @property
    def screened_by_three_bits(self) -> bool:
        """True if a matrix of 3 bits screens the LM head."""
        return self.lm_head_screen is not None and self.lm_head_screen.bits == THREE

    @property
    def stored(self) -> int:
        """Number of bits that the nested weights must have.

        A mixed graph looks embeddings up at 8 bits, because source codes of 4 bits define no 6-bit values. A 3-bit
        graph reads embedding and LM head from nested weights.
        """
        return 8 if self.bits == MIXED else max(self.bits, self.lm_head_bits)
