"""A checkpoint's tensors as weights.bin has them: rows in the bundle's order, times the factors that graphs leave out.

- `Decoder.qkv_by_head`: all rows of q come first, then those of k and v.
- `Decoder.interleaved_rope`: of each head of q and k, even channels come first, then odd ones, so that the half-split
  form rotates the same pairs.
- `Decoder.residual_scale`: attention's output projection, the MLP's second matrix and their biases are multiplied by
  it.
- `Decoder.norm_offset` is added to the weights of norms, and the final norm is multiplied by `Decoder.logits_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sol_rt.export.quantize.source_codes import SourceCodes

if TYPE_CHECKING:
    from sol_rt.export.sources.checkpoint import Checkpoint, FloatArray
    from sol_rt.export.sources.decoder import Decoder

_INNER = ("o", "down")
"""Matrices whose outputs are added to the residual."""


def head_by_head(rows: int, heads: int) -> npt.NDArray[np.int64]:
    """Places of rows that are q, then k, then v among rows that are q, k and v by head: int64 [rows]."""
    return np.arange(rows).reshape(heads, 3, rows // heads // 3).swapaxes(0, 1).ravel()


def deinterleaved(rows: int, heads: int, rotary_dim: int) -> npt.NDArray[np.int64]:
    """Rows of the interleaved form for the rows of q or k in half-split form: even channels first, then odd."""
    size = rows // heads
    within = np.concatenate([np.arange(0, rotary_dim, 2), np.arange(1, rotary_dim, 2), np.arange(rotary_dim, size)])
    return (size * np.arange(heads)[:, None] + within).ravel()


@dataclass(frozen=True)
class StoredTensors:
    """Reads the tensors of a checkpoint as the bundle stores them. The checkpoint's own names stay.

    Attributes:
        checkpoint, decoder: the source.
    """

    checkpoint: Checkpoint
    decoder: Decoder

    def read(self, target: str, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows start … stop - 1 of a tensor, in the bundle's order, as float32.

        Args:
            target: the tensor of the bundle that they belong to, such as `layers.0.qkv` or `layers.0.qkv.bias`.
            name: the checkpoint's tensor.
            start, stop: by default all rows.
        """
        order = self._order(target, name)
        if order is None:
            values = self.checkpoint.read(name, start, stop)
        else:
            values = self.checkpoint.read(name)[order[start:stop]]
        if values.ndim == 3:  # filters, which have one input channel each
            values = values[:, 0]
        factor, offset = self._factor(target), self._offset(target)
        if factor == 1.0 and offset == 0.0:
            return values
        result: FloatArray = (values + np.float32(offset)) * np.float32(factor)
        return result

    def codes(self, target: str, name: str, start: int, stop: int) -> SourceCodes | None:
        """Rows start … stop - 1 of a matrix as the 4-bit codes that the file stores, as `read` gives them."""
        order = self._order(target, name)
        if order is None:
            codes = self.checkpoint.codes(name, start, stop)
        else:
            codes = self.checkpoint.codes(name, 0, len(order))
            if codes is not None:
                rows = order[start:stop]
                codes = SourceCodes(codes.q[rows], codes.scale[rows], codes.zero[rows], codes.representable[rows])
        factor = self._factor(target)
        return codes if codes is None or factor == 1.0 else codes.times(np.float32(factor))

    def _order(self, target: str, name: str) -> npt.NDArray[np.int64] | None:
        """Row in the checkpoint of each row of the stored tensor, int64 [rows]; None if the rows are the same."""
        decoder = self.decoder
        attention = _matrix(target) == "qkv" and decoder.kind_of(target) == "attention"
        if not attention or not (decoder.qkv_by_head or decoder.interleaved_rope):
            return None
        rows = self.checkpoint.shape(name)[0]
        if decoder.qkv_by_head:
            return head_by_head(rows, decoder.num_heads)
        if name.rsplit(".", 2)[-2].startswith("v"):
            return None
        return deinterleaved(rows, rows // decoder.head_dim, decoder.rotary_dim)

    def _factor(self, target: str) -> float:
        if target.startswith("final_norm."):
            return self.decoder.logits_scale
        return self.decoder.residual_scale if _matrix(target) in _INNER else 1.0

    def _offset(self, target: str) -> float:
        return self.decoder.norm_offset if target.endswith("norm.weight") else 0.0


def _matrix(target: str) -> str:
    """`qkv` of `layers.0.qkv` and of its bias."""
    return target.removesuffix(".bias").rsplit(".", 1)[-1]
