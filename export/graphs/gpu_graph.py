"""A bundle's graph made ready for a GPU: weights become inputs, so that all graphs read one copy in its memory.

What a graph computes of weights alone, ONNX Runtime would fold for every session anew, and keep a copy of the result in
each. Here such values are found, named after how they are made, and taken out of the graph: whoever runs it makes each
of them once and binds it. Two graphs that compute the same of the same weights name the same value.
`sol_rt/engine/gpu/gpu_graphs.py` reads what is written here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from sol_rt.bundle.bits import SCREENED
from sol_rt.bundle.config import BLOCK, KvLayout
from sol_rt.engine.gpu.gpu_graphs import Value
from sol_rt.engine.signature import GATHER_CAPACITY

import onnxruntime as ort

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 21: "uint4"}
_CHANNEL_MAJOR = "channel_major_base"
"""In a recipe: a 4-bit matrix [K, N] as the bytes [N, K / 32, 16] that MatMulNBits reads."""


@dataclass(frozen=True)
class GpuGraph:
    """A graph without weights.

    Attributes:
        model: serialized ONNX model.
        values: its inputs that hold weights.
    """

    model: bytes
    values: tuple[Value, ...]


def gpu_graph(
    content: bytes,
    *,
    inline: bool,
    bits: int,
    kv: KvLayout,
    constants: Mapping[str, np.ndarray] | None = None,
    dims: Mapping[str, int] | None = None,
    one_token: bool = False,
    float32: bool = False,
    kv_density: float = 1.0,
) -> GpuGraph:
    """Rewrites a graph of a bundle for a GPU.

    Args:
        content: of the graph file; its weights lie elsewhere.
        inline: whether the function bodies run; else the operators' kernels do, and weights stay as they are stored.
        bits: most bits of its layers' matrices.
        kv: the cache's layout.
        constants: graph inputs that always have these values; what depends on them alone is decided here.
        dims: sizes of dims of inputs that the file leaves open.
        one_token: whether `input_ids` always holds one token.
        float32: whether everything in float16 becomes float32, the cache too; for function bodies alone.
        kv_density: share of the old tokens that a step attends, for which function bodies are to have room.
    """
    model = onnx.load_from_string(content)
    _read_whole_head(model)
    if inline:
        _fit_gather_capacity(model.graph, kv_density, kv)
        model = onnx.inliner.inline_local_functions(model)
    rewriter = _Rewriter(model, bits, dict(constants or {}), dict(dims or {}), one_token)
    if float32:
        rewriter.widen()
    return rewriter.write()


def gather_capacity(row_pairs: int, kv_heads: int, kv_density: float, kv: KvLayout) -> int:
    """Upper bound on the (KV head, token) pairs that a function body gathers at this KV density.

    kv_heads * min(T, ceil(T * (kv_density + page_size / capacity_step))), with T = row_pairs / kv_heads tokens in a
    row. The second summand is the rounding up to a page in a cache of the least capacity. Where T is the smaller
    number, a row holds all its tokens for every head.
    """
    row_tokens = row_pairs // kv_heads
    return kv_heads * min(row_tokens, math.ceil(row_tokens * (kv_density + kv.page_size / kv.capacity_step)))


def _read_whole_head(model: onnx.ModelProto) -> None:
    """Makes a screened LM head one whose rows are all read at all bits, which needs no search among its logits.

    The other overload of its body is in the graph too.
    """
    for node in model.graph.node:
        if node.op_type == "NestedMatMul" and node.overload == SCREENED:
            node.overload = ""
            plain = [attribute for attribute in node.attribute if attribute.name in ("K", "N", "bits")]
            bits = next(attribute.i for attribute in plain if attribute.name == "bits")
            del node.attribute[:]
            node.attribute.extend(plain)
            del node.input[4 + (bits - 4) // 2 :]  # x, a matrix of its level, and then a screen of 3 bits
    functions = [function for function in model.functions if function.overload != SCREENED]
    del model.functions[:]
    model.functions.extend(functions)


def _fit_gather_capacity(graph: onnx.GraphProto, kv_density: float, kv: KvLayout) -> None:
    """Writes the gather capacity of a KV density into the layers that may leave out tokens."""
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if GATHER_CAPACITY in attributes and attributes["layer"].i not in kv.dense_layers:
            attributes[GATHER_CAPACITY].i = gather_capacity(
                attributes[GATHER_CAPACITY].i, attributes["kv_heads"].i, kv_density, kv
            )


class _Rewriter:
    def __init__(
        self,
        model: onnx.ModelProto,
        bits: int,
        constants: dict[str, np.ndarray],
        dims: dict[str, int],
        one_token: bool,
    ) -> None:
        self.model, self.graph = model, model.graph
        # 8 bits of activations would cost 8-bit weights more than theirs do
        self.accuracy_level = 1 if bits == 8 else 4
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer if _external(tensor)}
        self.values: dict[str, Value] = {}
        self._graph_outputs = {item.name for item in self.graph.output}
        self._splices = 0
        self._fix_inputs(constants, dims, one_token)

    def widen(self) -> None:
        """Makes everything float32 that is float16; weights are so where they are made, not in the file."""
        half = [name for name, tensor in self.weights.items() if tensor.data_type == TensorProto.FLOAT16]
        for node in self.graph.node:
            _rename(node, {name: _wide(name) for name in half})
        casts = [helper.make_node("Cast", [name], [_wide(name)], to=TensorProto.FLOAT) for name in half]
        _widen(self.graph)
        self._replace(self.graph.node, [*casts, *self.graph.node])

    def write(self) -> GpuGraph:
        self._name_types()
        self._fold_shapes()
        self._share_constants()
        self._take_branches()
        self._take_sides()
        self._multiply_by_nibbles()
        self._take_out_weights()
        self._drop_last_view()
        self._drop_unused()
        return GpuGraph(self.model.SerializeToString(), tuple(self.values.values()))

    def _fix_inputs(self, constants: dict[str, np.ndarray], dims: Mapping[str, int], one_token: bool) -> None:
        kept = [item for item in self.graph.input if item.name not in constants]
        for item in kept:
            if one_token and item.name == "input_ids":
                item.type.tensor_type.shape.dim[1].dim_value = 1
            for dim in item.type.tensor_type.shape.dim:
                if dim.dim_param in dims:
                    dim.dim_value = dims[dim.dim_param]
        self._replace(self.graph.input, kept)
        self.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())

    def _name_types(self) -> None:
        """Casts to the type of an input become casts to that type, which may be of weights alone then."""
        types = {item.name: item.type.tensor_type.elem_type for item in self.graph.input}
        for graph in _graphs(self.graph):
            for node in graph.node:
                if node.op_type == "CastLike" and node.input[1] in types:
                    to = types[node.input[1]]
                    node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, to=to))

    def _share_constants(self) -> None:
        """Makes initializers of the branches' constants, one for equal constants. Equal computations of layers then run
        once.
        """
        names: dict[str, str] = {}
        shared: dict[bytes, str] = {}
        for graph in reversed(list(_graphs(self.graph))[1:]):  # inner ones first: their parents' nodes are copied
            results = {item.name for item in graph.output}
            kept = []
            for node in graph.node:
                value = next((item.t for item in node.attribute if item.name == "value"), None)
                if node.op_type != "Constant" or value is None or node.output[0] in results:
                    kept.append(node)
                    continue
                key = _named(value, "").SerializeToString()
                if key not in shared:
                    shared[key] = f"constant.{len(shared)}"
                    self.graph.initializer.append(_named(value, shared[key]))
                names[node.output[0]] = shared[key]
            self._replace(graph.node, kept)
        for node in self.graph.node:
            _rename(node, names)

    def _fold_shapes(self) -> None:
        """Replaces the shapes of weights, and fixed shapes of inputs, by numbers. A dim of one name is read from one
        input that has it.
        """
        shapes: dict[str, list[int | str]] = {
            key: list(tensor.dims) for name, tensor in self.weights.items() for key in (name, _wide(name))
        }
        for item in self.graph.input:
            dims = item.type.tensor_type.shape.dim
            if all(dim.WhichOneof("value") for dim in dims):
                shapes[item.name] = [dim.dim_param or dim.dim_value for dim in dims]
        first: dict[tuple[int | str, ...], str] = {}
        for graph in _graphs(self.graph):
            for node in graph.node:
                if node.op_type != "Shape" or node.input[0] not in shapes:
                    continue
                shape = shapes[node.input[0]]
                given = {attribute.name: attribute.i for attribute in node.attribute}
                start, end = given.get("start", 0), given.get("end", len(shape))
                part = shape[start:end]
                if all(isinstance(dim, int) for dim in part):
                    value = numpy_helper.from_array(np.array(part, np.int64))
                    node.CopyFrom(helper.make_node("Constant", [], node.output, value=value))
                else:
                    node.input[0] = first.setdefault((start, end, *part), node.input[0])

    def _multiply_by_nibbles(self) -> None:
        """MatMul by a dequantized channel-major base becomes MatMulNBits, as ONNX Runtime fuses it where the base is an
        initializer. WebGPU has no kernel that dequantizes 4 bits along an axis.
        """
        made = {node.output[0]: node for node in self.graph.node if node.op_type == "DequantizeLinear"}
        nodes = []
        for node in self.graph.node:
            source = made.get(node.input[1]) if node.op_type == "MatMul" else None
            if source is None or source.input[0] not in self.weights:
                nodes.append(node)
                continue
            rows, columns = self.weights[source.input[0]].dims
            scale = f"{node.output[0]}_scale"
            kind = TensorProto.UINT8, [columns, rows // BLOCK, BLOCK // 2]
            key = f"{_CHANNEL_MAJOR}({source.input[0]})"
            packed = self._value(key, (source.input[0],), kind, repacked=True)
            nodes.append(helper.make_node("Transpose", [source.input[1]], [scale], perm=[1, 0]))
            nodes.append(
                helper.make_node(
                    "MatMulNBits",
                    [node.input[0], packed, scale],
                    list(node.output),
                    domain="com.microsoft",
                    K=rows,
                    N=columns,
                    bits=4,
                    block_size=BLOCK,
                    accuracy_level=self.accuracy_level,
                )
            )
        self._replace(self.graph.node, nodes)

    def _take_branches(self) -> None:
        """Puts the branch that a constant takes in the place of its If, until none is left."""
        while True:
            plain = self._plain()
            asked = [node for node in self.graph.node if node.op_type == "If" and node.input[0] in plain]
            if not asked:
                return
            answers = self._evaluated({node.input[0] for node in asked}, plain)
            nodes: list[onnx.NodeProto] = []
            renamed: dict[str, str] = {}
            for node in self.graph.node:
                _rename(node, renamed)
                if node.op_type != "If" or node.input[0] not in answers:
                    nodes.append(node)
                    continue
                wanted = "then_branch" if answers[node.input[0]].item() else "else_branch"
                branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
                nodes += self._spliced(branch, list(node.output), renamed)
            self._replace(self.graph.node, nodes)

    def _spliced(self, branch: onnx.GraphProto, outputs: list[str], renamed: dict[str, str]) -> list[onnx.NodeProto]:
        """The nodes of a branch under names of their own; `renamed` learns what stands for `outputs`."""
        self._splices += 1
        made = [name for node in branch.node for name in node.output if name]
        own = [*made, *(tensor.name for tensor in branch.initializer)]
        inner = {name: f"branch{self._splices}.{name}" for name in own}
        results = dict(zip(outputs, (item.name for item in branch.output), strict=True))
        # what the branch computes for the graph itself it writes there: a copy would be one of a whole cache
        inner |= {name: output for output, name in results.items() if output in self._graph_outputs and name in made}
        self.graph.initializer.extend(_named(tensor, inner[tensor.name]) for tensor in branch.initializer)
        nodes = list(branch.node)
        for node in nodes:
            _rename(node, {**renamed, **inner})
            for index, name in enumerate(node.output):
                node.output[index] = inner.get(name, name)
        for output, name in results.items():
            source = inner.get(name, renamed.get(name, name))
            if output not in self._graph_outputs:
                renamed[output] = source
            elif source != output:
                nodes.append(helper.make_node("Identity", [source], [output]))
        return nodes

    def _take_sides(self) -> None:
        """Leaves out the side of a Where that a constant never takes, and Identity: both are the value they pass on."""
        plain = self._plain()
        asked = [node for node in self.graph.node if node.op_type == "Where" and node.input[0] in plain]
        asked = [node for node in asked if node.output[0] not in plain]
        answers = self._evaluated({node.input[0] for node in asked}, plain) if asked else {}
        renamed: dict[str, str] = {}
        for node in self.graph.node:
            _rename(node, renamed)
            if node.output[0] in self._graph_outputs:
                continue
            if node.op_type == "Identity":
                renamed[node.output[0]] = node.input[0]
            elif node.op_type == "Where" and node.input[0] in answers and answers[node.input[0]].size == 1:
                chosen = node.input[1 if answers[node.input[0]].item() else 2]
                if chosen not in plain:  # a constant might have to be broadcast
                    renamed[node.output[0]] = chosen

    def _plain(self) -> set[str]:
        """Names of values that depend on neither weights nor inputs."""
        plain = {tensor.name for tensor in self.graph.initializer} - set(self.weights)
        for node in self.graph.node:
            if node.op_type != "If" and all(name in plain for name in node.input if name):
                plain.update(node.output)
        return plain

    def _evaluated(self, names: set[str], plain: set[str]) -> dict[str, np.ndarray]:
        """Values that depend on neither weights nor inputs."""
        wanted = sorted(names)
        nodes = _needed([node for node in self.graph.node if set(node.output) <= plain], wanted)
        initializers = [tensor for tensor in self.graph.initializer if tensor.name not in self.weights]
        outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
        graph = helper.make_graph(nodes, "constants", [], outputs, initializers)
        session = _constants_session(self._model(graph))
        return dict(zip(wanted, session.run(None, {}), strict=True))

    def _take_out_weights(self) -> None:
        """Everything made of weights becomes an input where something else reads it."""
        plain = {tensor.name: tensor for tensor in self.graph.initializer if tensor.name not in self.weights}
        constants: dict[str, onnx.NodeProto] = {}
        made: dict[str, onnx.NodeProto] = {}
        nodes = []
        for node in self.graph.node:
            names = [name for name in node.input if name]
            if all(name in plain or name in constants for name in names):
                constants.update(dict.fromkeys(node.output, node))
                nodes.append(node)
            elif node.op_type != "Shape" and all(
                name in plain or name in constants or name in self.weights or name in made for name in names
            ):
                made.update(dict.fromkeys(node.output, node))
            else:
                nodes.append(node)
        recipes = _Recipes(self._model, self.weights, plain, {**constants, **made})
        renamed: dict[str, str] = {}
        for node in nodes:
            for name in sorted(_read(node)):
                if name in self.weights:
                    tensor = self.weights[name]
                    self._value(name, (name,), (tensor.data_type, tensor.dims))
                elif name in made and node.output[0] not in constants:
                    recipe = recipes.of(name)
                    renamed[name] = self._value(recipe.key, recipe.weights, recipe.type, recipe.model)
            _rename(node, renamed)
        self._replace(self.graph.node, nodes)
        self._replace(self.graph.initializer, list(plain.values()))

    def _value(
        self,
        key: str,
        weights: tuple[str, ...],
        kind: tuple[int, Sequence[int]],
        recipe: bytes | None = None,
        *,
        repacked: bool = False,
    ) -> str:
        """Name of the graph input that holds a value of an ONNX type and shape; it is added where it is new."""
        name = key if key in self.weights else f"made.{hashlib.sha256(key.encode()).hexdigest()[:24]}"
        if name not in self.values:
            self.values[name] = Value(name, weights, _DTYPES[kind[0]], tuple(kind[1]), recipe, repacked)
            self.graph.input.append(helper.make_tensor_value_info(name, *kind))
        return name

    def _drop_last_view(self) -> None:
        """Lets Gemm write a graph output that is its result in another shape, also as [rows, outputs]. A Reshape would
        copy it into a buffer of its own, and WebGPU leaves copies out of its captures.
        """
        ranks = {item.name: len(item.type.tensor_type.shape.dim) for item in self.graph.output}
        made = {node.output[0] for node in self.graph.node if node.op_type == "Gemm"}
        views = [node for node in self.graph.node if node.op_type == "Reshape" and ranks.get(node.output[0]) == 2]
        views = [node for node in views if node.input[0] in made]
        renamed = {node.input[0]: node.output[0] for node in views}
        self._replace(self.graph.node, [node for node in self.graph.node if node not in views])
        for node in self.graph.node:
            _rename(node, renamed)
            for index, name in enumerate(node.output):
                node.output[index] = renamed.get(name, name)

    def _drop_unused(self) -> None:
        """Nodes whose results nobody reads, and inputs and initializers that nobody reads then."""
        outputs = [item.name for item in self.graph.output]
        self._replace(self.graph.node, _needed(list(self.graph.node), outputs))
        read = set().union(*map(_read, self.graph.node))
        self._replace(self.graph.initializer, [tensor for tensor in self.graph.initializer if tensor.name in read])
        dead = {name for name in self.values if name not in read}
        self.values = {name: value for name, value in self.values.items() if name not in dead}
        self._replace(self.graph.input, [item for item in self.graph.input if item.name not in dead])
        self._replace(self.graph.value_info, [])

    def _model(self, graph: onnx.GraphProto) -> bytes:
        model = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph)
        model.opset_import.extend(self.model.opset_import)
        return bytes(model.SerializeToString())

    @staticmethod
    def _replace(field: object, items: Sequence[object]) -> None:
        kept = list(items)
        del field[:]  # type: ignore[attr-defined]
        field.extend(kept)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Recipe:
    weights: tuple[str, ...]
    model: bytes
    type: tuple[int, list[int]]

    @property
    def key(self) -> str:
        return f"{hashlib.sha256(self.model).hexdigest()}({','.join(self.weights)})"


class _Recipes:
    """Models that compute values which depend on weights alone, one model for each value.

    Args:
        to_model: serializes a graph.
        weights, plain: initializers of the blob and others.
        nodes: of every value made of them, the node that makes it.
    """

    def __init__(
        self,
        to_model: Callable[[onnx.GraphProto], bytes],
        weights: Mapping[str, onnx.TensorProto],
        plain: Mapping[str, onnx.TensorProto],
        nodes: Mapping[str, onnx.NodeProto],
    ) -> None:
        self._to_model, self._weights, self._plain, self._nodes = to_model, weights, plain, nodes
        self._found: dict[str, _Recipe] = {}
        self._types: dict[bytes, tuple[int, list[int]]] = {}

    def of(self, name: str) -> _Recipe:
        if name not in self._found:
            self._found[name] = self._write(name)
        return self._found[name]

    def _write(self, wanted: str) -> _Recipe:
        """Names are counted, so that equal computations of other layers' weights are equal models."""
        names: dict[str, str] = {}
        inputs, initializers, nodes = [], [], []
        weights: list[str] = []

        def add(name: str) -> str:
            if name in names:
                return names[name]
            if name in self._weights:
                names[name] = str(len(weights))
                weights.append(name)
                tensor = self._weights[name]
                inputs.append(helper.make_tensor_value_info(names[name], tensor.data_type, list(tensor.dims)))
            elif name in self._plain:
                names[name] = f"c{len(names)}"
                initializers.append(_named(self._plain[name], names[name]))
            else:
                node = onnx.NodeProto()
                node.CopyFrom(self._nodes[name])
                node.name = ""
                for index, source in enumerate(node.input):
                    node.input[index] = add(source) if source else ""
                for index, output in enumerate(node.output):
                    names[output] = node.output[index] = f"t{len(names)}"
                nodes.append(node)
            return names[name]

        output = add(wanted)
        graph = helper.make_graph(nodes, "made", inputs, [onnx.ValueInfoProto(name=output)], initializers)
        model = self._to_model(graph)
        return _Recipe(tuple(weights), model, self._type(model))

    def _type(self, model: bytes) -> tuple[int, list[int]]:
        if model not in self._types:
            inferred = onnx.shape_inference.infer_shapes(
                onnx.load_from_string(model),
                strict_mode=True,
                data_prop=True,  # shapes that a node computes
            )
            kind = inferred.graph.output[0].type.tensor_type
            self._types[model] = kind.elem_type, [dim.dim_value for dim in kind.shape.dim]
        return self._types[model]


def _wide(name: str) -> str:
    """Name of the float32 copy of a float16 weight."""
    return f"{name}.float32"


def _widen(graph: onnx.GraphProto) -> None:
    """Makes float32 of the float16 that inputs, outputs and constants hold and that casts give, in subgraphs too."""
    for item in (*graph.input, *graph.output):
        if item.type.tensor_type.elem_type == TensorProto.FLOAT16:
            item.type.tensor_type.elem_type = TensorProto.FLOAT
    tensors = [tensor for tensor in graph.initializer if not _external(tensor)]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            elif attribute.type == onnx.AttributeProto.TENSOR:
                tensors.append(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g)
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Makes a node read other values under these names, in its subgraphs too; values have unique names throughout."""
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, names)
        for item in attribute.g.output:
            item.name = names.get(item.name, item.name)


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that make `outputs`, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_read(node))
            kept.append(node)
    return kept[::-1]


def _read(node: onnx.NodeProto) -> set[str]:
    """Names of all values that a node reads, in its subgraphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        names.update(item.name for item in attribute.g.output)
        names.update(*(_read(inner) for inner in attribute.g.node))
    return names


def _external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _constants_session(model: bytes) -> ort.InferenceSession:
    """A session of one thread, which needs no pool of the process."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
