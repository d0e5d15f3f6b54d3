"""`DecoderLayer`: the native kernel against float64, against the operators of its body, and its team of threads.

Tolerances, in root mean square: float32 differences flip a rounding to int8 or float16 here and there, and what comes
after follows. At level 8 a flip is nothing.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, inliner

from helpers import reference
from helpers.random_decoder import CONFIGS, describe
from helpers.reference import Array, Nested
from helpers.simd_targets import X86_TARGETS, run_tests
from helpers.thread_counts import assert_same_for_any_thread_count
from sol_rt.bundle.bits import MIXED, LayerBits
from sol_rt.bundle.config import KvLayout
from sol_rt.export.graphs.functions import operators as bodies
from sol_rt.export.graphs.functions.attention import sparse_attention
from sol_rt.export.graphs.functions.attention_shape import AttentionShape
from sol_rt.export.graphs.layer import (
    CACHE,
    bits_attributes,
    cache_parts,
    decoder_layer,
    layer_attributes,
    layer_weights,
)
from sol_rt.export.graphs.nodes import IR_VERSION, OPSETS
from sol_rt.export.sources.decoder import Decoder
from sol_rt.ops import library_path

import onnxruntime as ort

LIBRARY = library_path()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native operators are not built")

BOUND = {4: 0.02, MIXED: 0.02, 6: 0.02, 8: 5e-4}
BODY_BOUND = {4: 0.15, MIXED: 0.15, 6: 0.15, 8: 0.02}
"""Bodies round otherwise, and then keep another channel of the 20 to 45 here and there."""
CAPACITY = 256
ACTIVE = ("active_up", "active_down", "active_qkv", "active_o")
FLOAT16, INT8 = KvLayout(), KvLayout("int8")


@dataclass(frozen=True)
class Layer:
    """A layer of random weights and one call of it: `tokens` new ones on `past` in the cache."""

    decoder: Decoder
    bits: int
    tokens: int
    past: int
    kv_pages: int = 0
    active_up: int = 0
    active_down: int = 0
    active_qkv: int = 0
    active_o: int = 0
    seed: int = 0
    kv: KvLayout = FLOAT16
    layers: int = 3
    layer: int = 1

    @property
    def layer_bits(self) -> LayerBits:
        """Of the matrices; where `bits` is MIXED, a mix."""
        return LayerBits(8, 8, 4, 6) if self.bits == MIXED else LayerBits.alike(self.bits)

    @property
    def cache(self) -> tuple[str, ...]:
        """Parts of the cache in the order of the outputs."""
        return cache_parts(self.kv)

    @cached_property
    def matrices(self) -> dict[str, Nested]:
        d, rng = self.decoder, np.random.default_rng(self.seed)
        sizes = {
            "qkv": (d.hidden_size, d.qkv_size),
            "o": (d.num_heads * d.head_dim, d.hidden_size),
            "up": (d.hidden_size, d.up_size),
            "down": (d.intermediate_size, d.hidden_size),
        }
        return {name: Nested.random(rng, *size) for name, size in sizes.items()}

    @cached_property
    def vectors(self) -> dict[str, Array]:
        """Norms and biases by their names in the layer, and the rope tables."""
        d, rng = self.decoder, np.random.default_rng(self.seed + 1)
        outputs = {"qkv.bias": d.qkv_size, "up.bias": d.up_size, "qk_norm.weight": d.qk_size}
        vectors: dict[str, Array] = {}
        for name in layer_weights(d, self.layer_bits):
            if name.endswith((".weight", ".bias")):
                middle = 1.0 if name.endswith("norm.weight") else 0.0
                size = outputs.get(name, d.hidden_size)
                vectors[name] = (middle + 0.2 * rng.standard_normal(size)).astype(np.float32)
        angles = np.arange(CAPACITY)[:, None] * 100.0 ** -np.linspace(0, 1, d.rotary_dim // 2)
        return vectors | {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}

    @cached_property
    def feed(self) -> dict[str, Array]:
        d, rng = self.decoder, np.random.default_rng(self.seed + 2)
        shape = (1, d.num_kv_heads, CAPACITY, d.head_dim)
        key, value = (rng.standard_normal(shape).astype(np.float16) for _ in range(2))
        keys, scales = key, {}
        if self.kv.dtype == "int8":
            key, scales["past_key_scale"] = reference.quantized_rows(key)
            value, scales["past_value_scale"] = reference.quantized_rows(value)
            keys = reference.scaled_rows(key, scales["past_key_scale"])
        cache = (key, value, *reference.in_pages(*reference.key_codes(keys)))
        counts = {name: getattr(self, name) for name in ("kv_pages", *ACTIVE)}
        x = rng.standard_normal((1, self.tokens, d.hidden_size)).astype(np.float32)
        x[..., ::7] *= 5
        return {
            "x": x,
            **{f"past_{part}": array for part, array in zip(CACHE, cache, strict=True)},
            "past_length": np.array([self.past]),
            **{name: self._counts(count) for name, count in counts.items()},
            **scales,
            "total_length": np.array([self.past + self.tokens], np.int32),
        }

    def _counts(self, own: int) -> Array:
        """The counts of all layers, this one's among others that no layer of this size can have."""
        if self.layers == 1:
            return np.array([own])
        return np.where(np.arange(self.layers) == self.layer, own, -7)

    @cached_property
    def model(self) -> onnx.ModelProto:
        """One node of the operator, with the bodies of all."""
        d, layer_bits = self.decoder, self.layer_bits
        stored = dict(self.vectors)
        for name, nested in self.matrices.items():
            stored |= nested.tensors(name, channel_major=True)
        weights = layer_weights(d, layer_bits)
        names = ["cos", "sin", *weights]
        initializers = []
        for name in names:
            array = stored[name]
            dtype, shape = helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            if name.endswith(".base"):
                dtype, shape = TensorProto.UINT4, (shape[0], 2 * shape[1])
            initializers.append(helper.make_tensor(name, dtype, shape, array.tobytes(), raw=True))
        body = decoder_layer(d, layer_bits, self.kv)
        scales = [name for name in self.feed if name.endswith("_scale")]
        last = "total_length"
        inputs = [*(name for name in self.feed if name not in (*scales, last)), "cos", "sin", *scales, *weights, last]
        attributes = {"layer": self.layer, **layer_attributes(d, layer_bits, self.kv)}
        if d.windows:
            attributes["window"] = d.window(self.layer) or -1
        node = helper.make_node("DecoderLayer", inputs, body.output, domain="sol", **attributes)

        def info(name: str, array: Array) -> onnx.ValueInfoProto:
            shape = [1, "S", d.hidden_size] if name in ("x", "y") else array.shape
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)

        outputs = [info("y", self.feed["x"])]
        outputs += [info(f"present_{part}", self.feed[f"past_{part}"]) for part in self.cache]
        functions = [
            body,
            bodies.pruned_matmul(layer_bits.qkv),
            sparse_attention(AttentionShape.of(d, self.kv), int8=self.kv.dtype == "int8"),
            bodies.pruned_mlp(
                **bits_attributes(up=layer_bits.up, down=layer_bits.down),
                hidden=d.hidden_size,
                intermediate=d.intermediate_size,
                gated=d.gated,
                activation=d.activation,
                has_bias=d.mlp_bias,
            ),
        ]
        graph = helper.make_graph(
            [node], "layer", [info(name, array) for name, array in self.feed.items()], outputs, initializers
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION)

    def reference(self, *, by_keys: bool = False) -> tuple[Array, ...]:
        """y and the cache, float64; tokens chosen by codes, or by keys as bodies do."""
        d, v, layer_bits = self.decoder, self.vectors, self.layer_bits

        def norm(name: str, x: Array) -> Array:
            if d.norm == "layer":
                x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + d.norm_eps)
            return x * v[f"{name}.weight"] + v.get(f"{name}.bias", 0.0)

        def matmul(x: Array, name: str, bits: int, active: int) -> Array:
            x = reference.largest(x, active or x.shape[-1])
            return reference.nested_matmul(x, self.matrices[name], bits) + v.get(f"{name}.bias", 0.0)

        def norm_at(place: str, name: str, x: Array) -> Array:
            return norm(name, x) if d.norm_place in (place, "around") else x

        x = self.feed["x"].astype(np.float64)
        normed = norm_at("before", "attn_norm", x)
        qkv, cos, sin = matmul(normed, "qkv", layer_bits.qkv, self.active_qkv), v["cos"], v["sin"]
        if d.qk_norm_after_rope:
            rows = qkv[0].reshape(self.tokens, -1, d.head_dim)
            both = d.num_heads + d.num_kv_heads
            turned = slice(self.past, self.past + self.tokens)
            rows[:, :both] = reference.rotate(rows[:, :both], cos[turned], sin[turned])
            cos, sin = cos[:, :0], sin[:, :0]
        if d.qk_norm != "none":
            qkv = reference.qk_norm(
                qkv,
                v["qk_norm.weight"],
                heads=d.num_heads,
                kv_heads=d.num_kv_heads,
                by_row=d.qk_norm == "row",
                layer_norm=d.norm == "layer",
                epsilon=d.norm_eps,
            )
        attended, *cache = reference.sparse_attention(
            qkv,
            [self.feed[f"past_{part}"] for part in self.cache],
            self.past,
            self.kv_pages,
            cos,
            sin,
            heads=d.num_heads,
            kv_heads=d.num_kv_heads,
            sinks=4,
            scale=d.softmax_scale,
            by_keys=by_keys,
            window=d.window(self.layer),
            cap=d.attention_cap,
        )
        middle = x + norm_at("after", "attn_post_norm", matmul(attended, "o", layer_bits.o, self.active_o))
        if not (d.parallel_residual and d.shared_norm):
            normed = norm_at("before", "mlp_norm", x if d.parallel_residual else middle)
        mlp = reference.pruned_mlp(
            normed,
            self.matrices["up"],
            self.matrices["down"],
            layer_bits[2:],
            gated=d.gated,
            act=d.activation,
            active_up=self.active_up or d.hidden_size,
            active_down=self.active_down or d.intermediate_size,
            up_bias=v.get("up.bias", 0.0),
            down_bias=v.get("down.bias", 0.0),
        )
        return (middle + norm_at("after", "mlp_post_norm", mlp), *cache)


