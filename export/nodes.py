"""Writes ONNX nodes one call a node, for graphs and function bodies alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

IR_VERSION = 11
OPSETS = {"": 23, "com.microsoft": 1, "sol": 1}
END = np.iinfo(np.int64).max
"""`ends` of a Slice that goes to the end of the axis."""


@dataclass(frozen=True)
class Ref:
    """Value of a node's attribute inside a function body: the integer attribute `name` of the calling node."""

    name: str


class NodeWriter:
    """Nodes in execution order; names of intermediate values are made here."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.value_infos: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(
        self, op_type: str, *inputs: str, out: str | Sequence[str] | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """Appends a node; returns the name of its first output, made up where `out` does not give it."""
        outputs = [out] if isinstance(out, str) else list(out or [f"{op_type.lower()}_{len(self.nodes)}"])
        refs = {key: value for key, value in attributes.items() if isinstance(value, Ref)}
        plain = {key: value for key, value in attributes.items() if key not in refs}
        node = helper.make_node(op_type, inputs, outputs, domain=domain, **plain)
        for key, ref in refs.items():
            node.attribute.append(onnx.AttributeProto(name=key, ref_attr_name=ref.name, type=onnx.AttributeProto.INT))
        self.nodes.append(node)
        return outputs[0]

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant of `dtype`; equal ones share a node."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self.op("Constant", out=name, value=numpy_helper.from_array(array))
            self._constants[key] = name
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant int64 [len(values)]: shapes, axes, starts."""
        return self.const(values, np.int64)

    def declare(self, name: str, shape: Sequence[int | str]) -> str:
        """States that `name` is float of this shape: type inference does not see through functions of other domains."""
        self.value_infos.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        return name

    def function(
        self, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Sequence[str]
    ) -> onnx.FunctionProto:
        """The nodes as the body of `sol::name`."""
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return helper.make_function("sol", name, inputs, outputs, self.nodes, opsets, attributes)

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        initializers: Sequence[onnx.TensorProto],
        functions: Sequence[onnx.FunctionProto],
    ) -> onnx.ModelProto:
        """The nodes as a complete model."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, initializers, value_info=self.value_infos)
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return helper.make_model(
            graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION, producer_name="sol_rt"
        )
