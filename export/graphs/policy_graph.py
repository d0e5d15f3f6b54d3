"""Writes the policy's graph, which gives every action a logit (docs/reference/bundle-details.md section 5).

The policy is a causal transformer of one layer over the steps of an episode. One run of the graph is one step; keys and
values of earlier steps are in the state.

    observation = [hidden state, embedding of the current token, MLP(scalars), embedding of the previous action]
    x  = input(observation) + position[step]
    x += output(attention(qkv(norm1(x)), state))
    x += down(gelu(up(norm2(x))))
    action_logits = actions(norm(x)) + direct(scalars)

A policy may leave out hidden state, embedding, or both. With width 0 there is no transformer layer, and the state stays
as it was:

    action_logits = direct([scalars, hidden state, embedding of the current token])

Whatever a graph reads, its inputs and outputs are the same.

Parameters, float32, named and laid out as in a torch state_dict (Linear is [out, in]; w = width, n scalars, A actions,
s = scalar_size, a = action_size, o = observed_size, the numbers that are read of hidden state and embedding):

    scalars.0.weight [s, n], scalars.0.bias [s], scalars.2.weight [s, s], scalars.2.bias [s]     Linear, GELU, Linear
    previous.weight [A + 1, a]                            row 0: no action yet; row i + 1: action i
    input.weight [w, o + s + a], input.bias [w]
    position.weight [horizon, w]
    norm1.weight, norm1.bias [w]                          LayerNorm, eps 1e-5
    qkv.weight [3 w, w], qkv.bias [3 w]                   q, k, v; each is heads * size, scores are scaled by size**-0.5
    output.weight [w, w], output.bias [w]
    norm2.weight, norm2.bias [w]
    up.weight [4 w, w], up.bias [4 w], down.weight [w, 4 w], down.bias [w]                       exact GELU between
    norm.weight, norm.bias [w]
    actions.weight [A, w], actions.bias [A]
    direct.0.weight [s, n], direct.0.bias [s], direct.2.weight [A, s], direct.2.bias [A]         Linear, GELU, Linear

With width 0 there are the last four alone, and direct.0.weight is [s, n + o].

The embedding is the bundle's, dequantized at its widest level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from sol_rt.bundle.config import BLOCK, TensorEntry
from sol_rt.errors import CheckpointError
from sol_rt.export.graphs.functions import operators as bodies
from sol_rt.export.graphs.graph import reference, widest_bits
from sol_rt.export.graphs.layer import weight_names
from sol_rt.export.graphs.nodes import NodeWriter

_NORM_EPS = 1e-5
_UNSEEN = -1e30  # score of a step that has not happened yet

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PolicyShape:
    """The sizes of a policy.

    Attributes:
        hidden_size: the model's hidden size.
        num_scalars, num_actions: lengths of `policy.scalars` and `policy.actions` in sol_config.json.
        horizon: number of steps in an episode.
        width, heads: width and number of heads of the transformer layer. Width 0: without that layer.
        scalar_size, action_size: sizes of the observation's parts for the scalars and for the previous action.
        use_hidden, use_embedding: whether the policy reads the last hidden state and the current token's embedding.
    """

    hidden_size: int
    num_scalars: int
    num_actions: int
    horizon: int = 16
    width: int = 128
    heads: int = 4
    scalar_size: int = 32
    action_size: int = 32
    use_hidden: bool = True
    use_embedding: bool = True

    @property
    def observed_size(self) -> int:
        """Numbers of the hidden state and the embedding that the policy reads."""
        return self.hidden_size * (self.use_hidden + self.use_embedding)

    @property
    def state_shape(self) -> tuple[int, int, int, int, int]:
        """The state's shape: layers, keys and values, heads, steps, size of a head.

        Without a layer nothing reads the state; it is as small as the format allows.
        """
        return (1, 2, self.heads, self.horizon, self.width // self.heads) if self.width else (1, 2, 1, self.horizon, 1)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by name."""
        width, small, actions = self.width, self.scalar_size, self.num_actions
        if not width:
            return _with_biases(
                {"direct.0": (small, self.num_scalars + self.observed_size), "direct.2": (actions, small)}
            )
        linear = {
            "direct.0": (small, self.num_scalars),
            "direct.2": (actions, small),
            "scalars.0": (small, self.num_scalars),
            "scalars.2": (small, small),
            "input": (width, self.observed_size + small + self.action_size),
            "qkv": (3 * width, width),
            "output": (width, width),
            "up": (4 * width, width),
            "down": (width, 4 * width),
            "actions": (actions, width),
        }
        embeddings = {"previous.weight": (actions + 1, self.action_size), "position.weight": (self.horizon, width)}
        return embeddings | _with_biases(linear | dict.fromkeys(("norm1", "norm2", "norm"), (width,)))


