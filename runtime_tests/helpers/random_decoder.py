"""A decoder of random weights as a bundle, made without the exporter, and its whole forward pass in NumPy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from helpers import reference
from helpers.reference import Array, Coded, Nested
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, THREE, LayerBits, Screen, bits_tag, screen_matrix
from sol_rt.bundle.config import (
    ALIGNMENT,
    CODEBOOK,
    CONFIG_NAME,
    ActionEntry,
    FileEntry,
    KvLayout,
    SolConfig,
    TensorEntry,
    Variant,
)
from sol_rt.export.graphs.graph import LayerShapes, active_counts, build_graph, weight_bytes
from sol_rt.export.sources.decoder import Decoder, from_hf_config
from sol_rt.export.sources.rope import table_names

WEIGHTS = "weights.bin"
MIXED_LAYERS = LayerBits(8, 4, 4, 6), LayerBits(4, 6, 8, 4)
"""Of MIXED bits, in turn."""
THREE_BIT_LAYERS = LayerBits(4, 3, 3, 3), LayerBits(3, 4, 3, 4)
"""Of a 3-bit graph that reads some matrices at 4, in turn."""
FLOAT16 = KvLayout()
_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 90,
    "max_position_embeddings": 256,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False, "num_key_value_heads": 1},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "tie_word_embeddings": False, "num_key_value_heads": 4},
    "phi": {"architectures": ["PhiForCausalLM"], "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
}

TRAITS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 24,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 3.0,
    },
    "exaone4": {"architectures": ["Exaone4ForCausalLM"], "sliding_window": 24, "sliding_window_pattern": 2},
    "hunyuan_v1_dense": {"architectures": ["HunYuanDenseV1ForCausalLM"], "tie_word_embeddings": True},
    "olmo2": {"architectures": ["Olmo2ForCausalLM"]},
}
"""Families whose traits those of CONFIGS lack."""
STATES: dict[str, dict[str, Any]] = {
    "lfm2": {
        "architectures": ["Lfm2ForCausalLM"],
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
        "conv_bias": True,
        "conv_L_cache": 4,
    },
}
"""Families with layers that keep a state, which run on the CPU alone."""


def hf_config(family: str) -> dict[str, Any]:
    """config.json of a tiny decoder of the family."""
    return {**_COMMON, "hidden_act": "gelu_new" if family == "phi" else "silu", **(CONFIGS | TRAITS | STATES)[family]}


def describe(family: str) -> Decoder:
    """A tiny decoder of the family."""
    return from_hf_config(hf_config(family))


def medium_decoder() -> Decoder:
    """Heads, layers and a context that make its cache large."""
    sizes = {
        "num_layers": 8,
        "rope_of_layer": (0,) * 8,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 64,
        "rotary_dim": 64,
    }
    decoder = describe("llama")
    rope = replace(decoder.ropes[0], inverse_frequencies=tuple(0.5**i for i in range(32)))
    return replace(decoder, hidden_size=512, intermediate_size=1024, max_context=8192, ropes=(rope,), **sizes)


def screenable(family: str) -> Decoder:
    """A decoder whose LM head a matrix of 3 bits can screen: its rows are a multiple of 32."""
    return replace(describe(family), vocab_size=96)


@dataclass
class RandomDecoder:
    """Random nested matrices and float32 vectors by the blob's names."""

    decoder: Decoder
    matrices: dict[str, Nested] = field(default_factory=dict)
    vectors: dict[str, Array] = field(default_factory=dict)
    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    kv: KvLayout = FLOAT16
    lm_head_bits: Mapping[int, int] = field(default_factory=dict)
    screens: Mapping[int, Screen] = field(default_factory=dict)
    """By the bits of a graph, where it reads others of the LM head."""
    coded: dict[str, Coded] = field(default_factory=dict)
    """The layers' matrices at level 3, of other weights than the nested ones."""
    three_bit_layers: tuple[LayerBits, ...] | None = None
    """Of 3-bit graphs, in turn; None: all matrices at 3."""
    screen: Coded | None = None
    """The matrix of the first pass over the LM head, where a screen is one of 3 bits."""

    @classmethod
    def write(
        cls,
        decoder: Decoder,
        folder: Path,
        seed: int = 0,
        kv: KvLayout = FLOAT16,
        lm_head_bits: Mapping[int, int] | None = None,
        three_bits: bool = False,
        three_bit_layers: tuple[LayerBits, ...] | None = None,
        screens: Mapping[int, Screen] | None = None,
    ) -> RandomDecoder:
        """Makes the weights, those of level 3 with `three_bits`, and writes the blob into `folder`."""
        kv = replace(kv, windows=decoder.windows, layers=decoder.layer_kinds, conv_size=decoder.conv_size)
        self = cls(decoder, kv=kv, lm_head_bits=lm_head_bits or {}, screens=screens or {})
        rng = np.random.default_rng(seed)
        self.three_bit_layers = three_bit_layers
        hidden = decoder.hidden_size

        def vector(name: str, size: int | tuple[int, ...], middle: float = 0.0) -> None:
            self.vectors[name] = (middle + 0.2 * rng.standard_normal(size)).astype(np.float32)

        def matrix(name: str, k: int, n: int, bias: bool = False) -> None:
            self.matrices[name] = Nested.random(rng, k, n)
            if bias:
                vector(f"{name}.bias", n)

        matrix("embed", hidden, decoder.vocab_size)
        if not decoder.tied:
            matrix("head", hidden, decoder.vocab_size, decoder.head_bias)
        norms = ["final_norm"]
        for layer in range(decoder.num_layers):
            at = f"layers.{layer}"
            norms += [f"{at}.{norm}" for norm in decoder.norms]
            kind = decoder.kind(layer)
            if kind == "conv":
                vector(f"{at}.conv.weight", (hidden, decoder.conv_size), 0.5)
                if decoder.conv_bias:
                    vector(f"{at}.conv.bias", hidden)
            elif decoder.qk_norm != "none":
                vector(f"{at}.qk_norm.weight", decoder.qk_size, 1.0)
            (qkv, o), biased = decoder.mixer_shapes(kind), decoder.biased(kind)
            matrix(f"{at}.qkv", *qkv, biased["qkv"])
            matrix(f"{at}.o", *o, biased["o"])
            matrix(f"{at}.up", hidden, decoder.up_size, decoder.mlp_bias)
            matrix(f"{at}.down", decoder.intermediate_size, hidden, decoder.mlp_bias)
        for norm in norms:
            vector(f"{norm}.weight", hidden, 1.0)
            if decoder.norm == "layer":
                vector(f"{norm}.bias", hidden)
        for index in range(len(decoder.ropes)):
            base = 100.0 * (1 + index)
            angles = np.arange(decoder.max_context)[:, None] * base ** -np.linspace(0, 1, decoder.rotary_dim // 2)
            for name, part in zip(table_names(index), (np.cos(angles), np.sin(angles)), strict=True):
                self.vectors[name] = part.astype(np.float32)
        if three_bits:
            own = np.random.default_rng(seed + 1)
            codebook = reference.random_codebook(own)
            for name, nested in self.matrices.items():
                if name.startswith("layers."):
                    self.coded[name] = Coded.random(own, *nested.q.shape, codebook)
        if any(screen.bits == THREE for screen in self.screens.values()):
            own = np.random.default_rng(seed + 2)
            self.screen = Coded.screening(own, self.matrices[self.head], reference.random_codebook(own))
        self.write_blob(folder)
        return self

    @property
    def head(self) -> str:
        """The name of the LM head's matrix."""
        return "embed" if self.decoder.tied else "head"

    def write_blob(self, folder: Path) -> None:
        """Writes matrices and vectors into `folder` as the weights file, and lists them in `tensors`."""
        with open(folder / WEIGHTS, "wb") as file:
            for name, array in self._stored().items():
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                dtype, shape = str(array.dtype), array.shape
                if name.startswith("layers.") and name.endswith(".base"):
                    dtype, shape = "uint4", (shape[0], 2 * shape[1])
                self.tensors[name] = TensorEntry(dtype, shape, file.tell(), array.nbytes)
                file.write(array.tobytes())

    def _stored(self) -> dict[str, Array]:
        stored = dict(self.vectors)
        for name, nested in self.matrices.items():
            stored |= nested.tensors(name, channel_major=name.startswith("layers."))
        for name, coded in self.coded.items():
            stored |= coded.tensors(name) | {CODEBOOK: coded.codebook}
        if self.screen is not None:
            name = screen_matrix(self.head)
            stored |= self.screen.tensors(name) | {f"{name}.{CODEBOOK}": self.screen.codebook}
        return stored

    def variant(self, channel_density: float, bits: int) -> Variant:
        """The variant's entry as an export would make it."""
        decoder = self.decoder
        shapes = LayerShapes.of(decoder)
        active = active_counts(channel_density, shapes)
        key = Action(1.0, channel_density, bits).variant
        lm_head_bits = self.lm_head_bits.get(bits, 6 if bits == MIXED else max(bits, 4))
        channels = [shape[0] for shape in (shapes.up, shapes.down, shapes.qkv, shapes.o)]
        counts = [_spread(count, most, decoder.num_layers) for count, most in zip(active, channels, strict=True)]
        in_turn = {MIXED: MIXED_LAYERS, THREE: self.three_bit_layers}.get(bits)
        layers = None if in_turn is None else tuple(in_turn[layer % 2] for layer in range(decoder.num_layers))
        screen = self.screens.get(bits)
        draft = Variant(
            key, f"model.{bits_tag(bits)}.onnx", channel_density, bits, *counts, 0, lm_head_bits, layers, screen
        )
        return replace(draft, weight_bytes=weight_bytes(decoder, self.tensors, draft))

    def write_graph(self, folder: Path, channel_density: float, bits: int) -> Path:
        """Writes the graph that runs the variant beside the blob; returns its path."""
        variant = self.variant(channel_density, bits)
        model = build_graph(self.decoder, variant.precision, self.tensors, WEIGHTS, self.kv)
        path = folder / variant.file
        path.write_bytes(model.SerializeToString())
        return path

    def write_bundle(self, folder: Path, variants: Iterable[tuple[float, int]]) -> Path:
        """Completes `folder`, which holds the blob, to a bundle of (channel_density, bits) variants, no tokenizer."""
        decoder, made = self.decoder, [self.variant(channel_density, bits) for channel_density, bits in variants]
        names = [self.write_graph(folder, variant.channel_density, variant.bits).name for variant in made]
        config = SolConfig(
            generator="sol_rt test",
            model=decoder.dims(
                name="random",
                architecture=decoder.family,
                source="random",
                license="none",
                bos_token_id=None,
                eos_token_ids=(),
            ),
            kv=self.kv,
            dense=Action(1.0, made[0].channel_density, made[0].bits),
            variants={variant.key: variant for variant in made},
            actions=tuple(ActionEntry(Action(1.0, variant.channel_density, variant.bits), None) for variant in made),
            policy=None,
            weights_file=WEIGHTS,
            tensors=self.tensors,
            files={name: _file_entry(folder / name) for name in (WEIGHTS, *names)},
        )
        (folder / CONFIG_NAME).write_text(json.dumps(config.to_json_dict()), encoding="utf-8")
        return folder

    def logits(self, tokens: list[int], channel_density: float, bits: int) -> tuple[Array, Array]:
        """Dense attention over `tokens` from an empty cache: float64 logits [S, vocab], hidden states [S, hidden]."""
        decoder, variant = self.decoder, self.variant(channel_density, bits)
        x = reference.nested_gather(np.array([tokens]), self.matrices["embed"], 8) * decoder.embedding_scale
        for layer in range(decoder.num_layers):
            at = f"layers.{layer}"
            normed = self._norm_at("before", f"{at}.attn_norm", x)
            mixer = self._attention if decoder.kind(layer) == "attention" else self._short_conv
            attention = self._norm_at("after", f"{at}.attn_post_norm", mixer(layer, normed, variant))
            if not decoder.parallel_residual:
                x = x + attention
                inner = self._mlp(layer, self._norm_at("before", f"{at}.mlp_norm", x), variant)
                x = x + self._norm_at("after", f"{at}.mlp_post_norm", inner)
                continue
            if not decoder.shared_norm:
                normed = self._norm(f"{at}.mlp_norm", x)
            x = x + attention + self._mlp(layer, normed, variant)
        hidden = self._norm("final_norm", x)[0]
        logits = self._head(hidden, self.head, variant)
        return reference.capped(logits, decoder.logits_cap), hidden

    def _matmul(self, x: Array, name: str, bits: int) -> Array:
        product = reference.nested_matmul(x, self._weights(name, bits), bits)
        return product + self.vectors.get(f"{name}.bias", 0.0)

    def _weights(self, name: str, bits: int) -> reference.Weights:
        return self.coded[name] if bits == THREE else self.matrices[name]

    def _head(self, x: Array, name: str, variant: Variant) -> Array:
        screen, matrix = variant.lm_head_screen, self.matrices[name]
        if screen is None:
            return self._matmul(x, name, variant.lm_head_bits)
        own = self.screen if screen.bits == THREE else None
        logits = reference.screened_matmul(x, matrix, variant.lm_head_bits, screen.candidates, screen.tail_offset, own)
        return logits + self.vectors.get(f"{name}.bias", 0.0)

    def _norm_at(self, place: str, name: str, x: Array) -> Array:
        return self._norm(name, x) if self.decoder.norm_place in (place, "around") else x

    def _norm(self, name: str, x: Array) -> Array:
        if self.decoder.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.decoder.norm_eps)
        return x * self.vectors[f"{name}.weight"] + self.vectors.get(f"{name}.bias", 0.0)

    def _attention(self, layer: int, x: Array, variant: Variant) -> Array:
        decoder, at, layer_bits = self.decoder, f"layers.{layer}", variant.precision.layer(layer)
        shape = (1, decoder.num_kv_heads, decoder.max_context, decoder.head_dim)
        rows = np.zeros(shape, self.kv.dtype)
        codes = np.zeros((*shape[:3], decoder.head_dim // 2), np.uint8), np.zeros((*shape[:3], 2), np.float16)
        scales = [np.zeros(shape[:3], np.float16)] * 2 if self.kv.dtype == "int8" else []
        qkv = self._matmul(reference.largest(x, variant.active_qkv[layer]), f"{at}.qkv", layer_bits.qkv)
        cos, sin = (self.vectors[table] for table in table_names(decoder.rope_of_layer[layer]))
        if decoder.qk_norm_after_rope:
            heads, both = qkv[0].reshape(len(qkv[0]), -1, decoder.head_dim), decoder.num_heads + decoder.num_kv_heads
            heads[:, :both] = reference.rotate(heads[:, :both], cos[: len(heads)], sin[: len(heads)])
            cos, sin = cos[:, :0], sin[:, :0]
        if decoder.qk_norm != "none":
            qkv = reference.qk_norm(
                qkv,
                self.vectors[f"{at}.qk_norm.weight"],
                heads=decoder.num_heads,
                kv_heads=decoder.num_kv_heads,
                by_row=decoder.qk_norm == "row",
                layer_norm=decoder.norm == "layer",
                epsilon=decoder.norm_eps,
            )
        y, *_ = reference.sparse_attention(
            qkv,
            (rows, rows, *codes, *scales),
            0,
            0,
            cos,
            sin,
            heads=decoder.num_heads,
            kv_heads=decoder.num_kv_heads,
            sinks=4,
            scale=decoder.softmax_scale,
            window=decoder.window(layer),
            cap=decoder.attention_cap,
        )
        return self._matmul(reference.largest(y, variant.active_o[layer]), f"{at}.o", layer_bits.o)

    def _short_conv(self, layer: int, x: Array, variant: Variant) -> Array:
        at, layer_bits, size = f"layers.{layer}", variant.precision.layer(layer), self.decoder.conv_size
        projected = self._matmul(reference.largest(x, variant.active_qkv[layer]), f"{at}.qkv", layer_bits.qkv)
        b, c, u = np.split(projected, 3, axis=-1)
        z = np.pad(b * u, ((0, 0), (size - 1, 0), (0, 0)))  # before a text the state is 0
        filters, tokens = self.vectors[f"{at}.conv.weight"], x.shape[1]
        filtered = sum(filters[:, j] * z[:, j : j + tokens] for j in range(size))
        y = c * (filtered + self.vectors.get(f"{at}.conv.bias", 0.0))
        return self._matmul(reference.largest(y, variant.active_o[layer]), f"{at}.o", layer_bits.o)

    def _mlp(self, layer: int, x: Array, variant: Variant) -> Array:
        at, layer_bits = f"layers.{layer}", variant.precision.layer(layer)
        return reference.pruned_mlp(
            x,
            self._weights(f"{at}.up", layer_bits.up),
            self._weights(f"{at}.down", layer_bits.down),
            layer_bits[2:],
            gated=self.decoder.gated,
            act=self.decoder.activation,
            active_up=variant.active_up[layer],
            active_down=variant.active_down[layer],
            up_bias=self.vectors.get(f"{at}.up.bias", 0.0),
            down_bias=self.vectors.get(f"{at}.down.bias", 0.0),
        )


def _spread(count: int, channels: int, layers: int) -> tuple[int, ...]:
    """One count a layer, each another, around `count` where it is below `most`."""
    if count == channels:
        return (count,) * layers
    return tuple(min(max(count + 5 * (-1) ** layer, 1), channels) for layer in range(layers))


def _file_entry(path: Path) -> FileEntry:
    content = path.read_bytes()
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())
