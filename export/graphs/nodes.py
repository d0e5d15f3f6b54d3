"""Writes ONNX nodes one call a node, for graphs and function bodies alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Nodes in execution order; names of intermediate values are made here, each beginning with `prefix`."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.value_infos: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(
        self,
        op_type: str,
        *inputs: str,
        out: str | Sequence[str] | None = None,
        domain: str = "",
        overload: str = "",
        **attributes: Any,
    ) -> str:
        """Appends a node; returns the name of its first output, made up where `out` does not give it.

        `overload` tells which body it has where a model has several for its operator.
        """
        outputs = [out] if isinstance(out, str) else list(out or [self.name(op_type.lower())])
        refs = {key: value for key, value in attributes.items() if isinstance(value, Ref)}
        plain = {key: value for key, value in attributes.items() if key not in refs}
        node = helper.make_node(op_type, inputs, outputs, domain=domain, overload=overload, **plain)
        for key, ref in refs.items():
            node.attribute.append(onnx.AttributeProto(name=key, ref_attr_name=ref.name, type=onnx.AttributeProto.INT))
        self.nodes.append(node)
        return outputs[0]

    def name(self, stem: str) -> str:
        """A name that no node has given to an output before."""
        return f"{self.prefix}{stem}_{len(self.nodes)}"

    def nonempty(self, counts: str) -> str:
        """Whether the tensor `counts` of one dim has an element, bool [1]."""
        return self.op("Cast", self.op("Shape", counts), to=onnx.TensorProto.BOOL)

    def branch(
        self,
        condition: str,
        then: Callable[[NodeWriter], Sequence[str]],
        otherwise: Callable[[NodeWriter], Sequence[str]],
        out: Sequence[str],
        types: Sequence[int] = (),
    ) -> list[str]:
        """Writes If: `out` are the values that `then` writes where `condition`, bool [1], holds, else `otherwise`'s.

        Their element types are wanted where type inference does not see them. The condition should depend on shapes
        alone: where they are known when a session is made, ONNX Runtime leaves the branch that is not taken out of the
        graph.
        """
        branches = {}
        for key, write in (("then_branch", then), ("else_branch", otherwise)):
            inner = NodeWriter(f"{self.name(key[:4])}_")
            results = [onnx.ValueInfoProto(name=name) for name in write(inner)]
            for result, kind in zip(results, types, strict=False):
                result.type.tensor_type.elem_type = kind
            branches[key] = helper.make_graph(inner.nodes, key, [], results)
        self.op("If", condition, out=out, **branches)
        return list(out)

    def where_any(self, counts: str, then: Callable[[NodeWriter], str], otherwise: Callable[[NodeWriter], str]) -> str:
        """As `branch`, of one value, by whether `counts` has an element."""
        (result,) = self.branch(
            self.nonempty(counts), lambda inner: [then(inner)], lambda inner: [otherwise(inner)], [self.name("if")]
        )
        return result

    def count(self, counts: str) -> str:
        """An int64 count [1] as float [1]. Of an empty tensor too, so that the shapes of a branch that is not taken
        pass inference."""
        return self.op("ReduceSum", self.op("Cast", counts, to=onnx.TensorProto.FLOAT), self.ints(0), keepdims=1)

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant of `dtype`; equal ones share a node."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}c{len(self._constants)}"
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
