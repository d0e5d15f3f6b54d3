"""The operator `DecoderLayer`: the order of its weights, its attributes, and its function body.

    sequential:  m = x + attention(norm(x));   y = m + mlp(norm(m))
    parallel:    y = x + attention(norm(x)) + mlp(norm(x))                       x and y float [1, S, hidden]

Sequential layers may have norms of what attention and MLP give, instead of the norms of what they get or beside them.

The body consists of other operators of the domain `sol`, which have bodies of their own. A provider with kernels for
those runs them; one without gets standard operators only. In mixed-precision graphs some of them have no kernels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from sol_rt.bundle.bits import THREE, LayerBits
from sol_rt.bundle.config import CODEBOOK, KvLayout
from sol_rt.engine.signature import GATHER_CAPACITY
from sol_rt.export.graphs.functions.attention_shape import WINDOW, AttentionShape, rotated
from sol_rt.export.graphs.functions.operators import mlp_weights, weight_parts
from sol_rt.export.graphs.nodes import NodeWriter, Ref
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import LayerKind

CACHE = ("key", "value", "key_codes", "key_range")
SCALES = ("key_scale", "value_scale")
"""Further tensors of an int8 cache."""
_STEP = ("past_length", "kv_pages", "active_up", "active_down", "active_qkv", "active_o")


def layer_weights(decoder: Decoder, layer_bits: LayerBits, kind: LayerKind = "attention") -> list[str]:
    """The names of a layer's tensors, without `layers.{i}.`, in the order of the operator's inputs."""
    names = [name for norm in decoder.norms for name in norm_weights(decoder, norm)]
    if kind == "conv":
        names += ["conv.weight", *(["conv.bias"] if decoder.conv_bias else [])]
    elif decoder.qk_norm != "none":
        names.append("qk_norm.weight")
    biased = decoder.biased(kind)
    for matrix, bits in layer_bits._asdict().items():
        names += weight_names(matrix, bits)
        names += [f"{matrix}.bias"] if biased[matrix] else []
    return names


def norm_weights(decoder: Decoder, name: str) -> list[str]:
    """The names of a norm's tensors."""
    return [f"{name}.weight"] if decoder.norm == "rms" else [f"{name}.weight", f"{name}.bias"]


def weight_names(matrix: str, bits: int) -> list[str]:
    """The names of the tensors of a matrix read at `bits`, in the order of the operators' inputs."""
    return [f"{matrix}.{part}" for part in weight_parts(bits)]


def stored_name(layer: int, name: str) -> str:
    """The name in the weights file of a tensor of `layer_weights`. All matrices read the same codebook."""
    return CODEBOOK if name.endswith(f".{CODEBOOK}") else f"layers.{layer}.{name}"


def layer_attributes(decoder: Decoder, layer_bits: LayerBits, kv: KvLayout) -> dict[str, Any]:
    """The attributes of a `DecoderLayer` node except `layer`. All nodes of the same bits share them but for `window`.

    Those of traits that most models lack are left out where the model lacks them.
    """
    return {
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        **bits_attributes(**layer_bits._asdict()),
        "norm": decoder.norm,
        "epsilon": decoder.norm_eps,
        "parallel_residual": int(decoder.parallel_residual),
        "shared_norm": int(decoder.shared_norm),
        **AttentionShape.of(decoder, kv).attributes,
        "rotary_dim": decoder.rotary_dim,
        "gated": int(decoder.gated),
        "activation": decoder.activation,
        "qkv_bias": int(decoder.qkv_bias),
        "output_bias": int(decoder.output_bias),
        "mlp_bias": int(decoder.mlp_bias),
        **({"norm_place": decoder.norm_place} if decoder.norm_place != "before" else {}),
        **({"qk_norm": decoder.qk_norm} if decoder.qk_norm != "none" else {}),
        **({"qk_norm_after_rope": 1} if decoder.qk_norm_after_rope else {}),
    }


def cache_parts(kv: KvLayout) -> tuple[str, ...]:
    """The tensors of a layer's cache, in the order of the operators' outputs."""
    return CACHE + SCALES if kv.dtype == "int8" else CACHE


def decoder_layer(decoder: Decoder, layer_bits: LayerBits, kv: KvLayout, *, mixed: bool = False) -> onnx.FunctionProto:
    """The body of `DecoderLayer`. Its attributes except `layer` and `window` are constants in it; all layers of the
    same bits share it.

    A `mixed` graph has layers of different bits. There the bodies are overloads, and operators inside that depend on
    bits have them in their names: ONNX Runtime loses the overloads of functions that functions call.
    """
    function = _LayerBody(decoder, layer_bits, kv, mixed).function()
    function.overload = overload_tag(*layer_bits, mixed=mixed)
    return function


