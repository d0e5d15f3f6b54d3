"""Writes ONNX nodes, one call for each node, for graphs and function bodies."""

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
"""`ends` of a Slice that runs to the end of the axis."""


@dataclass(frozen=True)
class Ref:
    """Stands for the integer attribute `name` of the calling node, as an attribute's value inside a function body."""

    name: str


class NodeWriter:
    """Collects nodes in execution order, and makes up names of intermediate values, which begin with `prefix`."""

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
        """Appends a node and returns the name of its first output, which is made up unless `out` gives it.

        `overload` selects the body if the model has several bodies for the operator.
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
        """A new name for an output."""
        return f"{self.prefix}{stem}_{len(self.nodes)}"

    def nonempty(self, counts: str) -> str:
        """True if the one-dimensional tensor `counts` has any element, bool [1]."""
        return self.op("Cast", self.op("Shape", counts), to=onnx.TensorProto.BOOL)

    def branch(
        self,
        condition: str,
        then: Callable[[NodeWriter], Sequence[str]],
        otherwise: Callable[[NodeWriter], Sequence[str]],
        out: Sequence[str],
        types: Sequence[int] = (),
    ) -> list[str]:
        """Writes an If node and returns `out`, the names of its outputs.

        The condition should depend on shapes alone. If these are known when a session is made, ONNX Runtime removes the
        branch that is not taken.

        Args:
            condition: bool [1].
            then, otherwise: write a branch into the writer that they get, and return the names of its results.
            out: names of the node's outputs.
            types: element types of the outputs, if type inference cannot find them.
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
        """A branch with one result: `then` if `counts` has any element, else `otherwise`."""
        (result,) = self.branch(
            self.nonempty(counts), lambda inner: [then(inner)], lambda inner: [otherwise(inner)], [self.name("if")]
        )
        return result

    def count(self, counts: str) -> str:
        """An int64 count [1] as float [1].

        Works for an empty tensor too, so that shape inference accepts a branch that is not taken.
        """
        return self.op("ReduceSum", self.op("Cast", counts, to=onnx.TensorProto.FLOAT), self.ints(0), keepdims=1)

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant of type `dtype`. Equal constants share a node."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}c{len(self._constants)}"
            self.op("Constant", out=name, value=numpy_helper.from_array(array))
            self._constants[key] = name
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant int64 [len(values)], for shapes, axes and starts."""
        return self.const(values, np.int64)

    def declare(self, name: str, shape: Sequence[int | str]) -> str:
        """States that `name` is float of this shape, which type inference cannot see through functions."""
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