def run(model: onnx.ModelProto, feed: dict[str, Array], native: bool = True) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(str(LIBRARY))
    else:
        bits = next(attribute.i for attribute in model.graph.node[0].attribute if attribute.name == "bits")
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if bits == 8 else "4")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feed)]


def check(
    layer: Layer, got: list[Array], expected: tuple[Array, ...] | list[Array], bound: float, *, codes: bool = True
) -> None:
    """`codes`: key codes are among what was computed; bodies store none, and leave nothing beyond the tokens.

    Where two channels or pages differ in the last bit only, either may be kept. That moves one token's output by a few
    percent, which is taken from one of 16 tokens of a pruned layer.
    """
    total = layer.past + layer.tokens
    errors = np.sort(np.sqrt(np.square(got[0] - expected[0]).mean((0, 2)))) / rms(expected[0])
    pruned = layer.kv_pages or any(getattr(layer, name) for name in ACTIVE)
    ties = layer.tokens // 16 if pruned else 0
    assert rms(errors[: len(errors) - ties]) <= bound
    assert errors[-1] <= max(bound, 0.1)
    got_cache, wanted_cache = (_by_token(dict(zip(layer.cache, values[1:], strict=True))) for values in (got, expected))
    past = _by_token({part: layer.feed[f"past_{part}"] for part in layer.cache})
    for part in layer.cache:
        if not codes and part in ("key_codes", "key_range"):
            continue
        array, wanted = got_cache[part], wanted_cache[part]
        assert not codes or np.array_equal(array[:, :, total:], past[part][:, :, total:])
        scale = f"{part}_scale"
        if scale in got_cache:  # compared as the numbers that codes stand for
            array = reference.scaled_rows(array, got_cache[scale])
            wanted = reference.scaled_rows(wanted, wanted_cache[scale])
        elif part == "key_codes":
            array, wanted = (_decoded(cache) for cache in (got_cache, wanted_cache))
        difference = array[:, :, :total].astype(np.float64) - wanted[:, :, :total].astype(np.float64)
        assert rms(difference) <= bound, part


