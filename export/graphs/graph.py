"""Builds the graph of a precision, and says which channels and bytes its variants read.

docs/reference/bundle-details.md section 1 has the contract.

One builder serves every family. The graph holds topology only; its weights are references into weights.bin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sol_rt.bundle.bits import SCREENED, THREE, LayerBits, Precision, bits_tag, screen_matrix
from sol_rt.bundle.config import FileEntry, KvLayout, SolConfig, TensorEntry, Variant, screened_bytes
from sol_rt.engine.signature import SPARSE_CHANNELS, SPARSE_KV, state_names
from sol_rt.export.graphs.conv_layer import ConvLayer
from sol_rt.export.graphs.functions import operators as bodies
from sol_rt.export.graphs.functions.attention import sparse_attention
from sol_rt.export.graphs.functions.attention_shape import NO_WINDOW, WINDOW, AttentionShape
from sol_rt.export.graphs.layer import (
    CACHE,
    bits_attributes,
    cache_parts,
    decoder_layer,
    layer_attributes,
    layer_weights,
    norm,
    norm_weights,
    overload_tag,
    stored_name,
    weight_names,
)
from sol_rt.export.graphs.nodes import NodeWriter
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.rope import table_names


class Target(Enum):
    """A processor without kernels, for which a graph's bodies are written anew: everything is float32, the cache too.

    WASM: the host dequantizes the matrices, because ONNX Runtime has no fast product of codes there.
    WEBGPU: the host packs channel-major bases, because ONNX Runtime's build for browsers can't fold 4-bit zero points.
    """

    WASM = "wasm"
    WEBGPU = "webgpu"


_PRODUCTS = {
    None: bodies.Products.FUSED,
    Target.WASM: bodies.Products.FLOATS,
    Target.WEBGPU: bodies.Products.PACKED,
}
_DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "uint4": TensorProto.UINT4,
}
_PRUNED = ("base", "low", "high")
"""Tensors of a layer's matrix that have one row for each input channel; rows of inactive channels are not read."""
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_ACTIVE_QKV = (0.0, 0.3, 0.56, 0.8, 1.0)
_ACTIVE_O = (0.0, 0.22, 0.42, 0.64, 1.0)
"""Active shares of the input channels of attention's two projections, at the channel densities of _SHARES.

They are the best for SmolLM2-135M, whose attention holds _ATTENTION of a layer's weights. Where it holds less, a
channel costs less there, and fewer are left out: docs/results/quality.md."""
_ATTENTION = 0.25
_SPREAD = {True: (0.0, 0.05, 0.08, 0.06, 0.0), False: (0.0, 0.075, 0.12, 0.12, 0.0)}
"""Excess of the active share of the MLP's first matrix over the whole MLP's, at the shares of _SHARES; by gated or not.
"""
_BACKWARD = np.iinfo(np.int64).min + 1  # `ends` of a Slice that runs backward through the whole axis


@dataclass(frozen=True)
class LayerShapes:
    """The shapes of a layer's matrices: (K, N), input channels and outputs.

    Where layers of several kinds differ in outputs, N is the mean over the layers, rounded.
    """

    up: tuple[int, int]
    down: tuple[int, int]
    qkv: tuple[int, int]
    o: tuple[int, int]

    @classmethod
    def of(cls, decoder: Decoder) -> LayerShapes:
        """The shapes of a decoder's layers."""
        hidden, layers = decoder.hidden_size, decoder.num_layers
        mixers = [decoder.mixer_shapes(decoder.kind(layer)) for layer in range(layers)]
        qkv, o = mixers[0]
        return cls(
            (hidden, decoder.up_size),
            (decoder.intermediate_size, hidden),
            (qkv[0], round(sum(shape[1] for shape, _ in mixers) / layers)),
            o,
        )


