"""weights.bin: laid out before anything is written, then filled tensor by tensor through a mapping."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from sol_rt.config import ALIGNMENT, TensorEntry, tensor_bytes
from sol_rt.export.architecture import BLOCK, Decoder, TensorNames
from sol_rt.export.checkpoint import matrices, matrix_shape, vector_size, vectors


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
