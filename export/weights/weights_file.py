"""Writes weights.bin: `layout` places every tensor, then `fill_blob` writes the tensors through a memory mapping.

Each matrix is read, quantized, packed and written a few million weights at a time, so memory does not grow with the
model. docs/reference/bundle-details.md section 2 defines the tensors, section 4 their names.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.bits import THREE, Precision, is_of_screen, screen_columns, screen_matrix
from sol_rt.bundle.config import ALIGNMENT, BLOCK, CODEBOOK, CODEBOOK_SHAPE, TensorEntry, tensor_bytes
from sol_rt.export.quantize.codebook import (
    Codebook,
    choose_grid,
    learn_codebook,
    pack_block_scale,
    pack_codes,
)
from sol_rt.export.quantize.codebook import (
    choose_codes as choose_three_bit_codes,
)
from sol_rt.export.quantize.gptq import CHANNELS_AT_ONCE, WIDE_PANEL, HessianFactor, choose_codes, one_thread_each
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
from sol_rt.export.sources.checkpoint import Checkpoint, matrices, matrix_shape, vector_shape, vectors
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import Family, TensorNames
from sol_rt.export.sources.rope import table_names, tables
from sol_rt.export.weights.hessian import Inputs, matrix_inputs
from sol_rt.export.weights.memory import PIECE_WEIGHTS
from sol_rt.export.weights.padding import PaddedTensors
from sol_rt.progress import Progress

_SAMPLED_ROWS, _SAMPLED_BLOCKS = 2048, 8192  # of the weights from which the tables of level 3 are learned
_LARGE = 1e9  # weights of a model whose matrices are fitted in wide panels; smaller models' bundles keep their bits
_MATRICES_AHEAD = 4  # whose pieces are in the pool at once, those of a layer


def layout(
    decoder: Decoder,
    names: TensorNames,
    planes: int,
    precisions: Collection[Precision] = (),
    screened: str | None = None,
) -> dict[str, TensorEntry]:
    """The place of every tensor in weights.bin, in file order: tensors that a step reads together lie together.

    Args:
        decoder: the model.
        names: its modules. Only their grouping into matrices matters here.
        planes: number of residual planes stored, 0 to 2.
        precisions: of the graphs. A matrix has level 3 where one of them reads it so, and the nested levels unless all
            of them do.
        screened: the LM head's matrix, if it has a matrix of 3 bits that screens it. That one comes last, so that
            `without_screen` can cut it off.
    """
    entries: dict[str, TensorEntry] = {}
    end = 0

    def place(name: str, dtype: str, *shape: int) -> None:
        nonlocal end
        size = tensor_bytes(dtype, shape)
        entries[name] = TensorEntry(dtype, shape, end, size)
        end += -(-size // ALIGNMENT) * ALIGNMENT

    for vector in vectors(decoder, names):
        place(vector, "float32", *vector_shape(decoder, vector))
    for index in range(len(decoder.ropes)):
        for table in table_names(index):
            place(table, "float32", decoder.max_context, decoder.rotary_dim // 2)
    of_graphs = {
        matrix: {precision.of(matrix) for precision in precisions} if is_channel_major(matrix) else set()
        for matrix in matrices(decoder, names)
    }
    for matrix, levels in of_graphs.items():
        if levels == {THREE}:
            continue
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
    coded = [matrix for matrix, levels in of_graphs.items() if THREE in levels]
    if coded:
        place(CODEBOOK, "int8", *CODEBOOK_SHAPE)
    shapes = {matrix: matrix_shape(decoder, matrix) for matrix in coded}
    if screened is not None:
        rows, channels = matrix_shape(decoder, screened)
        shapes[screen_matrix(screened)] = screen_columns(rows), channels
    for matrix, (rows, channels) in shapes.items():
        place(f"{matrix}.low", "uint8", channels, rows // 4)
        place(f"{matrix}.high", "uint8", channels, rows // 8)
        place(f"{matrix}.block_scale", "uint8", channels // BLOCK, rows)
        place(f"{matrix}.output_scale", "float16", rows)
    if screened is not None:
        place(f"{screen_matrix(screened)}.{CODEBOOK}", "int8", *CODEBOOK_SHAPE)
    return entries


def without_screen(path: Path, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Cuts the matrix that screens the LM head off the end of the weights file; returns the tensors that stay.

    A file that is mapped cannot be cut off on Windows. It stays as it is then, and all its tensors do.
    """
    kept = {name: entry for name, entry in tensors.items() if not is_of_screen(name)}
    try:
        os.truncate(path, blob_bytes(kept.values()))
    except OSError:
        return dict(tensors)
    return kept