def active_counts(channel_density: float, shapes: LayerShapes) -> tuple[int, int, int, int]:
    """The active channels of a layer's matrices, (active_up, active_down, active_qkv, active_o), the same in all
    layers.

    Together the matrices read the share `channel_density` of the layer's weights. The output projection of attention
    tolerates fewer active channels than the input projection; the MLP gets what these two leave. At densities of 0.5
    and more the inactive shares of attention's matrices are multiplied by a factor. It is proportional to their share
    of the layer's weights, and at most 1.

    Args:
        channel_density: the share of the weights, 0 to 1.
        shapes: the layers' matrices.
    """
    sizes = {name: float(math.prod(shape)) for name, shape in vars(shapes).items()}
    mlp = sizes["up"] + sizes["down"]
    attention = min(1.0, (1 - mlp / sum(sizes.values())) / _ATTENTION)
    inactive = float(np.interp(channel_density, (0.0, 0.5), (1.0, attention)))  # next to nothing leaves no room for it
    qkv, o = (1 - inactive * (1 - np.interp(channel_density, _SHARES, active)) for active in (_ACTIVE_QKV, _ACTIVE_O))
    rest = (channel_density * sum(sizes.values()) - qkv * sizes["qkv"] - o * sizes["o"]) / mlp
    return *mlp_counts(rest, shapes.up, shapes.down), _ceil(qkv * shapes.qkv[0]), _ceil(o * shapes.o[0])


def mlp_counts(share: float, up: tuple[int, int], down: tuple[int, int]) -> tuple[int, int]:
    """The active channels (active_up, active_down) that read `share` of the weights of MLP matrices of shapes (K, N).

    Channels of the hidden state matter more than those between the two matrices. So more than `share` of the first
    matrix's channels are active, and less of the second's.
    """
    gated = up[1] == 2 * down[0]
    spread = float(np.interp(share, _SHARES, _SPREAD[gated]))
    first, second = share + spread, share - spread * (2 if gated else 1)
    return _ceil(first * up[0]), _ceil(second * down[0])


def weight_bytes(decoder: Decoder, tensors: Mapping[str, TensorEntry], variant: Variant) -> int:
    """Bytes of weights.bin that a decode step reads, by docs/reference/bundle-details.md section 4."""
    total = 0
    counts = {"up": variant.active_up, "down": variant.active_down, "qkv": variant.active_qkv, "o": variant.active_o}
    head = head_tensors(decoder, variant.precision)
    for name in variant_tensors(decoder, variant.precision):
        size = tensors[name].bytes
        if name.startswith("layers.") and name.rpartition(".")[2] in _PRUNED:
            _, layer, matrix, _ = name.split(".")
            size = size * counts[matrix][int(layer)] // tensors[name].shape[0]
        elif name.startswith("rope."):
            continue
        elif variant.lm_head_screen is not None and name in head:
            size = screened_bytes(name, tensors[name], variant.lm_head_screen)
        total += size
    if not decoder.tied:
        row = weight_names("embed", widest_bits(tensors))
        total += sum(tensors[name].bytes for name in row) // decoder.vocab_size
    return total


def head_tensors(decoder: Decoder, precision: Precision) -> list[str]:
    """The names of the LM head's tensors, those of a screen of 3 bits last."""
    matrix = decoder.lm_head
    own = weight_names(screen_matrix(matrix), THREE) if precision.screened_by_three_bits else []
    return weight_names(matrix, precision.lm_head_bits) + own


def variant_tensors(decoder: Decoder, precision: Precision) -> list[str]:
    """The names of the tensors that a variant multiplies or adds. Those that are only looked up are left out."""
    names = head_tensors(decoder, precision)
    for layer in range(decoder.num_layers):
        own = layer_weights(decoder, precision.layer(layer), decoder.kind(layer))
        names += [stored_name(layer, name) for name in own]
    names += norm_weights(decoder, "final_norm")
    names += ["head.bias"] if decoder.head_bias else []
    names += [table for index in range(len(decoder.ropes)) for table in table_names(index)]
    return list(dict.fromkeys(names))


def widest_bits(tensors: Mapping[str, TensorEntry]) -> int:
    """The bits of the bundle's widest level."""
    return 4 + 2 * sum(f"embed.plane{index}" in tensors for index in (1, 2))


