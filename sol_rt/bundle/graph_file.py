"""The weights that a graph file refers to, which ONNX Runtime does not report. The native core reads the file.

A config that was edited by hand must not make a kernel read beyond a tensor's end.
"""

from __future__ import annotations

import json
from ctypes import byref, c_size_t, create_string_buffer
from dataclasses import dataclass
from pathlib import Path

from sol_rt.errors import BundleError
from sol_rt.native.library import core, path_bytes
from sol_rt.read_file import read_bytes


@dataclass(frozen=True)
class ExternalTensor:
    """A weight outside the graph file.

    Attributes:
        name, dtype, shape: as in the graph.
        location: name of the file that holds the weight.
        offset: place in that file, in bytes.
        length: size in bytes; -1 if the graph does not give it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int


def external_tensors(path: Path, content: bytes | None = None) -> list[ExternalTensor]:
    """Lists every initializer of a graph file, or of its `content`, whose data is external.

    Raises BundleError if it is no ONNX model, or one that would end the process.
    """
    try:
        model = read_bytes(path) if content is None else content
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "an ONNX graph") from None
    name, length = path_bytes(path), c_size_t()
    text = create_string_buffer(2 * len(model))  # entries are about as long as in the graph
    core().sol_graph_weights(model, len(model), name, text, len(text), byref(length))
    if length.value > len(text):
        text = create_string_buffer(length.value)
        core().sol_graph_weights(model, len(model), name, text, len(text), byref(length))
    found = json.loads(text.raw[: length.value])
    return [ExternalTensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in found]
