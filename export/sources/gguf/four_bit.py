"""Reads the 4-bit codes of GGUF's types Q4_0, Q4_1 and Q4_K, whose blocks have 32 input channels as the bundle's have.

    Q4_0:  W = d q - 8 d            d float16 for each block of 32
    Q4_1:  W = d q + m              d and m float16 for each block of 32
    Q4_K:  W = d sc q - dmin m      d and dmin float16 for 256 channels; sc and m of 6 bits for each 32 of them

Layouts are those of ggml-common.h in llama.cpp: half of a run of channels in the low nibbles, the rest in the high
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import Q4_K

from sol_rt.bundle.config import BLOCK
from sol_rt.export.quantize.nested import ByteArray, FloatArray
from sol_rt.export.quantize.source_codes import SourceCodes, source_codes


def _q4_0(rows: ByteArray) -> SourceCodes:
    blocks = _blocks(rows, GGMLQuantizationType.Q4_0)
    d = _float16(blocks[..., :2])
    return source_codes(_nibbles(blocks[..., 2:], BLOCK), d, d * np.float32(-8))


def _q4_1(rows: ByteArray) -> SourceCodes:
    blocks = _blocks(rows, GGMLQuantizationType.Q4_1)
    return source_codes(_nibbles(blocks[..., 4:], BLOCK), _float16(blocks[..., :2]), _float16(blocks[..., 2:4]))


def _q4_k(rows: ByteArray) -> SourceCodes:
    blocks = _blocks(rows, GGMLQuantizationType.Q4_K)
    d, dmin = _float16(blocks[..., :2]), _float16(blocks[..., 2:4])
    sc, m = Q4_K.get_scale_min(np.ascontiguousarray(blocks[..., 4:16]).reshape(-1, 12))
    shape = (len(rows), -1)
    step = d[..., None] * sc.reshape(*d.shape, 8).astype(np.float32)
    least = dmin[..., None] * m.reshape(*d.shape, 8).astype(np.float32)
    return source_codes(_nibbles(blocks[..., 16:], 2 * BLOCK), step.reshape(shape), -least.reshape(shape))


FOUR_BIT: Mapping[GGMLQuantizationType, Callable[[ByteArray], SourceCodes]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q4_K: _q4_k,
}
"""GGUF type -> function that reads its rows, uint8 [n, bytes per row]."""


def _blocks(rows: ByteArray, kind: GGMLQuantizationType) -> ByteArray:
    return rows.reshape(len(rows), -1, GGML_QUANT_SIZES[kind][1])


def _float16(stored: ByteArray) -> FloatArray:
    """Little-endian float16 numbers in uint8 [..., 2] -> float32 [...]."""
    return np.ascontiguousarray(stored).view("<f2")[..., 0].astype(np.float32)


def _nibbles(stored: ByteArray, run: int) -> npt.NDArray[np.uint8]:
    """Unpacks codes: uint8 [n, blocks, m] -> uint8 [n, K / 32, 32]. `run` channels share `run` / 2 bytes."""
    runs = stored.reshape(len(stored), -1, 1, run // 2)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(stored), -1, BLOCK)