def _with_biases(weights: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of layers' weights and biases."""
    parts = ((f"{name}.{part}", size) for name, size in weights.items() for part in ("weight", "bias"))
    return {name: size[:1] if name.endswith("bias") else size for name, size in parts}


def random_policy_parameters(seed: int, shape: PolicyShape) -> dict[str, FloatArray]:
    """Untrained parameters.

    Norms are the identity, biases are 0, and all others are normal with standard deviation 1 / sqrt(inputs).
    """
    rng, parameters = np.random.default_rng(seed), {}
    for name, size in shape.parameters().items():
        if name.startswith("norm"):
            value = np.full(size, float(name.endswith("weight")))
        elif name.endswith("bias"):
            value = np.zeros(size)
        else:
            value = rng.standard_normal(size) / math.sqrt(size[1])
        parameters[name] = value.astype(np.float32)
    return parameters


def build_policy(
    shape: PolicyShape, parameters: Mapping[str, FloatArray], tensors: Mapping[str, TensorEntry], weights_file: str
) -> onnx.ModelProto:
    """The policy's graph with its parameters. The embedding is a reference into the weights file.

    Raises CheckpointError if a parameter is missing, unknown or of a wrong shape, or if the hidden size is not that of
    the bundle's model.
    """
    _check(shape, parameters, tensors)
    return _PolicyWriter(shape, parameters, tensors, weights_file).write()


def _check(shape: PolicyShape, parameters: Mapping[str, FloatArray], tensors: Mapping[str, TensorEntry]) -> None:
    expected = shape.parameters()
    for name in expected.keys() | parameters.keys():
        got = tuple(parameters[name].shape) if name in parameters else "nothing"
        if got != expected.get(name):
            raise CheckpointError(
                f"policy parameter {name}: got {got}, expected {expected.get(name, 'no such name')}; "
                "train the policy for this bundle"
            )
    hidden = tensors["embed.scale"].shape[0] * BLOCK
    if hidden != shape.hidden_size:
        raise CheckpointError(f"policy: made for hidden size {shape.hidden_size}, the bundle's model has {hidden}")


class _PolicyWriter:
    def __init__(
        self,
        shape: PolicyShape,
        parameters: Mapping[str, FloatArray],
        tensors: Mapping[str, TensorEntry],
        weights_file: str,
    ) -> None:
        self.shape, self.parameters, self.tensors, self.weights_file = shape, parameters, tensors, weights_file
        self.bits = widest_bits(tensors)
        self.writer = NodeWriter()

    def write(self) -> onnx.ModelProto:
        op, ints = self.writer.op, self.writer.ints
        observed = ["hidden_states"] if self.shape.use_hidden else []
        if self.shape.use_embedding:
            observed.append(self._embedding())
        if not self.shape.width:
            inputs = op("Concat", "scalars", *observed, axis=-1) if observed else "scalars"
            self._two_layers("direct", inputs, out="action_logits")
            op("Identity", "past_state", out="present_state")
            return self._model()
        action = op("Gather", "previous.weight", op("Add", "previous_action", ints(1)), axis=0)
        x = self._linear("input", op("Concat", *observed, self._two_layers("scalars", "scalars"), action, axis=-1))
        x = op("Add", x, op("Gather", "position.weight", "step", axis=0))
        x = op("Add", x, self._linear("output", self._attention(self._linear("qkv", self._norm("norm1", x)))))
        x = op("Add", x, self._linear("down", op("Gelu", self._linear("up", self._norm("norm2", x)))))
        logits = self._linear("actions", self._norm("norm", x))
        op("Add", logits, self._two_layers("direct", "scalars"), out="action_logits")
        return self._model()

    def _embedding(self) -> str:
        names = weight_names("embed", self.bits)
        hidden, vocabulary = self.shape.hidden_size, self.tensors["embed.scale"].shape[1]
        row = self.writer.op("NestedGather", "input_ids", *names, domain="sol", K=hidden, N=vocabulary, bits=self.bits)
        self.writer.declare(row, [1, 1, hidden])
        return self.writer.op("Reshape", row, self.writer.ints(1, hidden))

    def _linear(self, name: str, x: str, out: str | None = None) -> str:
        return self.writer.op("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1, out=out)

    def _two_layers(self, name: str, x: str, out: str | None = None) -> str:
        return self._linear(f"{name}.2", self.writer.op("Gelu", self._linear(f"{name}.0", x)), out)

    def _norm(self, name: str, x: str) -> str:
        return self.writer.op("LayerNormalization", x, f"{name}.weight", f"{name}.bias", axis=-1, epsilon=_NORM_EPS)

    def _attention(self, qkv: str) -> str:
        """Stores the step's key and value, then attends to the episode's steps so far.

        `qkv` is float [1, 3 w]; returns float [1, w].
        """
        op, ints, const = self.writer.op, self.writer.ints, self.writer.const
        _, _, heads, horizon, size = self.shape.state_shape
        q = op("Split", qkv, ints(self.shape.width, 2 * self.shape.width), out=["q", "kv"], axis=-1)
        rows = np.zeros((2, heads, 4), np.int64)  # index (0, side, head, step) of each row [size]
        rows[..., 1], rows[..., 2] = np.arange(2)[:, None], np.arange(heads)
        rows_at_step = op("Add", const(rows, np.int64), op("Mul", "step", ints(0, 0, 0, 1)))
        op("ScatterND", "past_state", rows_at_step, op("Reshape", "kv", ints(2, heads, size)), out="present_state")
        op("Split", "present_state", out=["state_keys", "state_values"], axis=1, num_outputs=2)
        keys, values = (op("Reshape", side, ints(heads, horizon, size)) for side in ("state_keys", "state_values"))
        q = op("Reshape", op("Mul", q, const(size**-0.5)), ints(heads, 1, size))
        scores = op("MatMul", q, op("Transpose", keys, perm=[0, 2, 1]))
        seen = op("LessOrEqual", const(np.arange(horizon), np.int64), "step")
        weights = op("Softmax", op("Where", seen, scores, const(_UNSEEN)), axis=-1)
        return op("Reshape", op("MatMul", weights, values), ints(1, self.shape.width))

    def _model(self) -> onnx.ModelProto:
        shape, info = self.shape, helper.make_tensor_value_info
        inputs = [
            info("hidden_states", TensorProto.FLOAT, [1, shape.hidden_size]),
            info("input_ids", TensorProto.INT64, [1, 1]),
            info("scalars", TensorProto.FLOAT, [1, shape.num_scalars]),
            info("previous_action", TensorProto.INT64, [1]),
            info("step", TensorProto.INT64, [1]),
            info("past_state", TensorProto.FLOAT, shape.state_shape),
        ]
        outputs = [
            info("action_logits", TensorProto.FLOAT, [1, shape.num_actions]),
            info("present_state", TensorProto.FLOAT, shape.state_shape),
        ]
        initializers = [
            numpy_helper.from_array(np.ascontiguousarray(self.parameters[name], np.float32), name)
            for name in shape.parameters()
        ]
        functions = []
        if shape.use_embedding:
            names = weight_names("embed", self.bits)
            initializers += [reference(name, self.tensors[name], self.weights_file) for name in names]
            functions = [bodies.nested_gather(self.bits, shape.hidden_size)]
        return self.writer.model("policy", inputs, outputs, initializers, functions)