def is_channel_major(matrix: str) -> bool:
    """True if a matrix's base plane has one contiguous row for each input channel, so that a step can skip rows.

    True for the matrices of layers, false for embedding and LM head.
    """
    return matrix.startswith("layers.")


def blob_bytes(entries: Iterable[TensorEntry]) -> int:
    """The size of weights.bin in bytes."""
    return max(entry.offset + entry.bytes for entry in entries)


class BlobWriter:
    """weights.bin while it is written; a context manager. The constructor raises OSError if the disk has no room."""

    def __init__(self, path: Path, entries: Mapping[str, TensorEntry]) -> None:
        size = blob_bytes(entries.values())
        with path.open("wb") as file:
            _allocate(file.fileno(), size)
        self._entries = entries
        self._data: npt.NDArray[np.uint8] | None = np.memmap(path, np.uint8, "r+", shape=(size,))

    def view(self, name: str) -> npt.NDArray[Any]:
        """A tensor of the file as a writable array of its shape. uint4 comes as bytes, with half the last axis."""
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
    """Reserves the disk space.

    Writing to a mapping of a sparse file on a full disk would kill the process by a signal.
    """
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
    most_channels: int | None = None,
    *,
    search: bool = True,
    three_bits: bool = True,
) -> None:
    """Writes weights.bin from a checkpoint.

    Args:
        path: the file to write.
        checkpoint: where the weights come from.
        decoder: the checkpoint's description.
        family: the names of its tensors.
        tensors: the places of the tensors, from `layout`.
        precisions: the precisions of the graphs.
        progress: reports how far the work is.
        windows: token ids of a calibration text; each window starts a context. Codes are then chosen by GPTQ on that
            text. None: every weight is rounded by itself.
        most_channels: of a group of input channels that GPTQ fits together; by default all of a matrix.
        search: as in `quantize_matrix`.
        three_bits: level 3 is written where `tensors` has it, as is what screens the LM head; if not, it stays zero.

    Raises:
        CheckpointError: weights are not finite, too large, or of an unreadable type.
        OSError: the disk has no room.
    """
    sources = matrices(decoder, family.names)
    padded = PaddedTensors(checkpoint, decoder)
    with BlobWriter(path, tensors) as blob:
        for vector, parts in vectors(decoder, family.names).items():
            blob.view(vector)[:] = _vector(padded, vector, parts)
        _write_rope(blob, decoder)
        codebooks = {}
        if three_bits:
            coded = {name: sources[name] for name in sources if f"{name}.low" in tensors}
            screened = {name: sources[name] for name in sources if f"{screen_matrix(name)}.low" in tensors}
            of = {CODEBOOK: coded, **{f"{screen_matrix(name)}.{CODEBOOK}": screened for name in screened}}
            codebooks = {
                name: learn_codebook(sampled_blocks(padded, matrices)) for name, matrices in of.items() if matrices
            }
        for name, codebook in codebooks.items():
            blob.view(name)[:] = codebook
        fill = _MatrixFiller(blob, padded, tensors, precisions, search, codebooks)
        with one_thread_each() as pool:
            if windows is None:
                _fill_rounded(fill, decoder, sources, progress, pool)
                return
            # an untied embedding is only looked up, never multiplied, so it has no Hessian
            embedding = [] if decoder.tied else fill.submit(pool, "embed", sources["embed"])
            inputs = matrix_inputs(checkpoint, decoder, family, windows, progress, pool, most_channels)
            _fill_fitted(fill, sources, inputs, pool, WIDE_PANEL if decoder.weights >= _LARGE else CHANNELS_AT_ONCE)
            _wait(embedding)


def _fill_rounded(
    fill: _MatrixFiller,
    decoder: Decoder,
    sources: Mapping[str, tuple[str, ...]],
    progress: Progress,
    pool: Executor,
) -> None:
    sizes = {matrix: math.prod(matrix_shape(decoder, matrix)) for matrix in sources}
    pieces = [(matrix, fill.submit(pool, matrix, modules)) for matrix, modules in sources.items()]
    total, done = sum(sizes.values()), 0.0
    for matrix, of_matrix in pieces:
        for piece in of_matrix:
            piece.result()
            done += sizes[matrix] / len(of_matrix)
            progress("quantizing weights", done, total)