def _by_token(cache: dict[str, Array]) -> dict[str, Array]:
    codes, ranges = reference.by_token(cache["key_codes"], cache["key_range"])
    return cache | {"key_codes": codes, "key_range": ranges}


def _decoded(cache: dict[str, Array]) -> Array:
    """The keys that codes stand for, float64."""
    least, step = (cache["key_range"][..., i : i + 1].astype(np.float64) for i in (0, 1))
    return step * reference.unpacked(cache["key_codes"]) + least


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Every family, in odd sizes, with and without what the others have."""
    flag = st.booleans()
    base = describe(draw(st.sampled_from(sorted(CONFIGS))))
    kv_heads, head_dim = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([16, 32]))
    heads = kv_heads * draw(st.sampled_from([2, 4]) if head_dim == 16 else st.sampled_from([1, 2, 5]))
    heads += heads * head_dim // 16 % 2 * kv_heads  # whole blocks of 32
    parallel = draw(flag)
    decoder = replace(
        base,
        hidden_size=32 * draw(st.integers(1, 7)),
        intermediate_size=32 * draw(st.integers(1, 9)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=draw(st.sampled_from([head_dim, head_dim // 2, 6])),
        softmax_scale=head_dim**-0.5,
        norm=draw(st.sampled_from(["rms", "layer"])),
        parallel_residual=parallel,
        shared_norm=parallel and draw(flag),
        norm_place="before" if parallel else draw(st.sampled_from(["before", "after", "around"])),
        qk_norm=(qk_norm := draw(st.sampled_from(["none", "none", "head", "row"]))),
        qk_norm_after_rope=qk_norm != "none" and draw(flag),
        windows=draw(st.one_of(st.just(()), st.tuples(*[st.sampled_from([0, 1, 7, 48, 100])] * 5))),
        attention_cap=draw(st.sampled_from([0.0, 0.0, 2.0])),
        gated=draw(flag),
        activation=draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2"])),
        qkv_bias=draw(flag),
        output_bias=draw(flag),
        mlp_bias=draw(flag),
    )
    tokens = draw(st.sampled_from([1, 1, 1, 2, 17]))
    past = draw(st.one_of(st.sampled_from([0, 15, 16, 31, CAPACITY - tokens]), st.integers(0, CAPACITY - tokens)))
    return Layer(
        decoder,
        draw(st.sampled_from([4, MIXED, 6, 8])),
        tokens,
        past,
        draw(st.integers(0, 16)),
        draw(st.one_of(st.just(0), st.integers(1, decoder.hidden_size))),
        draw(st.one_of(st.just(0), st.integers(1, decoder.intermediate_size))),
        draw(st.one_of(st.just(0), st.integers(1, decoder.hidden_size))),
        draw(st.one_of(st.just(0), st.integers(1, heads * head_dim))),
        draw(st.integers(0, 2**20)),
        draw(st.sampled_from([FLOAT16, INT8])),
        layers := draw(st.integers(1, 5)),
        draw(st.integers(0, layers - 1)),
    )


@settings(max_examples=60, deadline=None)
@given(layers())
def test_kernel_matches_the_reference(layer: Layer) -> None:
    check(layer, run(layer.model, layer.feed), layer.reference(), BOUND[layer.bits])


@settings(max_examples=20, deadline=None)
@given(layers())
def test_kernel_matches_the_operators_it_is_made_of(layer: Layer) -> None:
    """Inlined by one level, as a provider has it whose library lacks this operator alone."""
    inlined = inliner.inline_selected_functions(layer.model, [("sol", "DecoderLayer")])
    assert {node.op_type for node in inlined.graph.node} >= {"SparseAttention", "PrunedMLP", "PrunedMatMul"}
    check(layer, run(layer.model, layer.feed), run(inlined, layer.feed), BOUND[layer.bits])


FIXED = [
    Layer(describe(family), bits, tokens, 100, 2, *active)
    for family in sorted(CONFIGS)
    for bits, tokens, *active in (
        (4, 1, 0, 0, 0, 0),
        (6, 1, 40, 0, 0, 20),
        (8, 1, 0, 33, 45, 0),
        (8, 5, 50, 33, 37, 31),
        (MIXED, 1, 0, 0, 0, 0),
        (MIXED, 4, 40, 0, 0, 20),
    )
]
TRAITS: dict[str, dict[str, Any]] = {
    "head": {"qk_norm": "head"},
    "row": {"qk_norm": "row", "norm_place": "after"},
    "after-rope": {"qk_norm": "head", "qk_norm_after_rope": True},
    "around": {"norm_place": "around"},
    "window": {"windows": (0, 50, 0)},
    "no-window": {"windows": (50, 0, 50)},
    "cap": {"attention_cap": 2.0},
    "gemma": {"qk_norm": "head", "norm_place": "around", "windows": (50, 50, 0), "attention_cap": 2.0},
    "layer-norm": {"qk_norm": "head", "norm": "layer", "activation": "relu2", "gated": False},
}
FIXED += [
    Layer(replace(describe("llama"), family=name, **changes), bits, tokens, 101, pages)
    for name, changes in TRAITS.items()
    for bits, tokens, pages in ((8, 1, 40), (4, 1, 9), (8, 5, 0), (4, 70, 0))
]
FIXED += [replace(layer, kv=INT8) for layer in FIXED]


@pytest.mark.parametrize(
    "layer", FIXED, ids=lambda layer: f"{layer.decoder.family}-{layer.bits}-{layer.tokens}-{layer.kv.dtype}"
)
def test_fixed_layers(layer: Layer) -> None:
    """The same on every SIMD target."""
    check(layer, run(layer.model, layer.feed), layer.reference(), BOUND[layer.bits])


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer", FIXED, ids=lambda layer: f"{layer.decoder.family}-{layer.bits}-{layer.tokens}-{layer.kv.dtype}"
)
def test_bodies_compute_the_same_layers(layer: Layer) -> None:
    expected = layer.reference(by_keys=True)
    check(layer, run(layer.model, layer.feed, native=False), expected, BODY_BOUND[layer.bits], codes=False)


def by_steps(layer: Layer) -> list[Array]:
    """The outputs of `layer`'s call, one token at a time over the whole cache."""
    rows: list[Array] = []
    cache: list[Array] = []
    feed = dict(layer.feed)
    feed["kv_pages"] = np.full_like(feed["kv_pages"], 1 << 20)
    for token in range(layer.tokens):
        feed |= {"x": layer.feed["x"][:, token : token + 1], "past_length": np.array([layer.past + token])}
        y, *cache = run(layer.model, feed)
        feed |= {f"past_{part}": array for part, array in zip(layer.cache, cache, strict=True)}
        rows.append(y)
    return [np.concatenate(rows, axis=1), *cache]


