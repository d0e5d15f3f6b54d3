"""Reads folders with an ONNX graph, as optimum and torch write them: the weights are the graph's initializers.

A graph keeps the names of embeddings, norms and biases. A matrix that the exporter has transposed is called
`onnx::MatMul_732` or the like; the node that multiplies with it has the name of its module,
`/model/layers.0/self_attn/q_proj/MatMul`. The filters of a short convolution, `onnx::Conv_726`, are read by the node
`/model/layers.0/conv/Conv` of the module around them. Where a family adds a number to the weights of its
norms, the graph has the sums, `onnx::Mul_2788`, and the node is `/model/layers.0/input_layernorm/Mul_1`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from sol_rt.errors import CheckpointError, one_line
from sol_rt.export.quantize.source_codes import SourceCodes
from sol_rt.export.sources import tokenizer_files
from sol_rt.export.sources.decoder import family_of
from sol_rt.export.sources.folder.hf_checkpoint import card_license, read_json
from sol_rt.read_file import require_regular

if TYPE_CHECKING:
    from sol_rt.export.sources.checkpoint import FloatArray
    from sol_rt.export.sources.families import Family

_NAMES = ("model.onnx", "decoder_model_merged.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")
_FOLDERS = (".", "onnx")
_FLOATS: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.BFLOAT16: np.dtype("<u2"),  # the upper half of a float32
}
_QUANTIZED = {
    *("DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul"),
    *("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"),
}
_HEAD = "lm_head"
_SAME = ("Identity", "Cast")
"""Operators whose output holds the numbers of their first input."""


def onnx_graph(folder: Path) -> Path | None:
    """The graph in a folder; None if there is none."""
    paths = (folder / inner / name for inner in _FOLDERS for name in _NAMES)
    return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class _Initializer:
    """A tensor of the graph.

    Attributes:
        values: its numbers as the file stores them, mapped where they lie in a file of their own.
        bfloat16: `values` are the upper halves of float32 numbers.
        transposed: the checkpoint's tensor has the axes in the other order.
        added: what the graph's numbers have more than the checkpoint's.
    """

    values: npt.NDArray[Any]
    bfloat16: bool
    transposed: bool = False
    added: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[::-1] if self.transposed else self.values.shape

    def rows(self, start: int, stop: int) -> FloatArray:
        values = self.values[:, start:stop].T if self.transposed else self.values[start:stop]
        if self.bfloat16:
            return (values.astype(np.uint32) << 16).view(np.float32) - np.float32(self.added)
        return np.require(values - np.float32(self.added) if self.added else values, np.float32, ["C", "W"])

    def turned(self) -> _Initializer:
        return replace(self, transposed=not self.transposed)


class OnnxCheckpoint:
    """A folder with a graph, config.json and the tokenizer's files.

    Args:
        path: the folder.
        trust_remote_code: code that comes with the checkpoint may run, to convert its tokenizer.

    Raises CheckpointError if the graph is damaged or quantized, a file of weights is missing, or there is no config.
    """

    def __init__(self, path: Path, trust_remote_code: bool = False) -> None:
        self.path = path
        self._trust_remote_code = trust_remote_code
        self.config: Mapping[str, Any] = read_json(path / "config.json")
        self.license, self.note = card_license(path), ""
        graph = onnx_graph(path)
        if graph is None:
            raise CheckpointError(f"{path}: got no ONNX graph, expected one of {', '.join(_NAMES)}")
        family = family_of(self.config)
        self._tensors = _named(_load(graph), graph, family)
        for kind in ("weight", "bias"):  # newer transformers call every family's head so
            if f"{_HEAD}.{kind}" in self._tensors:
                self._tensors.setdefault(f"{family.names.head}.{kind}", self._tensors.pop(f"{_HEAD}.{kind}"))

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        return self._tensors[name].rows(start, self.shape(name)[0] if stop is None else stop)

    def codes(self, name: str, start: int, stop: int) -> SourceCodes | None:
        return None  # the weights are floats

    def write_tokenizer(self, folder: Path) -> None:
        tokenizer_files.copy_from_folder(self.path, self.config, folder, self._trust_remote_code)


def _load(path: Path) -> onnx.ModelProto:
    try:
        require_regular(path)
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # which type depends on protobuf's version
        raise CheckpointError(f"{path}: damaged ONNX file ({one_line(error)}); export it again") from error


def _named(model: onnx.ModelProto, path: Path, family: Family) -> dict[str, _Initializer]:
    """The checkpoint's tensors by name."""
    norm_offset, filters = family.norm_offset, family.names.conv.rpartition(".")[2]
    graphs = list(_graphs(model.graph))
    nodes = [node for graph in graphs for node in graph.node]
    quantized = next((node.op_type for node in nodes if node.op_type in _QUANTIZED), None)
    if quantized is not None:
        raise CheckpointError(
            f"{path}: got quantized weights (operator {quantized}), expected float32 or float16; "
            "export from the unquantized model"
        )
    files = _Files(path)
    found = {
        tensor.name: _Initializer(files.values(tensor), tensor.data_type == TensorProto.BFLOAT16)
        for graph in graphs
        for tensor in graph.initializer
        if tensor.data_type in _FLOATS and tensor.dims
    }
    for node in nodes:  # tensors of equal content are stored once, and the others are their copies
        source = found.get(node.input[0]) if node.input else None
        if source is None:
            continue
        if node.op_type in _SAME:
            found[node.output[0]] = source
        elif node.op_type == "Transpose" and len(source.shape) == 2:
            found[node.output[0]] = source.turned()
    named = dict(found)
    for node in nodes:
        module = ".".join(node.name.strip("/").split("/")[:-1])
        weights = [name for name in node.input if name in found]
        if not module or not weights or f"{module}.weight" in named:
            continue
        weight = found[weights[0]]
        if node.op_type in ("MatMul", "Gemm") and len(weight.shape) == 2:
            by_rows = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            named[f"{module}.weight"] = weight if by_rows else weight.turned()
        elif filters and node.op_type == "Conv" and len(weight.shape) == 3:  # the node is of the module around them
            named.setdefault(f"{module}.{filters}.weight", weight)
        elif norm_offset and node.op_type == "Mul" and len(weight.shape) == 1 and module.endswith("norm"):
            named[f"{module}.weight"] = replace(weight, added=norm_offset)
    return {name: tensor for name, tensor in named.items() if name.endswith((".weight", ".bias"))}


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those in its nodes' attributes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


