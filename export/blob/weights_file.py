"""weights.bin: laid out before anything is written, then filled tensor by tensor through a mapping.

Matrices are read, quantized, packed and placed a piece at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.bits import Precision
from sol_rt.bundle.config import ALIGNMENT, BLOCK, TensorEntry, tensor_bytes
from sol_rt.export.blob.hessian import input_moments
from sol_rt.export.blob.memory import PIECE_WEIGHTS
from sol_rt.export.progress import Progress
from sol_rt.export.quantize.gptq import HessianFactor, compensate
from sol_rt.export.quantize.nested import (
    FloatArray,
    Nested,
    not_finite,
    pack_base_block_major,
    pack_base_channel_major,
    pack_plane,
    quantize_matrix,
)
from sol_rt.export.quantize.source_codes import SourceCodes, choose_zeros, nest
from sol_rt.export.sources.checkpoint import Checkpoint, matrices, matrix_shape, vector_size, vectors
from sol_rt.export.sources.decoder import Decoder, Family, TensorNames
from sol_rt.export.sources.rope import tables


def layout(decoder: Decoder, names: TensorNames, planes: int) -> dict[str, TensorEntry]:
    """Every tensor of the blob with its place, in the order of the file: what one step reads together lies together.

    Args:
        decoder: the model.
        names: its modules; only how they are grouped matters here.
        planes: residual planes stored, 0 to 2.
    """
    entries: dict[str, TensorEntry] = {}
    end = 0

    def place(name: str, dtype: str, *shape: int) -> None:
        nonlocal end
        size = tensor_bytes(dtype, shape)
        entries[name] = TensorEntry(dtype, shape, end, size)
        end += -(-size // ALIGNMENT) * ALIGNMENT

    for vector in vectors(decoder, names):
        place(vector, "float32", vector_size(decoder, vector))
    for table in ("rope.cos", "rope.sin"):
        place(table, "float32", decoder.max_context, decoder.rotary_dim // 2)
    for matrix in matrices(decoder, names):
        rows, channels = matrix_shape(decoder, matrix)
        blocks = channels // BLOCK
        if is_channel_major(matrix):
            place(f"{matrix}.base", "uint4", channels, rows)
        else:
            place(f"{matrix}.base", "uint8", blocks, rows, BLOCK // 2)
        place(f"{matrix}.scale", "float16", blocks, rows)
        place(f"{matrix}.zero", "uint8", blocks, rows)
        for plane in range(planes):
            place(f"{matrix}.plane{plane + 1}", "uint8", blocks, rows, BLOCK // 4)
    return entries


def is_channel_major(matrix: str) -> bool:
    """Base planes of a layer's matrices have one contiguous row a channel, so that a pruned channel is not read."""
    return matrix.startswith("layers.")


def blob_bytes(entries: Iterable[TensorEntry]) -> int:
    """Size of the file."""
    return max(entry.offset + entry.bytes for entry in entries)


class BlobWriter:
    """The file under construction, a context manager. Raises OSError at once where the disk has no room for it."""

    def __init__(self, path: Path, entries: Mapping[str, TensorEntry]) -> None:
        size = blob_bytes(entries.values())
        with path.open("wb") as file:
            _allocate(file.fileno(), size)
        self._entries = entries
        self._data: npt.NDArray[np.uint8] | None = np.memmap(path, np.uint8, "r+", shape=(size,))

    def view(self, name: str) -> npt.NDArray[Any]:
        """A tensor's place as a writable array in its own shape; uint4 as bytes, with half the last axis."""
        entry = self._entries[name]
        assert self._data is not None
        data = self._data[entry.offset : entry.offset + entry.bytes]
        if entry.dtype == "uint4":
            return data.reshape(*entry.shape[:-1], entry.shape[-1] // 2)
        return data.view(entry.dtype).reshape(entry.shape)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._data, np.memmap) and kind is None:
            self._data.flush()
        self._data = None