FEW = [
    Layer(replace(describe("llama"), **changes), bits, tokens, past, *active, kv=kv)
    for index, (changes, kv) in enumerate((changes, kv) for changes in ({}, *TRAITS.values()) for kv in (FLOAT16, INT8))
    for bits, tokens, past, *active in (
        (8, 2 + index % 15, 101),
        (4, 16 - index % 15, 0),
        ((6, MIXED)[index % 2], 2 + index % 3, 70, 0, 20, 33, 13, 31),
    )
]


@pytest.mark.parametrize("layer", FEW)
def test_fixed_layers_give_a_few_tokens_the_bits_of_each_alone(layer: Layer) -> None:
    for got, expected in zip(run(layer.model, layer.feed), by_steps(layer), strict=True):
        assert np.array_equal(got, expected)


def large(bits: int, past: int, pages: int, kv: KvLayout = FLOAT16) -> Layer:
    """Sizes at which every phase has several tasks."""
    heads = {"num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "rotary_dim": 64}
    decoder = replace(describe("llama"), hidden_size=576, intermediate_size=1536, **heads)
    return Layer(decoder, bits, 1, past, pages, 400, 900, 430, 370, kv=kv)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_fixed_layers_of_several_tasks_give_a_few_tokens_the_bits_of_each_alone(bits: int) -> None:
    """With all channels, and so few that each token reads its own."""
    for layer in (
        replace(large(bits, 200, 0), tokens=2),
        replace(large(bits, 200, 0), tokens=5, active_up=0, active_down=300),
    ):
        for got, expected in zip(run(layer.model, layer.feed), by_steps(layer), strict=True):
            assert np.array_equal(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "kv"), [(4, FLOAT16), (8, FLOAT16), (4, INT8)])
