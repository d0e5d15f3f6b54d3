"""Reads from a graph file's protobuf which weights the graph refers to.

ONNX Runtime does not report this, and a config that was edited by hand must not make a kernel read beyond a tensor's
end. The reader decodes only the fields that it needs: ModelProto.graph = 7 and functions = 25, GraphProto.node = 1 and
initializer = 5, FunctionProto.node = 7, of NodeProto output = 2, op_type = 4 and attribute = 5, of AttributeProto
name = 1, i = 3, g = 6 and graphs = 11, and of TensorProto dims = 1, data_type = 2, name = 8, external_data = 13,
data_location = 14.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sol_rt.errors import BundleError
from sol_rt.read_file import read_bytes

ONNX_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 21: "uint4"}
"""TensorProto.DataType to the dtype names of `sol_config.json`."""

_EXTERNAL = 1
_DEEPEST = 40  # graphs in graphs; ONNX Runtime reads about 33, because protobuf reads 100 messages in messages


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
        graph = _submessage(model, 7)
        _check_nodes(_messages(graph, 1))
        for function in _messages(model, 25):
            _check_nodes(_messages(function, 7))
        return [tensor for item in _messages(graph, 5) if (tensor := _tensor(item)) is not None]
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "an ONNX graph") from None
    except (ValueError, IndexError):
        raise BundleError(path, "", "bytes that are not an ONNX model", "an ONNX graph") from None


def _check_nodes(nodes: Iterable[bytes], depth: int = 0) -> None:
    """Raises ValueError for a node that would end the process, also in the subgraphs of nodes such as If."""
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} graphs in graphs")
    for node in nodes:
        splits = False
        for number, value in _fields(node):
            if number == 4:
                splits = splits or value == b"Split"
            elif number == 5 and isinstance(value, bytes):
                for kind, graph in _fields(value):
                    if kind in (6, 11) and isinstance(graph, bytes):
                        _check_nodes(_messages(graph, 1), depth + 1)
        if splits:
            _check_split(node)


def _check_split(node: bytes) -> None:
    """Raises ValueError if the `num_outputs` of a Split is not that of its outputs: ONNX Runtime 1.32 aborts the
    process while they infer its shapes.
    """
    outputs = sum(number == 2 for number, _ in _fields(node))
    for number, attribute in _fields(node):
        if number == 5 and isinstance(attribute, bytes):
            values = list(_fields(attribute))
            texts = {field: value for field, value in values if isinstance(value, bytes)}
            # protobuf passes over a number in the field of the name
            if texts.get(1) == b"num_outputs" and dict(values).get(3) != outputs:
                raise ValueError(f"a Split with {outputs} outputs and another num_outputs")


def _tensor(message: bytes) -> ExternalTensor | None:
    name, dtype, shape, external = "", 0, [], False
    entries: dict[str, str] = {}
    for number, value in _fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else list(_packed(value))
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 8 and isinstance(value, bytes):
            name = value.decode()
        elif number == 13 and isinstance(value, bytes):
            key, text = _entry(value)
            entries[key] = text
        elif number == 14:
            external = value == _EXTERNAL
    if not external:
        return None
    kind = ONNX_DTYPES.get(dtype, f"ONNX type {dtype}")
    offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
    return ExternalTensor(name, kind, tuple(shape), entries.get("location", ""), offset, length)


@functools.lru_cache(maxsize=1024)  # every tensor names the same file, and many have the same size
def _entry(message: bytes) -> tuple[str, str]:
    """Key and value of an entry of external_data."""
    pair = {number: text for number, text in _fields(message) if isinstance(text, bytes)}
    return pair[1].decode() if 1 in pair else "", pair[2].decode() if 2 in pair else ""


def _messages(message: bytes, wanted: int) -> Iterator[bytes]:
    """Yields all values of a length-delimited field."""
    return (value for number, value in _fields(message) if number == wanted and isinstance(value, bytes))


def _submessage(message: bytes, wanted: int) -> bytes:
    """A message that stands in a field. Where the field occurs several times, protobuf reads them as one message."""
    found = list(_messages(message, wanted))
    if not found:
        raise ValueError(f"no field {wanted}")
    return b"".join(found)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (field number, value) of a protobuf message: numbers as int, length-delimited fields as bytes.

    Leaves out fields of 4 and 8 bytes. No field that is read here is one, and protobuf skips them in place of another.
    """
    at, end = 0, len(message)
    while at < end:
        tag = message[at]  # most numbers are one byte: a graph has tens of thousands, and a call for each takes long
        at += 1
        if tag >= 0x80:
            tag, at = _varint(message, at - 1)
            if tag >= 1 << 32:
                raise ValueError("a field number of more than 29 bits")  # protobuf would take the lower bits
        kind = tag & 7
        if kind in (0, 2):
            size = message[at]
            at += 1
            if size >= 0x80:
                size, at = _varint(message, at - 1)
            if kind == 0:
                yield tag >> 3, size
                continue
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        start, at = at, at + size
        if at > end:
            raise ValueError("a field runs past the end")
        if kind == 2:
            yield tag >> 3, message[start:at]


def _packed(chunk: bytes) -> Iterator[int]:
    at = 0
    while at < len(chunk):
        value, at = _varint(chunk, at)
        yield value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