class _Files:
    """Reads the numbers of a graph's tensors, from the graph's file or others beside it."""

    def __init__(self, graph: Path) -> None:
        self._graph = graph
        self._mapped: dict[str, npt.NDArray[np.uint8]] = {}

    def values(self, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        """The numbers, of the tensor's shape. Raises CheckpointError if they are not where the graph says."""
        dtype, shape = _FLOATS[tensor.data_type], tuple(tensor.dims)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if tensor.data_location == TensorProto.EXTERNAL:
            data = self._external(tensor, size)
        elif tensor.HasField("raw_data"):
            data = np.frombuffer(tensor.raw_data, np.uint8)
        elif dtype.itemsize != 2:  # of 16 bits, the list has other numbers than the tensor
            data = np.frombuffer(numpy_helper.to_array(tensor).astype(dtype).tobytes(), np.uint8)
        else:
            data = np.frombuffer(np.asarray(tensor.int32_data, np.uint16).astype("<u2").tobytes(), np.uint8)
        if data.nbytes != size:
            raise CheckpointError(
                f"{self._graph}: tensor {tensor.name}: got {data.nbytes} bytes, expected {size}; export it again"
            )
        return data.view(dtype).reshape(shape)

    def _external(self, tensor: onnx.TensorProto, size: int) -> npt.NDArray[np.uint8]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if not name or Path(name).name != name:
            raise CheckpointError(
                f"{self._graph}: tensor {tensor.name}: got the file {name!r}, expected one in the graph's folder"
            )
        if name not in self._mapped:
            path = self._graph.with_name(name)
            if not path.is_file():
                raise CheckpointError(f"{path}: no such file, but the graph's weights are in it; copy it there")
            self._mapped[name] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        except ValueError:
            offset = length = -1
        data = self._mapped[name]
        if offset < 0 or length < 0 or offset + length > len(data):
            raise CheckpointError(
                f"{self._graph.with_name(name)}: it ends before tensor {tensor.name}; fetch or export it again"
            )
        return data[offset : offset + length]
