"""Maps the weights file once and shares it with every CPU session.

By default each session maps the file again, and the process's resident size counts every mapping. Eight variants would
then count as several copies of the weights. Initializers that a session gets as OrtValues over one mapping count once.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref

import numpy as np
from numpy.lib.stride_tricks import as_strided

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import TensorEntry
from sol_rt.bundle.file_state import FileState
from sol_rt.bundle.graph_file import ExternalTensor, external_tensors
from sol_rt.errors import BundleError

import onnxruntime as ort

ONNX_UINT4 = 21
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class SharedWeights:
    """Read-only tensors of one bundle. Sessions that use the tensors must not outlive this object.

    Args:
        bundle: the bundle whose weights file is mapped.

    Raises BundleError if the file cannot be mapped, or is another one than `Bundle.weights_state`.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._path = path = bundle.file(bundle.config.weights_file)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self._descriptor)
            mapping = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
            self._mapped = FileState.of(self._descriptor)
        except (OSError, ValueError) as error:
            raise BundleError(path, "", str(error), "a file that can be mapped") from None
        bundle.require_weights(self._mapped)
        self._bytes = np.frombuffer(mapping, np.uint8)
        self._values: dict[str, ort.OrtValue] = {}

    def require_unchanged(self) -> None:
        """Raises BundleError if the mapped file was written to or cut off since it was mapped.

        A file that takes its place under the same name is no change: the mapping keeps the one that it was made of.
        """
        stat = os.fstat(self._descriptor)
        if (stat.st_size, stat.st_mtime_ns) != (self._mapped.size, self._mapped.modified):  # runs at every step
            hint = "it was written to while in use: load the bundle again, and replace its files by renaming"
            raise BundleError(self._path, "", "other content", "the file as it was loaded", hint)

    def require_in_place(self) -> None:
        """Raises BundleError if the name of the weights file leads to another file than the mapped one.

        For sessions that read the file by its name.
        """
        self.require_unchanged()
        try:
            same = os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            same = False
        if not same:
            raise BundleError(self._path, "", "another file", "the file as it was loaded", "load the bundle again")

    def beginning(self, size: int) -> np.ndarray:
        """The first `size` bytes of the mapped file, or all if it has fewer: uint8, as a view."""
        return self._bytes[:size]

    def check(self, file: str) -> tuple[bytes, list[ExternalTensor]]:
        """Compares every weight that a graph file refers to with the config.

        Returns the file's content, which is what was compared, and these weights. Raises BundleError at the first
        difference.
        """
        config, path, content = self._bundle.config, self._bundle.path / file, self._bundle.read(file)
        tensors = external_tensors(path, content)
        for tensor in tensors:
            entry = config.tensors.get(tensor.name)
            hint = "the graph belongs to another bundle: export again"
            if entry is None or tensor.location != config.weights_file:
                got = f"a weight in {tensor.location!r}"
                raise BundleError(path, tensor.name, got, f"a tensor of {config.weights_file}", hint)
            asked = (tensor.dtype, tensor.shape, tensor.offset, tensor.length)
            stored = (entry.dtype, entry.shape, entry.offset, entry.bytes)
            if asked != stored:
                raise BundleError(path, tensor.name, _describe(*asked), _describe(*stored), hint)
        return content, tensors

    def attach(self, options: ort.SessionOptions, file: str, *, by_name: bool = False) -> bytes:
        """Adds the weights of one graph file to a session's options, and returns the file's content for the session.

        With `by_name`, ONNX Runtime opens the weights file itself: function bodies are optimized with the weights.
        Raises BundleError if graph and config differ.
        """
        content, tensors = self.check(file)
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(self._bundle.path))
        if by_name:
            self.require_in_place()
            return content
        for tensor in tensors:
            options.add_initializer(tensor.name, self.value(tensor.name))
        return content

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and place of a tensor in the weights file."""
        return self._bundle.config.tensors[name]

    def raw(self, name: str) -> np.ndarray:
        """A tensor's bytes, uint8, as a view of the mapped file."""
        entry = self.entry(name)
        return self._bytes[entry.offset : entry.offset + entry.bytes]

    def value(self, name: str) -> ort.OrtValue:
        """A tensor as an OrtValue that points into the mapped file, the same one in every thread."""
        found = self._values.get(name)
        if found is None:
            # Session options hold no reference. Of two threads that make a value, both must get the one that is kept.
            found = self._values.setdefault(name, _as_ort_value(self._bytes, self._bundle.config.tensors[name]))
        return found


def _describe(dtype: str, shape: tuple[int, ...], offset: int, size: int) -> str:
    return f"{dtype} {list(shape)} at {offset}, {size} bytes"


def _as_ort_value(data: np.ndarray, entry: TensorEntry) -> ort.OrtValue:
    raw = data[entry.offset : entry.offset + entry.bytes]
    if entry.dtype != "uint4":
        return ort.OrtValue.ortvalue_from_numpy(raw.view(entry.dtype).reshape(entry.shape))
    # numpy has no 4-bit type. A uint8 view of the logical shape replaces it; ONNX Runtime reads only the packed bytes.
    strides = tuple(math.prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape)))
    logical = as_strided(raw, shape=entry.shape, strides=strides, writeable=False)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(logical, ONNX_UINT4)