def _allocate(descriptor: int, size: int) -> None:
    """Takes the disk space now: a mapping over a hole dies of a signal, not of an exception, when the disk is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    zeros = bytes(1 << 20)
    for start in range(0, size, len(zeros)):
        os.write(descriptor, zeros[: size - start])


def fill_blob(
    path: Path,
    checkpoint: Checkpoint,
    decoder: Decoder,
    family: Family,
    tensors: Mapping[str, TensorEntry],
    precisions: Collection[Precision],
    progress: Progress,
    windows: Sequence[Sequence[int]] | None = None,
) -> None:
    """Writes weights.bin from a checkpoint, a few million weights at a time.

    Args:
        path: the file.
        checkpoint: where the weights come from.
        decoder: its description.
        family: names of its tensors.
        tensors: places in the file, from `layout`.
        precisions: of the graphs.
        progress: told how far the work is.
        windows: token ids of a calibration text, each window from the start of a context. Codes then make up for each
            other's errors on that text; without it every weight is rounded on its own.

    Raises:
        CheckpointError: weights are not finite, too large, or of a type that can't be read.
        OSError: the disk has no room.
    """
    sources = matrices(decoder, family.names)
    with BlobWriter(path, tensors) as blob:
        for vector, parts in vectors(decoder, family.names).items():
            blob.view(vector)[:] = _vector(checkpoint, parts) + _offset(decoder, vector)
        _write_rope(blob, decoder)
        fill = _MatrixFiller(blob, checkpoint, tensors, precisions)
        if windows is None:
            _fill_plain(fill, decoder, sources, progress)
            return
        if not decoder.tied:
            fill.matrix("embed", sources["embed"])  # rows are read one at a time: no products, no moment
        for matrix, moment in input_moments(checkpoint, decoder, family, windows, progress):
            fill.matrix(matrix, sources[matrix], HessianFactor.of(moment))


def _fill_plain(
    fill: _MatrixFiller, decoder: Decoder, sources: Mapping[str, tuple[str, ...]], progress: Progress
) -> None:
    sizes = {matrix: math.prod(matrix_shape(decoder, matrix)) for matrix in sources}
    total, done = sum(sizes.values()), 0

    def tell(weights: int) -> None:
        progress("quantizing weights", done + weights, total)

    for matrix, modules in sources.items():
        fill.matrix(matrix, modules, told=tell)
        done += sizes[matrix]


@dataclass(frozen=True)
class _MatrixFiller:
    """Brings matrices from the checkpoint into the blob."""

    blob: BlobWriter
    checkpoint: Checkpoint
    tensors: Mapping[str, TensorEntry]
    precisions: Collection[Precision]

    def matrix(
        self,
        matrix: str,
        modules: tuple[str, ...],
        metric: HessianFactor | None = None,
        told: Callable[[int], None] = lambda weights: None,
    ) -> None:
        """Reads, quantizes and writes a matrix; `told` the number of its weights that are done, piece by piece."""
        first = 0
        for module in modules:
            tensor = f"{module}.weight"
            rows, columns = self.checkpoint.shape(tensor)
            for start, stop in _pieces(rows, columns):
                weights = self.checkpoint.read(tensor, start, stop)
                own = self.checkpoint.codes(tensor, start, stop)
                self._write(matrix, first + start, self._quantize(matrix, weights, own, tensor, metric))
                told((first + stop) * columns)
            first += rows

    def _quantize(
        self, matrix: str, weights: FloatArray, own: SourceCodes | None, tensor: str, metric: HessianFactor | None
    ) -> Nested:
        """Outputs float32 [n, K] of a matrix; the source's own 4-bit codes stay."""
        planes = sum(f"{matrix}.plane{plane}" in self.tensors for plane in (1, 2))
        levels = self._levels(matrix, planes, metric is not None)
        # on a 4-bit source's grid the shared shift takes from level 4 what compensation does not need for level 6
        six_bits = 6 in levels and (metric is None or 4 not in levels)
        if own is not None:
            own = own if metric is None else choose_zeros(own, weights, metric)
            nested = nest(own, weights, planes, tensor, six_bits)
        else:
            importance = None if metric is None else metric.importance
            nested = quantize_matrix(weights, planes, tensor, six_bits, importance)
        if metric is None:
            return nested
        return compensate(weights, nested, metric, levels, None if own is None else own.held)

    def _levels(self, matrix: str, planes: int, chosen: bool) -> Collection[int]:
        """Bits at which a matrix may be read: where they are `chosen`, the output matrix at wider ones than its
        variant as well."""
        if matrix in ("embed", "head"):
            levels = {precision.lm_head_bits for precision in self.precisions}
            return range(min(levels), 4 + 2 * planes + 1, 2) if chosen else levels
        return {precision.of(matrix) for precision in self.precisions}

    def _write(self, matrix: str, first: int, nested: Nested) -> None:
        """Places outputs first … of a matrix."""
        blob, last = self.blob, first + len(nested.q)
        if is_channel_major(matrix):
            blob.view(f"{matrix}.base")[:, first // 2 : last // 2] = pack_base_channel_major(nested.q)
        else:
            blob.view(f"{matrix}.base")[:, first:last] = pack_base_block_major(nested.q)
        blob.view(f"{matrix}.scale")[:, first:last] = nested.scale
        blob.view(f"{matrix}.zero")[:, first:last] = nested.zero
        for plane, codes in ((1, nested.b), (2, nested.c)):
            if codes is not None:
                blob.view(f"{matrix}.plane{plane}")[:, first:last] = pack_plane(codes)


def _pieces(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    # an even number of rows, as two outputs share a byte of a channel-major base plane
    step = max(2, PIECE_WEIGHTS // columns // 2 * 2)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _vector(checkpoint: Checkpoint, parts: tuple[str, ...]) -> np.ndarray:
    values = [checkpoint.read(part) for part in parts]
    for part, value in zip(parts, values, strict=True):
        if not np.isfinite(value).all():
            raise not_finite(part)
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
