"""Filling weights.bin: read, quantize, pack and place, a piece of a matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sol_rt.config import TensorEntry
from sol_rt.errors import CheckpointError
from sol_rt.export.architecture import Decoder, Family
from sol_rt.export.blob import BlobWriter, is_channel_major
from sol_rt.export.checkpoint import Checkpoint, matrices, matrix_shape, vectors
from sol_rt.export.memory import PIECE_WEIGHTS
from sol_rt.export.own_codes import OwnCodes, nest
from sol_rt.export.progress import Progress
from sol_rt.export.quantize import pack_base_block_major, pack_base_channel_major, pack_plane, quantize_matrix
from sol_rt.export.rope import tables


def fill_blob(
    path: Path,
    checkpoint: Checkpoint,
    decoder: Decoder,
    family: Family,
    tensors: Mapping[str, TensorEntry],
    six_bits: bool,
    progress: Progress,
) -> None:
    """Writes weights.bin from a checkpoint, a few million weights at a time.

    Args:
        path: the file.
        checkpoint: where the weights come from.
        decoder: its description.
        family: names of its tensors.
        tensors: places in the file, from `layout`.
        six_bits: the 6-bit level is going to be used.
        progress: told the number of weights quantized.

    Raises:
        CheckpointError: weights are not finite, too large, or of a type that can't be read.
        OSError: the disk has no room.
    """
    sources = matrices(decoder, family.names)
    total = sum(rows * columns for rows, columns in (matrix_shape(decoder, matrix) for matrix in sources))
    done = 0
    with BlobWriter(path, tensors) as blob:
        for vector, parts in vectors(decoder, family.names).items():
            blob.view(vector)[:] = _vector(checkpoint, parts) + _offset(decoder, vector)
        _write_rope(blob, decoder)
        for matrix, modules in sources.items():
            first = 0
            for module in modules:
                tensor = f"{module}.weight"
                rows, columns = checkpoint.shape(tensor)
                for start, stop in _pieces(rows, columns):
                    weights = checkpoint.read(tensor, start, stop)
                    own = checkpoint.codes(tensor, start, stop)
                    _write_rows(blob, matrix, tensors, first + start, weights, own, tensor, six_bits)
                    done += weights.size
                    progress("quantizing weights", done, total)
                first += rows


def _pieces(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    # an even number of rows, as two outputs share a byte of a channel-major base plane
    step = max(2, PIECE_WEIGHTS // columns // 2 * 2)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _write_rows(
    blob: BlobWriter,
    matrix: str,
    tensors: Mapping[str, TensorEntry],
    first: int,
    weights: np.ndarray,
    own: OwnCodes | None,
    tensor: str,
    six_bits: bool,
) -> None:
    """Quantizes outputs first … of a matrix, float32 [n, K], into their places in the blob; own 4-bit codes stay."""
    planes = sum(f"{matrix}.plane{plane}" in tensors for plane in (1, 2))
    if own is None:
        nested = quantize_matrix(weights, planes, tensor, six_bits)
    else:
        nested = nest(own, weights, planes, tensor, six_bits)
    last = first + len(weights)
    if is_channel_major(matrix):
        blob.view(f"{matrix}.base")[:, first // 2 : last // 2] = pack_base_channel_major(nested.q)
    else:
        blob.view(f"{matrix}.base")[:, first:last] = pack_base_block_major(nested.q)
    blob.view(f"{matrix}.scale")[:, first:last] = nested.scale
    blob.view(f"{matrix}.zero")[:, first:last] = nested.zero
    for plane, codes in ((1, nested.b), (2, nested.c)):
        if codes is not None:
            blob.view(f"{matrix}.plane{plane}")[:, first:last] = pack_plane(codes)


def _vector(checkpoint: Checkpoint, parts: tuple[str, ...]) -> np.ndarray:
    values = [checkpoint.read(part) for part in parts]
    for part, value in zip(parts, values, strict=True):
        if not np.isfinite(value).all():
            raise CheckpointError(f"tensor {part}: got NaN or infinite weights, expected finite ones; it is damaged")
    return np.concatenate(values)


def _offset(decoder: Decoder, vector: str) -> float:
    return decoder.norm_offset if vector.endswith("norm.weight") else 0.0


def _write_rope(blob: BlobWriter, decoder: Decoder) -> None:
    step = 1 << 12
    for start in range(0, decoder.max_context, step):
        stop = min(start + step, decoder.max_context)
        cos, sin = tables(decoder.rope, start, stop - start)
        blob.view("rope.cos")[start:stop] = cos
        blob.view("rope.sin")[start:stop] = sin