def overload_tag(*bits: int, mixed: bool) -> str:
    """Suffix of a function's name that separates functions of other bits in a mixed graph; empty in other graphs."""
    return "".join(map(str, bits)) if mixed else ""


class _LayerBody:
    """Writes the body. Its formal inputs have the names of the tensors, with `_` for `.`."""

    def __init__(self, decoder: Decoder, layer_bits: LayerBits, kv: KvLayout, mixed: bool) -> None:
        self.decoder, self.layer_bits, self.kv, self.mixed = decoder, layer_bits, kv, mixed
        self.cache = cache_parts(kv)
        self.scales = [f"past_{part}" for part in self.cache[len(CACHE) :]]
        self.writer = NodeWriter()

    def function(self) -> onnx.FunctionProto:
        decoder, op = self.decoder, self.writer.op
        for matrix, bits in self.layer_bits._asdict().items():
            if bits != THREE:
                self._allow_four_bits(f"{matrix}_base")
        normed = "x" if decoder.norm_place == "after" else self._norm("attn_norm", "x")
        attention = self._post_norm("attn_post_norm", self._attention(normed))
        if decoder.parallel_residual:
            if not decoder.shared_norm:
                normed = self._norm("mlp_norm", "x")
            op("Add", "x", op("Add", attention, self._mlp(normed)), out="y")
        elif decoder.norm_place == "after":
            middle = op("Add", "x", attention)
            op("Add", middle, self._post_norm("mlp_post_norm", self._mlp(middle)), out="y")
        else:
            normed, middle = self._norm_of_sum("mlp_norm", "x", attention)
            op("Add", middle, self._post_norm("mlp_post_norm", self._mlp(normed)), out="y")
        weights = [_formal(name) for name in layer_weights(decoder, self.layer_bits)]
        return self.writer.function(
            "DecoderLayer",
            ["x", *(f"past_{part}" for part in CACHE), *_STEP, "cos", "sin", *self.scales, *weights, "total_length"],
            ["y", *(f"present_{part}" for part in self.cache)],
            ["layer", *layer_attributes(decoder, self.layer_bits, self.kv)],
        )

    def _attention(self, x: str) -> str:
        decoder = self.decoder
        qkv = self._matmul(x, "qkv", self.layer_bits.qkv, decoder.hidden_size, decoder.qkv_size, bias=decoder.qkv_bias)
        if decoder.qk_norm != "none":
            qkv = self._qk_norm(qkv)
        past = [f"past_{part}" for part in CACHE]
        inputs = [qkv, *past, "past_length", self._own("kv_pages"), "cos", "sin", *self.scales, "total_length"]
        attributes = AttentionShape.of(decoder, self.kv).attributes
        of_node = {name: Ref(name) for name in (GATHER_CAPACITY, WINDOW) if name in attributes}
        self.writer.op(
            "SparseAttention",
            *inputs,
            out=["attended", *(f"present_{part}" for part in self.cache)],
            domain="sol",
            **(attributes | of_node),
        )
        width = decoder.num_heads * decoder.head_dim
        y = self._float("attended")
        return self._matmul(y, "o", self.layer_bits.o, width, decoder.hidden_size, bias=decoder.output_bias)

    def _qk_norm(self, qkv: str) -> str:
        """qkv with q and k normalized, and rotated before that where the norm comes after the rotary embedding."""
        decoder, op, ints = self.decoder, self.writer.op, self.writer.ints
        size, kv_size = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
        op("Split", qkv, ints(decoder.qk_size, kv_size), out=["qk", "unnormed_v"], axis=-1)
        qk = "qk"
        if decoder.qk_norm_after_rope:
            shape = replace(AttentionShape.of(decoder, self.kv), rotary_dim=decoder.rotary_dim)
            qk = rotated(self.writer, qk, decoder.num_heads + decoder.num_kv_heads, shape)
        if decoder.qk_norm == "head":
            rows = op("Reshape", qk, ints(0, 0, -1, decoder.head_dim))
            normed = op("Reshape", self._unweighted_norm(rows, decoder.head_dim), ints(0, 0, decoder.qk_size))
        else:
            op("Split", qk, ints(size, kv_size), out=["unnormed_q", "unnormed_k"], axis=-1)
            parts = (("unnormed_q", size), ("unnormed_k", kv_size))
            normed = op("Concat", *(self._unweighted_norm(*part) for part in parts), axis=-1)
        return op("Concat", op("Mul", normed, _formal("qk_norm.weight")), "unnormed_v", axis=-1)

    def _unweighted_norm(self, x: str, size: int) -> str:
        return norm(self.writer, self.decoder, x, [self.writer.const(np.ones(size))])

    def _mlp(self, x: str) -> str:
        decoder, up_bits, down_bits = self.decoder, self.layer_bits.up, self.layer_bits.down
        names = [*mlp_weights(up_bits, down_bits), *(["up.bias", "down.bias"] if decoder.mlp_bias else [])]
        y = self.writer.op(
            f"PrunedMLP{overload_tag(up_bits, down_bits, mixed=self.mixed)}",
            x,
            self._own("active_up"),
            self._own("active_down"),
            *map(_formal, names),
            domain="sol",
            K=decoder.hidden_size,
            I=decoder.intermediate_size,
            **bits_attributes(up=up_bits, down=down_bits),
            gated=int(decoder.gated),
            activation=decoder.activation,
            has_bias=int(decoder.mlp_bias),
        )
        return self._float(y)

    def _own(self, counts: str) -> str:
        """The layer's entry of `counts`, int64 [1]; empty if `counts` is empty.

        It is gathered, because WebGPU does not slice or split int64.
        """
        index = self.writer.op("Reshape", self.writer.op("Constant", value_int=Ref("layer")), self.writer.ints(1))
        return self.writer.where_any(
            counts, lambda inner: inner.op("Gather", counts, index), lambda inner: inner.op("Identity", counts)
        )

    def _norm(self, name: str, x: str) -> str:
        return norm(self.writer, self.decoder, x, [_formal(part) for part in norm_weights(self.decoder, name)])

    def _post_norm(self, name: str, x: str) -> str:
        """The norm of what attention or MLP gives, if the layer has one."""
        return x if self.decoder.norm_place == "before" else self._norm(name, x)

    def _norm_of_sum(self, name: str, x: str, added: str) -> tuple[str, str]:
        """One node for the norm of x + added and for that sum: names of both."""
        normed, middle = self.writer.name("normed"), self.writer.name("middle")
        self.writer.op(
            "SkipSimplifiedLayerNormalization" if self.decoder.norm == "rms" else "SkipLayerNormalization",
            *(x, added, *map(_formal, norm_weights(self.decoder, name))),
            out=[normed, "", "", middle],
            domain="com.microsoft",
            epsilon=self.decoder.norm_eps,
        )
        return normed, middle

    def _matmul(self, x: str, matrix: str, bits: int, inputs: int, outputs: int, *, bias: bool) -> str:
        weights = map(_formal, weight_names(matrix, bits))
        y = self.writer.op(
            f"PrunedMatMul{overload_tag(bits, mixed=self.mixed)}",
            x,
            self._own(f"active_{matrix}"),
            *weights,
            domain="sol",
            K=inputs,
            N=outputs,
            bits=bits,
        )
        y = self._float(y)
        return self.writer.op("Add", y, f"{matrix}_bias") if bias else y

    def _allow_four_bits(self, x: str) -> None:
        """Makes ONNX Runtime accept uint4 for the input x.

        It takes an input's types from the first operator that reads it, and if that is a function, it allows no type of
        4 bits. The node folds to a constant that no other node reads.
        """
        self.writer.op("Shape", x)

    def _float(self, x: str) -> str:
        """States that x is float, which type inference cannot see through functions."""
        return self.writer.op("Cast", x, to=TensorProto.FLOAT)


def norm(writer: NodeWriter, decoder: Decoder, x: str, weights: list[str], out: str | None = None) -> str:
    """Writes the decoder's norm of x."""
    op_type = "RMSNormalization" if decoder.norm == "rms" else "LayerNormalization"
    return writer.op(op_type, x, *weights, out=out, axis=-1, epsilon=decoder.norm_eps)


def bits_attributes(**bits: int) -> dict[str, Any]:
    """ONNX attributes of the bits: `bits` is the maximum; `<matrix>_bits` where a matrix has fewer."""
    most = max(bits.values())
    return {"bits": most, **{f"{matrix}_bits": own for matrix, own in bits.items() if own < most}}


def _formal(name: str) -> str:
    return name.replace(".", "_")
