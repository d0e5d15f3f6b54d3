"""Layers whose mixer is a gated short convolution, written into the graph as nodes of their own.

    B, C, u = norm(x) W_qkv                                                      each float [1, S, hidden]
    z       = B * u
    c[t]    = sum over j < k of filter[:, j] * z[t - (k - 1) + j]  (+ bias)      earlier z come from the state
    m       = x + (C * c) W_o
    y       = m + mlp(norm(m))

The state, float [1, hidden, k - 1], is z of the last k - 1 tokens. Nothing here is a function, so the kernels of
`PrunedMatMul` and `PrunedMLP` run in graphs of mixed precision, too. All else is standard operators.
"""

from __future__ import annotations

from collections.abc import Callable

from sol_rt.bundle.bits import LayerBits
from sol_rt.engine.signature import state_names
from sol_rt.export.graphs.functions.operators import mlp_weights
from sol_rt.export.graphs.layer import bits_attributes, norm, norm_weights, overload_tag, weight_names
from sol_rt.export.graphs.nodes import END, NodeWriter
from sol_rt.export.sources.decoder import Decoder


class ConvLayer:
    """Writes one layer.

    Args:
        writer: the graph's.
        decoder: the model.
        layer: index of the layer.
        layer_bits: the bits of its matrices.
        mixed: whether layers of the graph have different bits, so that the bodies of products are overloads.
        tensor: names the initializer of a tensor of the layer, such as `qkv.base`.
    """

    def __init__(
        self,
        writer: NodeWriter,
        decoder: Decoder,
        layer: int,
        layer_bits: LayerBits,
        *,
        mixed: bool,
        tensor: Callable[[str], str],
    ) -> None:
        self.writer, self.decoder, self.layer, self.layer_bits = writer, decoder, layer, layer_bits
        self.mixed, self.tensor = mixed, tensor

    def write(self, x: str, out: str) -> None:
        """Writes the layer from its input `x` to its output `out`, both float [1, S, hidden]."""
        op, hidden = self.writer.op, self.decoder.hidden_size
        projected = self._matmul(self._norm("attn_norm", x), "qkv", hidden, 3 * hidden)
        parts = [f"{out}.{part}" for part in ("B", "C", "u")]
        op("Split", projected, out=parts, axis=-1, num_outputs=3)
        gated = op("Mul", parts[1], self._filtered(op("Mul", parts[0], parts[2])))
        middle = op("Add", x, self._matmul(gated, "o", hidden, hidden))
        op("Add", middle, self._mlp(self._norm("mlp_norm", middle)), out=out)

    def _filtered(self, z: str) -> str:
        """z under the filters, float [1, S, hidden]; writes the new state."""
        op, ints, size = self.writer.op, self.writer.ints, self.decoder.conv_size
        past, present = state_names(self.layer)
        old = op("Transpose", past, perm=[0, 2, 1])
        rows = op("Concat", old, z, axis=1)  # [1, k - 1 + S, hidden]
        newest = op("Slice", rows, ints(1 - size), ints(END), ints(1))
        op("Transpose", newest, perm=[0, 2, 1], out=present)
        filters = op("Transpose", self.tensor("conv.weight"), perm=[1, 0])  # [k, hidden]
        total = self.tensor("conv.bias") if self.decoder.conv_bias else ""
        for j in range(size):
            last = j - (size - 1)
            seen = op("Slice", rows, ints(j), ints(last if last else END), ints(1))
            product = op("Mul", seen, op("Gather", filters, ints(j), axis=0))
            total = op("Add", product, total) if total else product
        return total

    def _norm(self, name: str, x: str) -> str:
        return norm(self.writer, self.decoder, x, list(map(self.tensor, norm_weights(self.decoder, name))))

    def _matmul(self, x: str, matrix: str, inputs: int, outputs: int) -> str:
        bits: int = getattr(self.layer_bits, matrix)
        y = self.writer.op(
            "PrunedMatMul",
            x,
            self._active(f"active_{matrix}"),
            *map(self.tensor, weight_names(matrix, bits)),
            domain="sol",
            overload=overload_tag(bits, mixed=self.mixed),
            K=inputs,
            N=outputs,
            bits=bits,
        )
        self.writer.declare(y, [1, "S", outputs])
        return self.writer.op("Add", y, self.tensor(f"{matrix}.bias")) if self.decoder.conv_bias else y

    def _mlp(self, x: str) -> str:
        decoder, up, down = self.decoder, self.layer_bits.up, self.layer_bits.down
        names = [*mlp_weights(up, down), *(["up.bias", "down.bias"] if decoder.mlp_bias else [])]
        y = self.writer.op(
            "PrunedMLP",
            x,
            self._active("active_up"),
            self._active("active_down"),
            *map(self.tensor, names),
            domain="sol",
            overload=overload_tag(up, down, mixed=self.mixed),
            K=decoder.hidden_size,
            I=decoder.intermediate_size,
            **bits_attributes(up=up, down=down),
            gated=int(decoder.gated),
            activation=decoder.activation,
            has_bias=int(decoder.mlp_bias),
        )
        return self.writer.declare(y, [1, "S", decoder.hidden_size])

    def _active(self, counts: str) -> str:
        """The layer's entry of `counts`, int64 [1]; empty if `counts` is empty."""
        index = self.writer.ints(self.layer)
        return self.writer.where_any(
            counts, lambda inner: inner.op("Gather", counts, index), lambda inner: inner.op("Identity", counts)
        )