@pytest.mark.parametrize("pages", [3, 100])
def test_results_are_the_same_for_any_number_of_threads(bits: int, kv: KvLayout, pages: int, tmp_path: Path) -> None:
    """No bit differs, no run hangs."""
    layer = large(bits, 200, pages, kv)
    assert_same_for_any_thread_count(layer.model, [layer.feed], 50, tmp_path)


def test_one_session_run_by_several_threads() -> None:
    """Teams of several calls at once share the pool, and end."""
    layer = large(4, 200, 3)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(LIBRARY))
    session = ort.InferenceSession(layer.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, layer.feed)
    wrong = []

    def work() -> None:
        for _ in range(40):
            got = session.run(None, layer.feed)
            if not all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True)):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not wrong


@pytest.mark.parametrize("kv", [FLOAT16, INT8], ids=["float16", "int8"])
def test_append_in_place(kv: KvLayout) -> None:
    """Bound to the buffers of the inputs, the outputs are written there: only the token's rows change."""
    layer = large(4, 200, 3, kv)
    expected = run(layer.model, layer.feed)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(LIBRARY))
    session = ort.InferenceSession(layer.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, cache = session.io_binding(), {part: layer.feed[f"past_{part}"].copy() for part in layer.cache}
    values = {part: ort.OrtValue.ortvalue_from_numpy(array) for part, array in cache.items()}
    for name, array in layer.feed.items():
        part = name.removeprefix("past_")
        if part in cache:
            binding.bind_ortvalue_input(name, values[part])
            binding.bind_ortvalue_output(f"present_{part}", values[part])
        else:
            binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    assert np.array_equal(binding.copy_outputs_to_cpu()[-1], expected[0])  # bound last
    for part, wanted in zip(layer.cache, expected[1:], strict=True):
        assert np.array_equal(cache[part], wanted)


def test_an_int8_cache_without_scales_is_refused() -> None:
    layer = large(4, 200, 3, INT8)
    model = onnx.ModelProto()
    model.CopyFrom(layer.model)
    node = model.graph.node[0]
    for name in ("past_key_scale", "past_value_scale"):
        node.input.remove(name)
    with pytest.raises(Exception, match="DecoderLayer") as caught:
        run(model, layer.feed)
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("layer", -1),
        ("layer", 3),
        ("hidden_size", 96),
        ("hidden_size", 60),
        ("intermediate_size", 64),
        ("bits", 6),
        ("up_bits", 6),
        ("up_bits", 5),
        ("down_bits", 8),
        ("qkv_bits", 6),
        ("o_bits", 6),
        ("norm", "batch"),
        ("epsilon", -1.0),
        ("epsilon", float("nan")),
        ("epsilon", float("inf")),
        ("activation", "swish"),
        ("num_heads", 3),
        ("qkv_bias", 1),
        ("mlp_bias", 1),
        ("shared_norm", 1),
        ("gated", 0),
        ("page_size", 16),
        ("norm_place", "inside"),
        ("norm_place", "around"),
        ("qk_norm", "all"),
        ("qk_norm", "head"),
        ("softcap", -1.0),
        ("softcap", float("nan")),
    ],
)
def test_damaged_layers_are_refused(attribute: str, value: float | str) -> None:
    model = onnx.ModelProto()
    layer = Layer(describe("llama"), 5 if attribute in ("up_bits", "down_bits") else 4, 1, 0)
    model.CopyFrom(layer.model)
    attributes = model.graph.node[0].attribute
    old = next((entry for entry in attributes if entry.name == attribute), None) or attributes.add()
    old.CopyFrom(helper.make_attribute(attribute, value))
    with pytest.raises(Exception, match="DecoderLayer") as caught:
        run(model, layer.feed)
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    ("traits", "attribute", "value", "message"),
    [
        (
            {"parallel_residual": True, "shared_norm": True},
            "parallel_residual",
            0,
            "shared_norm: got 1 in a sequential layer, expected 0",
        ),
        ({}, "qk_norm_after_rope", 1, "qk_norm_after_rope: got 1 without qk_norm, expected 0"),
        (
            {"qk_norm": "head", "qk_norm_after_rope": True, "rotary_dim": 14},
            "rotary_dim",
            15,
            "rotary_dim: got 15, expected an even number",
        ),
    ],
)
def test_attributes_that_contradict_are_refused(
    traits: dict[str, Any], attribute: str, value: int, message: str
) -> None:
    """The inputs fit, so that only the attributes differ."""
    layer = Layer(replace(describe("llama"), **traits), 4, 1, 100)
    run(layer.model, layer.feed)
    model = onnx.ModelProto()
    model.CopyFrom(layer.model)
    attributes = model.graph.node[0].attribute
    old = next((entry for entry in attributes if entry.name == attribute), None) or attributes.add()
    old.CopyFrom(helper.make_attribute(attribute, value))
    with pytest.raises(Exception, match=f"DecoderLayer: attribute {message}; export the bundle again"):
        run(model, layer.feed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", np.zeros((1, 0, 64), np.float32)),
        ("x", np.zeros((1, 300, 64), np.float32)),
        ("past_length", np.array([CAPACITY])),
        ("past_length", np.array([-1])),
        ("kv_pages", np.array([0, -1, 0])),
        ("active_up", np.array([0, 65, 0])),
        ("active_down", np.array([0, -1, 0])),
        ("active_qkv", np.array([0, 65, 0])),
        ("active_o", np.array([0, -1, 0])),
    ],
)
def test_bad_input_is_one_line(name: str, value: Array) -> None:
    layer = Layer(describe("llama"), 4, 1, 100)
    with pytest.raises(Exception, match=r"DecoderLayer: input .*(got|expected)") as caught:
        run(layer.model, layer.feed | {name: value})
    assert "\n" not in str(caught.value).strip()


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names targets of x86")
@pytest.mark.parametrize("mask", X86_TARGETS.values(), ids=X86_TARGETS)
def test_every_simd_target(mask: int) -> None:
    """A target that this processor lacks falls back to a lower one, which runs then."""
    done = run_tests(__file__, "test_fixed_layers", mask)
    assert done.returncode == 0, done.stdout[-3000:]
