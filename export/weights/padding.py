"""Pads a checkpoint's tensors with zeros where its sizes are no multiples of 32, the quantization block.

What it pads has the order and scale of `families/stored.py` already.

`Decoder` has the padded sizes, and those of the checkpoint in `unpadded`. The padded model computes the same:

- Channels of the hidden state, of heads and of the MLP are added at the end of each, and all weights to and from them
  are zero. So they are zero in every step, and rotary embedding and softmax see what they saw before.
- A norm divides by the root of a mean. Over H' channels, of which H are not padding, the mean of squares is H / H' of
  what it was. So the norm's weights are multiplied by the root of H / H', and `Decoder.norm_eps` by H / H'.
- The norm of q and k has the same epsilon, but is over heads or rows of them, which may be padded by another share. It
  undoes any factor on q and k but for the epsilon, so their rows are multiplied by the factor that makes that right.
- LayerNorm also subtracts the mean. A decoder with LayerNorm is centred first: from all that is written into the
  residual, the mean over its channels is subtracted, which no norm notices. Then the mean is 0 with padding, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from sol_rt.export.quantize.source_codes import SourceCodes
from sol_rt.export.sources.checkpoint import Checkpoint, FloatArray
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import FAMILIES
from sol_rt.export.sources.families.stored import StoredTensors

_WRITERS = ("embed", "o", "down")
"""Matrices that write into the residual."""


class _Axis(NamedTuple):
    """Runs of `size` channels, each padded to `padded`; both 1: the axis is not padded."""

    size: int
    padded: int

    def length(self, size: int) -> int:
        """The padded length of an axis of this length."""
        return size // self.size * self.padded

    def pad(self, values: FloatArray) -> FloatArray:
        """Pads the last axis."""
        if self.size == self.padded:
            return values
        runs = values.reshape(*values.shape[:-1], -1, self.size)
        zeros = np.zeros((*runs.shape[:-1], self.padded - self.size), values.dtype)
        return np.concatenate([runs, zeros], axis=-1).reshape(*values.shape[:-1], -1)


_WHOLE = _Axis(1, 1)


@dataclass(frozen=True)
class PaddedTensors:
    """Reads the tensors of a checkpoint as the bundle stores them, padded.

    Attributes:
        checkpoint, decoder: the source.
    """

    checkpoint: Checkpoint
    decoder: Decoder
    _means: dict[str, FloatArray] = field(default_factory=dict)

    @property
    def _stored(self) -> StoredTensors:
        """The tensors in the bundle's order and scale, not padded."""
        return StoredTensors(self.checkpoint, self.decoder.source)

    def shape(self, target: str, name: str) -> tuple[int, ...]:
        """The padded shape of a checkpoint's tensor that belongs to the bundle's tensor `target`."""
        shape = self.checkpoint.shape(name)
        rows, columns = self._axes(target)
        return (rows.length(shape[0]), *(columns.length(size) for size in shape[1:]))

    def read(self, target: str, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows start … stop - 1 of a padded tensor as float32, by default all rows.

        Args:
            target: the tensor of the bundle that they belong to, such as `layers.0.qkv` or `layers.0.qkv.bias`.
            name: the checkpoint's tensor.
            start, stop: rows.
        """
        if self.decoder.unpadded is None:
            return self._stored.read(target, name, start, stop)
        rows, columns = self._axes(target)
        stop = rows.length(self.checkpoint.shape(name)[0]) if stop is None else stop
        places, first, last = _sources(rows, start, stop)
        values = self._stored.read(target, name, first, last)
        if self._is_centred(target):
            values = values - (values.mean(axis=1, keepdims=True) if target == "embed" else self._mean(target, name))
        if target.endswith("norm.weight"):
            values = values * np.float32(math.sqrt(rows.size / rows.padded))
        factors = self._row_factors(target, name, first, last)
        if factors is not None:
            values = values * (factors if values.ndim == 1 else factors[:, None])
        if values.ndim == 2:
            values = columns.pad(values)
        padded = np.zeros((stop - start, *values.shape[1:]), np.float32)
        padded[places >= 0] = values[places[places >= 0]]
        return padded

    def codes(self, target: str, name: str, start: int, stop: int) -> SourceCodes | None:
        """Rows start … stop - 1 of a padded matrix as the 4-bit codes that the file stores; None if it stores none.

        Blocks of padding are marked as not representable.
        """
        rows, columns = self._axes(target)
        if columns.size != columns.padded or self._is_centred(target):
            return None
        places, first, last = _sources(rows, start, stop)
        codes = self._stored.codes(target, name, first, last)
        factors = self._row_factors(target, name, first, last)
        if codes is not None and factors is not None:
            codes = codes.times(factors[:, None])
        if codes is None or rows.size == rows.padded:
            return codes
        found = SourceCodes(*(getattr(codes, part)[places] for part in ("q", "scale", "zero", "representable")))
        return replace(found, representable=found.representable & (places >= 0)[:, None])

    def _axes(self, target: str) -> tuple[_Axis, _Axis]:
        """The outputs and the input channels of a matrix; of a vector, the first."""
        own = self.decoder.unpadded
        if own is None:
            return _WHOLE, _WHOLE
        hidden = _Axis(own.hidden_size, self.decoder.hidden_size)
        head = _Axis(own.head_dim, self.decoder.head_dim)
        inner = _Axis(own.intermediate_size, self.decoder.intermediate_size)
        owner = target.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
        if self.decoder.kind_of(target) == "conv":
            head = hidden  # B, C and the filtered channels are one after the other
        if owner.endswith("norm"):
            return (head if owner == "qk_norm" else hidden), _WHOLE
        return {
            "conv": (hidden, _WHOLE),
            "embed": (_WHOLE, hidden),
            "head": (_WHOLE, hidden),
            "qkv": (head, hidden),
            "o": (hidden, head),
            "up": (inner, hidden),
            "down": (hidden, inner),
        }[owner]

    def _row_factors(self, target: str, name: str, start: int, stop: int) -> FloatArray | None:
        """Factors of rows start … stop - 1 of q, k and v, not padded, float32 [rows]; None: 1."""
        decoder, own = self.decoder, self.decoder.unpadded
        owner = target.removesuffix(".bias").rsplit(".", 1)[-1]
        if own is None or owner != "qkv" or decoder.qk_norm == "none" or decoder.kind_of(target) != "attention":
            return None
        factor = math.sqrt(own.hidden_size / decoder.hidden_size * decoder.head_dim / own.head_dim)
        names = FAMILIES[decoder.family].names.qkv
        is_value = len(names) == 3 and name.rsplit(".", 2)[-2] == names[2].rsplit(".", 1)[-1]
        normed = 0 if is_value else decoder.source.qk_size  # a joint matrix has the rows of v last
        return np.where(np.arange(start, stop) < normed, np.float32(factor), np.float32(1))

    def _is_centred(self, target: str) -> bool:
        own = self.decoder.unpadded
        if own is None or self.decoder.norm != "layer" or own.hidden_size == self.decoder.hidden_size:
            return False
        return target.removesuffix(".bias").rsplit(".", 1)[-1] in _WRITERS

    def _mean(self, target: str, name: str) -> FloatArray:
        """The mean over the outputs of a matrix, float32 [K], or of its bias, float32 []."""
        if name not in self._means:
            self._means[name] = self._stored.read(target, name).mean(axis=0, dtype=np.float64).astype(np.float32)
        return self._means[name]


def _sources(rows: _Axis, start: int, stop: int) -> tuple[np.ndarray, int, int]:
    """Finds the sources of padded rows start … stop - 1.

    Returns each row's place in a range of the tensor's rows, int64 [stop - start], -1 for a padded row, and the range.
    """
    padded = np.arange(start, stop)
    run, within = np.divmod(padded, rows.padded)
    own = run * rows.size + np.minimum(within, rows.size - 1)
    first, last = int(own[0]), int(own[-1]) + 1
    return np.where(within < rows.size, own - first, -1), first, last


def padded_inputs(decoder: Decoder, matrix: str, inputs: torch.Tensor) -> torch.Tensor:
    """Pads the inputs of a matrix, float32 [T, K], as its weights are padded."""
    own = decoder.unpadded
    if own is None:
        return inputs
    part = matrix.rsplit(".", 1)[-1]
    attended = "hidden_size" if decoder.kind_of(matrix) == "conv" else "head_dim"
    sizes = {
        "o": (getattr(own, attended), getattr(decoder, attended)),
        "down": (own.intermediate_size, decoder.intermediate_size),
    }
    size, padded = sizes.get(part, (own.hidden_size, decoder.hidden_size))
    if size == padded:
        return inputs
    runs = inputs.reshape(len(inputs), -1, size)
    return torch.nn.functional.pad(runs, (0, padded - size)).flatten(1)