def reference(name: str, entry: TensorEntry, weights_file: str) -> onnx.TensorProto:
    """An initializer whose data are in the weights file."""
    tensor = onnx.TensorProto(
        name=name, data_type=_DTYPES[entry.dtype], dims=entry.shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", weights_file), ("offset", entry.offset), ("length", entry.bytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def build_graph(
    decoder: Decoder,
    precision: Precision,
    tensors: Mapping[str, TensorEntry],
    weights_file: str,
    kv: KvLayout | None = None,
    target: Target | None = None,
) -> onnx.ModelProto:
    """The graph of docs/reference/bundle-details.md section 1 that runs all variants of the same bits.

    Args:
        decoder: the model.
        precision: the bits of the graph's matrices.
        tensors: places in the weights file, by name, of at least the tensors that the precision reads.
        weights_file: name of the weights file, in the graph's folder.
        kv: the cache's layout; by default float16.
        target: writes other bodies, for a processor that has no kernels.
    """
    return _GraphWriter(decoder, precision, tensors, weights_file, kv or KvLayout(), target).write()


class _GraphWriter:
    def __init__(
        self,
        decoder: Decoder,
        precision: Precision,
        tensors: Mapping[str, TensorEntry],
        weights_file: str,
        kv: KvLayout,
        target: Target | None,
    ) -> None:
        kv = kv if target is None else replace(kv, dtype="float32")
        self.target, self.products = target, _PRODUCTS[target]
        self.decoder, self.precision, self.tensors, self.weights_file = decoder, precision, tensors, weights_file
        self.screen = precision.lm_head_screen if target is None else None
        layers = range(decoder.num_layers)
        self.kinds = sorted({precision.layer(layer) for layer in layers if decoder.kind(layer) == "attention"})
        self.conv_kinds = sorted({precision.layer(layer) for layer in layers if decoder.kind(layer) == "conv"})
        self.mixed = precision.layers is not None
        self.kv, self.cache = kv, cache_parts(kv)
        self.writer = NodeWriter()
        self.used: dict[str, None] = {}  # names of tensors in order of first use

    def write(self) -> onnx.ModelProto:
        decoder, op = self.decoder, self.writer.op
        widest = widest_bits(self.tensors)
        x = self._nested("NestedGather", "input_ids", weight_names("embed", widest), bits=widest)
        if decoder.embedding_scale != 1.0:
            x = op("Mul", x, self.writer.const(decoder.embedding_scale))
        for layer in range(decoder.num_layers):
            x = self._layer(layer, x)
        weights = [self._tensor(name) for name in norm_weights(decoder, "final_norm")]
        hidden = norm(self.writer, decoder, self._last_positions(x), weights, out="hidden_states")
        self._project(hidden, bias=decoder.head_bias)
        return self.writer.model(
            bits_tag(self.precision.bits),
            self._inputs(),
            self._outputs(),
            [reference(name, self.tensors[name], self.weights_file) for name in self.used],
            self._functions(),
        )

    def _layer(self, layer: int, x: str) -> str:
        y, layer_bits = f"layer.{layer}", self.precision.layer(layer)
        self.writer.declare(y, [1, "S", self.decoder.hidden_size])
        if self.decoder.kind(layer) == "conv":
            conv = ConvLayer(
                *(self.writer, self.decoder, layer, layer_bits),
                mixed=self.mixed,
                tensor=lambda name: self._tensor(stored_name(layer, name)),
            )
            conv.write(x, y)
            return y
        weights = [stored_name(layer, name) for name in layer_weights(self.decoder, layer_bits)]
        attributes = layer_attributes(self.decoder, layer_bits, self.kv)
        if WINDOW in attributes:
            attributes[WINDOW] = self.decoder.window(layer) or NO_WINDOW
        return self.writer.op(
            "DecoderLayer",
            x,
            *(_cache_name("past", part, layer) for part in CACHE),
            "past_length",
            "kv_pages",
            "active_up",
            "active_down",
            "active_qkv",
            "active_o",
            *map(self._tensor, table_names(self.decoder.rope_of_layer[layer])),
            *(_cache_name("past", part, layer) for part in self.cache[len(CACHE) :]),
            *map(self._tensor, weights),
            "total_length",
            out=[y, *(_cache_name("present", part, layer) for part in self.cache)],
            domain="sol",
            overload=overload_tag(*layer_bits, mixed=self.mixed),
            layer=layer,
            **attributes,
        )

    def _last_positions(self, x: str) -> str:
        """float [1, S, hidden] -> [num_logits, hidden].

        It slices the reversed positions: a strict WebGPU session refuses arithmetic on `num_logits`.
        """
        op, ints = self.writer.op, self.writer.ints
        x = op("Slice", x, ints(-1), ints(_BACKWARD), ints(1), ints(-1))
        x = op("Slice", x, ints(0), "num_logits", ints(1))
        x = op("Slice", x, ints(-1), ints(_BACKWARD), ints(1), ints(-1))
        return op("Reshape", x, ints(-1, self.decoder.hidden_size))

    def _project(self, hidden: str, *, bias: bool) -> None:
        op, const, cap = self.writer.op, self.writer.const, self.decoder.logits_cap
        out = None if bias or cap else "logits"
        precision = replace(self.precision, lm_head_screen=self.screen)
        logits = self._nested(
            "NestedMatMul",
            hidden,
            head_tensors(self.decoder, precision),
            bits=precision.lm_head_bits,
            out=out,
            overload=SCREENED if self.screen else "",
            **(self.screen.attributes if self.screen else {}),
        )
        if bias or cap:
            self.writer.declare(logits, ["M", self.decoder.vocab_size])
        if bias:
            logits = op("Add", logits, self._tensor("head.bias"), out=None if cap else "logits")
        if cap:
            op("Mul", op("Tanh", op("Mul", logits, const(1 / cap))), const(cap), out="logits")

    def _nested(self, op_type: str, x: str, weights: Iterable[str], *, bits: int, **other: Any) -> str:
        """A node of embedding or LM head."""
        k, n = self.decoder.hidden_size, self.decoder.vocab_size
        return self.writer.op(op_type, x, *map(self._tensor, weights), domain="sol", K=k, N=n, bits=bits, **other)

    def _tensor(self, name: str) -> str:
        self.used[name] = None
        return name

    def _functions(self) -> list[onnx.FunctionProto]:
        functions = [
            bodies.nested_gather(
                widest_bits(self.tensors), self.decoder.hidden_size, without_float16=self.target is not None
            ),
            bodies.nested_matmul(self.precision.lm_head_bits, products=self.products),
            sparse_attention(
                AttentionShape.of(self.decoder, self.kv),
                int8=self.kv.dtype == "int8",
                floats=TensorProto.FLOAT16 if self.target is None else TensorProto.FLOAT,
                joint=self.target is None,
            ),
            *(decoder_layer(self.decoder, layer_bits, self.kv, mixed=self.mixed) for layer_bits in self.kinds),
        ]
        if self.screen is not None:
            sizes = self.decoder.hidden_size, self.decoder.vocab_size
            functions.append(bodies.screened_matmul(self.precision.lm_head_bits, *sizes, self.screen))
        functions += [self._named(*product) for product in self._products(self.kinds)]
        if self.mixed:
            functions += [self._overloaded(*product) for product in self._products(self.conv_kinds)]
        return functions

    def _products(self, kinds: Sequence[LayerBits]) -> Iterator[tuple[onnx.FunctionProto, tuple[int, ...]]]:
        """The bodies of the products in layers of these bits, each with the bits of its matrices."""
        for bits in sorted({bits for layer_bits in kinds for bits in (layer_bits.qkv, layer_bits.o)}):
            yield bodies.pruned_matmul(bits, products=self.products), (bits,)
        for up, down in sorted({(layer_bits.up, layer_bits.down) for layer_bits in kinds}):
            yield self._mlp(up, down), (up, down)

    def _mlp(self, up_bits: int, down_bits: int) -> onnx.FunctionProto:
        decoder = self.decoder
        return bodies.pruned_mlp(
            **bits_attributes(up=up_bits, down=down_bits),
            hidden=decoder.hidden_size,
            intermediate=decoder.intermediate_size,
            gated=decoder.gated,
            activation=decoder.activation,
            has_bias=decoder.mlp_bias,
            products=self.products,
        )

    def _named(self, function: onnx.FunctionProto, bits: tuple[int, ...]) -> onnx.FunctionProto:
        """Renames a function to what the bodies of layers call it."""
        function.name += overload_tag(*bits, mixed=self.mixed)
        return function

    def _overloaded(self, function: onnx.FunctionProto, bits: tuple[int, ...]) -> onnx.FunctionProto:
        """Gives a function the overload by which layers that are no function call it."""
        function.overload = overload_tag(*bits, mixed=True)
        return function

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        info = helper.make_tensor_value_info
        channels = ("active_up", "active_down", "active_qkv", "active_o")
        sizes: dict[str, int | str] = {
            "past_length": 1,
            "kv_pages": SPARSE_KV,
            **dict.fromkeys(channels, SPARSE_CHANNELS),
        }
        inputs = [info("input_ids", TensorProto.INT64, [1, "S"])]
        inputs += [info(name, TensorProto.INT64, [size]) for name, size in {**sizes, "num_logits": 1}.items()]
        inputs.append(info("total_length", TensorProto.INT32, [1]))
        return inputs + self._cache_infos("past")

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        info = helper.make_tensor_value_info
        outputs = [
            info("logits", TensorProto.FLOAT, ["M", self.decoder.vocab_size]),
            info("hidden_states", TensorProto.FLOAT, ["M", self.decoder.hidden_size]),
        ]
        return outputs + self._cache_infos("present")

    def _cache_infos(self, side: str) -> list[onnx.ValueInfoProto]:
        heads, size = self.decoder.num_kv_heads, self.decoder.head_dim
        rows, scales = (_DTYPES[self.kv.dtype], [1, heads, "C", size]), (TensorProto.FLOAT16, [1, heads, "C"])
        codes = (TensorProto.UINT8, [1, heads, "C", size // 2])
        floats = TensorProto.FLOAT16 if self.target is None else TensorProto.FLOAT
        types = (rows, rows, codes, (floats, [1, heads, "C", 2]), scales, scales)
        state = TensorProto.FLOAT, [1, self.decoder.hidden_size, self.decoder.conv_size - 1]
        infos = []
        for layer in range(self.decoder.num_layers):
            if self.decoder.kind(layer) == "conv":
                name = state_names(layer)[side == "present"]
                infos.append(helper.make_tensor_value_info(name, *state))
                continue
            for part, kind in zip(self.cache, types, strict=False):
                infos.append(helper.make_tensor_value_info(_cache_name(side, part, layer), *kind))
        return infos


def _cache_name(side: str, part: str, layer: int) -> str:
    """The name of a tensor of a layer's cache. `side` is `past` or `present`."""
    if part in ("key", "value"):
        return f"{'past_key_values' if side == 'past' else 'present'}.{layer}.{part}"
    return f"{side}_{part}.{layer}"


def _ceil(value: float) -> int:
    """Rounds up, with a tolerance for rounding errors of floats."""
    return math.ceil(value - 1e-9)


def write_graphs(folder: Path, config: SolConfig, decoder: Decoder) -> SolConfig:
    """Writes the graph of every precision into `folder` and replaces those that are there.

    Returns:
        The config with `weight_bytes` of all variants, and with the sizes of the graphs but not their hashes.
    """
    variants = {
        key: replace(variant, weight_bytes=weight_bytes(decoder, config.tensors, variant))
        for key, variant in config.variants.items()
    }
    files = dict(config.files)
    for file, precision in {variant.file: variant.precision for variant in variants.values()}.items():
        content = build_graph(decoder, precision, config.tensors, config.weights_file, config.kv).SerializeToString()
        (folder / file).write_bytes(content)
        files[file] = FileEntry(len(content), "")
    return replace(config, variants=variants, files=files)