def _fill_fitted(
    fill: _MatrixFiller,
    sources: Mapping[str, tuple[str, ...]],
    inputs: Iterator[list[Inputs]],
    pool: Executor,
    panel: int,
) -> None:
    """Fits every matrix to its inputs, with `HessianFactor.panel`. While the next layer runs, pieces of a few matrices
    are in the pool.
    """
    pending: deque[list[Future[None]]] = deque()
    for groups in inputs:
        hessians = [pool.submit(_factor, group, panel) for group in groups]
        matrix = groups[0].matrix
        pending.append(fill.submit(pool, matrix, sources[matrix], hessians))
        while len(pending) > _MATRICES_AHEAD:
            _wait(pending.popleft())
    for pieces in pending:
        _wait(pieces)


def _factor(inputs: Inputs, panel: int) -> HessianFactor:
    return HessianFactor.of(inputs.hessian(), inputs.tokens, panel)


def _wait(pieces: Sequence[Future[None]]) -> None:
    for piece in pieces:
        piece.result()


def sampled_blocks(padded: PaddedTensors, coded: Mapping[str, tuple[str, ...]]) -> FloatArray:
    """The blocks from which the tables of level 3 are learned, float32 [n, 32]: of rows in the middle of each matrix.

    Raises CheckpointError for weights that are not finite.
    """
    sampled = []
    rows_of_each = max(1, _SAMPLED_ROWS // len(coded))
    for matrix, modules in coded.items():
        tensor = f"{modules[-1]}.weight"
        rows, _ = padded.shape(matrix, tensor)
        first = (rows - rows_of_each) // 2 if rows > rows_of_each else 0
        w = padded.read(matrix, tensor, first, min(first + rows_of_each, rows))
        if not np.isfinite(w).all():
            raise not_finite(tensor)
        sampled.append(w.reshape(-1, BLOCK))
    blocks = np.concatenate(sampled)
    return blocks[:: max(1, len(blocks) // _SAMPLED_BLOCKS)]


@dataclass(frozen=True)
class _Piece:
    """Rows start … stop - 1 of a tensor of the source, which are outputs first, first + 1, … of a matrix."""

    matrix: str
    first: int
    tensor: str
    start: int
    stop: int


@dataclass(frozen=True)
class _MatrixFiller:
    """Reads matrices from the checkpoint, quantizes them, and writes them to weights.bin."""

    blob: BlobWriter
    padded: PaddedTensors
    tensors: Mapping[str, TensorEntry]
    precisions: Collection[Precision]
    search: bool
    codebooks: Mapping[str, Codebook]

    def submit(
        self, pool: Executor, matrix: str, modules: tuple[str, ...], hessians: Sequence[Future[HessianFactor]] = ()
    ) -> list[Future[None]]:
        """Has the pool read, quantize and write a matrix piece by piece.

        `hessians` are those of groups of channels, in order, and were submitted before; empty without calibration.
        """
        return [pool.submit(self._piece, piece, hessians) for piece in self._pieces(matrix, modules)]

    def _pieces(self, matrix: str, modules: tuple[str, ...]) -> Iterator[_Piece]:
        first = 0
        for module in modules:
            tensor = f"{module}.weight"
            rows, columns = self.padded.shape(matrix, tensor)
            # a multiple of the outputs that share bytes: two of a channel-major base plane, a tile of level 3
            coded = f"{matrix}.low" in self.tensors or f"{screen_matrix(matrix)}.low" in self.tensors
            together = BLOCK if coded else 2
            step = max(together, PIECE_WEIGHTS // columns // together * together)
            for start in range(0, rows, step):
                yield _Piece(matrix, first + start, tensor, start, min(start + step, rows))
            first += rows

    def _piece(self, piece: _Piece, hessians: Sequence[Future[HessianFactor]]) -> None:
        weights = self.padded.read(piece.matrix, piece.tensor, piece.start, piece.stop)
        codes = self.padded.codes(piece.matrix, piece.tensor, piece.start, piece.stop)
        factors = [hessian.result() for hessian in hessians]
        if f"{piece.matrix}.base" in self.tensors:
            self._write(piece.matrix, piece.first, self._quantize(piece.matrix, weights, codes, piece.tensor, factors))
        screen = screen_matrix(piece.matrix)
        for matrix, name in ((piece.matrix, CODEBOOK), (screen, f"{screen}.{CODEBOOK}")):
            if name not in self.codebooks or f"{matrix}.low" not in self.tensors:
                continue
            if not np.isfinite(weights).all():
                raise not_finite(piece.tensor)
            self._write_three_bits(matrix, piece.first, weights, self.codebooks[name], factors)

    def _quantize(
        self,
        matrix: str,
        weights: FloatArray,
        codes: SourceCodes | None,
        tensor: str,
        hessians: Sequence[HessianFactor],
    ) -> Nested:
        """Quantizes n outputs of a matrix, float32 [n, K]. Where the source has 4-bit codes of its own, these stay.

        `hessians` are those of groups of channels, in order; empty without calibration.
        """
        if not hessians:
            return self._quantize_group(matrix, weights, codes, tensor, None)
        parts, start = [], 0
        for hessian in hessians:
            channels = slice(start, start + len(hessian.order))
            of_group = None if codes is None else codes.of(channels)
            group = np.ascontiguousarray(weights[:, channels])
            parts.append(self._quantize_group(matrix, group, of_group, tensor, hessian))
            start = channels.stop
        return parts[0] if len(parts) == 1 else Nested.joined(parts)

    def _quantize_group(
        self, matrix: str, weights: FloatArray, codes: SourceCodes | None, tensor: str, hessian: HessianFactor | None
    ) -> Nested:
        planes = sum(f"{matrix}.plane{plane}" in self.tensors for plane in (1, 2))
        levels = self._levels(matrix, planes, hessian is not None)
        # the zero point's shift for level 6 costs level 4, and GPTQ brings level 6 close without it
        six_bits = 6 in levels and (hessian is None or 4 not in levels)
        if codes is not None:
            codes = codes if hessian is None else choose_zeros(codes, weights, hessian)
            nested = nest(codes, weights, planes, tensor, six_bits)
        else:
            importance = None if hessian is None else hessian.importance
            nested = quantize_matrix(weights, planes, tensor, six_bits, importance, self.search)
        if hessian is None:
            return nested
        return choose_codes(weights, nested, hessian, levels, None if codes is None else codes.representable)

    def _levels(self, matrix: str, planes: int, chosen: bool) -> Collection[int]:
        """Bits at which a matrix may be read: where they are `chosen`, the output matrix at wider ones than its
        variant as well."""
        if matrix in ("embed", "head"):
            levels = {precision.lm_head_bits for precision in self.precisions}
            return range(min(levels), 4 + 2 * planes + 1, 2) if chosen else levels
        return {precision.of(matrix) for precision in self.precisions} - {THREE}

    def _write(self, matrix: str, first: int, nested: Nested) -> None:
        """Writes outputs first, first + 1, … of a matrix."""
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

    def _write_three_bits(
        self, matrix: str, first: int, weights: FloatArray, codebook: Codebook, hessians: Sequence[HessianFactor]
    ) -> None:
        """Fits outputs first, first + 1, … of a matrix, float32 [n, K], to level 3, and writes them."""
        importance = np.concatenate([hessian.conditional for hessian in hessians]) if hessians else None
        grid = choose_grid(weights, codebook, importance)
        codes = choose_three_bit_codes(weights, codebook, grid, hessians)
        blob, last = self.blob, first + len(weights)
        low, high = pack_codes(codes)
        blob.view(f"{matrix}.low")[:, first // 4 : last // 4] = low
        blob.view(f"{matrix}.high")[:, first // 8 : last // 8] = high
        blob.view(f"{matrix}.block_scale")[:, first:last] = pack_block_scale(grid)
        blob.view(f"{matrix}.output_scale")[first:last] = grid.output_scale


def _vector(padded: PaddedTensors, vector: str, parts: tuple[str, ...]) -> np.ndarray:
    values = {part: padded.read(vector, part) for part in dict.fromkeys(parts)}
    for part, value in values.items():
        if not np.isfinite(value).all():
            raise not_finite(part)
    return np.concatenate([values[part] for part in parts])


def _write_rope(blob: BlobWriter, decoder: Decoder) -> None:
    step = 1 << 12
    for index, rope in enumerate(decoder.ropes):
        for start in range(0, decoder.max_context, step):
            stop = min(start + step, decoder.max_context)
            for name, table in zip(table_names(index), tables(rope, start, stop - start), strict=True):
                blob.view(name)[start:stop] = table
