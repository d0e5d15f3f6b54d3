"""The native operators on matrices of 3 bits, run by ONNX Runtime, against float64 references on the same codes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from test_ops_layer import FLOAT16, INT8, Layer, by_steps, check, describe, rms
from test_ops_layer import run as run_layer
from test_ops_matmul import (
    BLOCK,
    Nested,
    close,
    keep_largest,
    model_of,
    open_session,
    quantized_product,
    rows_alone,
    run,
)

from helpers.reference import Array, Coded, activation, nested_matmul
from helpers.simd_targets import X86_TARGETS, run_tests
from helpers.thread_counts import assert_same_for_any_thread_count
from sol_rt.bundle.bits import LayerBits
from sol_rt.ops import library_path

LIBRARY = library_path()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native operators are not built")

Matrix = Coded | Nested


TABLES = np.array(
    [
        [-113, -73, -41, -14, 13, 41, 73, 114],
        [-103, -48, -24, -7, 7, 24, 49, 103],
        [-127, -76, -48, -22, 1, 25, 50, 83],
        [-83, -50, -24, -1, 22, 48, 78, 127],
    ],
    np.int8,
)


def initializers(w: Coded, prefix: str) -> list[onnx.TensorProto]:
    """The stored tensors and the codebook as an operator's inputs."""
    return [onnx.numpy_helper.from_array(array, prefix + name) for name, array in w.arrays().items()]


def counts(**numbers: int) -> list[onnx.TensorProto]:
    return [onnx.numpy_helper.from_array(np.array([number]), name) for name, number in numbers.items()]


def matmul_model(w: Coded, active: int = 0, rank: int = 2) -> onnx.ModelProto:
    k, n = w.code.shape
    shape = [*[f"d{i}" for i in range(rank - 1)], k]
    tensors = [*counts(active=active), *initializers(w, "w.")]
    return model_of("PrunedMatMul", shape, TensorProto.FLOAT, tensors, K=k, N=n, bits=3)


def expected_product(x: Array, w: Matrix, active: int) -> Array:
    x = keep_largest(x, active or x.shape[1])
    return nested_matmul(x, w, 3) if isinstance(w, Coded) else quantized_product(x, w)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=80, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 20), st.sampled_from([1, 1, 1, 2, 3, 7, 130]), st.floats(0, 1))
def test_matmul_matches_the_reference(seed: int, k_blocks: int, n_tiles: int, tokens: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    k = k_blocks * BLOCK
    w, active = Coded.random(rng, k, n_tiles * 32, TABLES), round(share * k)
    x = rng.normal(size=(tokens, k)).astype(np.float32) * np.float32(rng.choice([1e-3, 1.0, 1e3]))
    close(run(matmul_model(w, active), x), expected_product(x, w, active))


FIXED = [(32, 32, 0), (64, 96, 33), (96, 256, 0), (160, 288, 7), (576, 960, 300), (64, 1792, 1), (1536, 576, 0)]


@pytest.mark.parametrize(("k", "n", "active"), FIXED)
@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_fixed_matrices(k: int, n: int, active: int, tokens: int) -> None:
    """The same on every SIMD target."""
    rng = np.random.default_rng(k + n)
    w = Coded.random(rng, k, n, TABLES)
    x = rng.normal(size=(tokens, k)).astype(np.float32)
    close(run(matmul_model(w, active), x), expected_product(x, w, active))


@pytest.mark.parametrize(("k", "n", "active"), FIXED)
def test_fixed_matrices_give_a_few_tokens_the_bits_of_each_alone(k: int, n: int, active: int) -> None:
    rng = np.random.default_rng(k + n)
    model = matmul_model(Coded.random(rng, k, n, TABLES), active)
    for tokens in (2, 3, 6, 16):
        x = rng.normal(size=(tokens, k)).astype(np.float32)
        assert np.array_equal(run(model, x), rows_alone(model, x))


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_fixed_sums_are_exact(tokens: int) -> None:
    """Entries and activations of largest size, in blocks whose step is 1: nothing is rounded, and no sum overflows."""
    rng = np.random.default_rng(1)
    k, n = 160, 352
    tables = rng.choice(np.array([-127, 127], np.int8), (4, 8))
    table = rng.integers(0, 4, (k // BLOCK, n)).astype(np.uint8)
    code, one = rng.integers(0, 8, (k, n)).astype(np.uint8), np.ones((k // BLOCK, n), np.uint8)
    w = Coded(code, one, table, np.ones(n, np.float16), tables)
    x = rng.choice(np.array([-127, 127, 126, -1], np.float32), (tokens, k))
    x[:, ::BLOCK] = 127
    x[0] = 127 * np.sign(w.weights()[:, 5])
    assert np.array_equal(run(matmul_model(w), x), x @ w.weights())


@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 5, 64), (0, 64)])
def test_matmul_keeps_leading_axes(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    w = Coded.random(rng, 64, 96, TABLES)
    x = rng.normal(size=shape).astype(np.float32)
    got = run(matmul_model(w, rank=len(shape)), x)
    assert got.shape == (*shape[:-1], 96)
    close(got.reshape(-1, 96), nested_matmul(x.reshape(-1, 64), w, 3))


@pytest.mark.parametrize("tokens", [1, 3])
def test_fixed_nan_is_not_hidden(tokens: int) -> None:
    x = np.ones((tokens, 64), np.float32)
    x[:, 40] = np.nan
    assert np.isnan(run(matmul_model(Coded.random(np.random.default_rng(3), 64, 320, TABLES)), x)).all()


@pytest.mark.parametrize("tokens", [1, 4])
def test_blocks_of_zeros_give_nothing(tokens: int) -> None:
    rng = np.random.default_rng(4)
    w = Coded.random(rng, 96, 288, TABLES)
    x = np.zeros((tokens, 96), np.float32)
    assert not run(matmul_model(w), x).any()
    x[:, 32:64] = rng.normal(size=(tokens, 32))
    close(run(matmul_model(w, 20), x), expected_product(x, w, 20))


@dataclass(frozen=True)
class Mlp:
    """A random gated MLP with biases, either matrix of 3 bits or nested."""

    up: Matrix
    down: Matrix
    active_up: int
    active_down: int
    up_bias: Array
    down_bias: Array

    @classmethod
    def random(cls, rng: np.random.Generator, k: int, i: int, bits: tuple[int, int], *active: int) -> Mlp:
        def matrix(k: int, n: int, bits: int) -> Matrix:
            return Coded.random(rng, k, n, TABLES) if bits == 3 else Nested.random(rng, k, n, bits)

        biases = [rng.normal(size=size).astype(np.float32) for size in (2 * i, k)]
        return cls(matrix(k, 2 * i, bits[0]), matrix(i, k, bits[1]), *(active or (0, 0)), *biases)

    def model(self) -> onnx.ModelProto:
        tensors, planes, bits = counts(active_up=self.active_up, active_down=self.active_down), [], {}
        for name, w in (("up", self.up), ("down", self.down)):
            if isinstance(w, Coded):
                bits[f"{name}_bits"] = 3
                tensors += initializers(w, f"{name}.")
                continue
            bits[f"{name}_bits"] = w.bits
            parts = w.tensors(f"{name}.", channel_major=True)
            tensors += [parts.pop(part) for part in ("base", "scale", "zero")]
            planes.append(parts)
        tensors += [parts[plane] for plane in ("plane1", "plane2") for parts in planes if plane in parts]
        tensors += [
            onnx.numpy_helper.from_array(self.up_bias, "up.bias"),
            onnx.numpy_helper.from_array(self.down_bias, "down.bias"),
        ]
        k, i = len(self.down_bias), len(self.up_bias) // 2
        attributes = {"K": k, "I": i, "gated": 1, "activation": "silu", "has_bias": 1, "bits": 3, **bits}
        return model_of("PrunedMLP", ["tokens", k], TensorProto.FLOAT, tensors, **attributes)

    def hidden(self, x: Array) -> Array:
        u = expected_product(x, self.up, self.active_up) + self.up_bias
        half = u.shape[1] // 2
        return activation(u[:, :half], "silu") * u[:, half:]

    def output(self, hidden: Array) -> Array:
        return expected_product(hidden, self.down, self.active_down) + self.down_bias


@pytest.mark.parametrize("bits", [(3, 3), (3, 4), (4, 3), (6, 3), (3, 8)])
@pytest.mark.parametrize("tokens", [1, 2, 130])
@pytest.mark.parametrize(("k", "i"), [(32, 64), (96, 544)])
def test_fixed_mlps(bits: tuple[int, int], tokens: int, k: int, i: int) -> None:
    rng = np.random.default_rng(k + tokens)
    mlp = Mlp.random(rng, k, i, bits)
    x = rng.normal(size=(tokens, k)).astype(np.float32)
    error = run(mlp.model(), x) - (expected := mlp.output(mlp.hidden(x)))
    assert rms(error) <= 0.01 * rms(expected)  # a quotient at the edge of two codes may be rounded to the other one


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_count_of_zero_prunes_nothing(tokens: int) -> None:
    rng = np.random.default_rng(5)
    mlp = Mlp.random(rng, 64, 96, (3, 3))
    x = rng.normal(size=(tokens, 64)).astype(np.float32)
    whole = replace(mlp, active_up=64, active_down=96)
    assert np.array_equal(run(mlp.model(), x), run(whole.model(), x))
    few = replace(mlp, active_up=20, active_down=30)
    kept = keep_largest(x, 20)
    assert np.array_equal(run(few.model(), x), run(replace(few, active_up=64).model(), kept))


def test_thread_count_changes_no_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    inputs = [{"x": rng.normal(size=(tokens, 160)).astype(np.float32)} for tokens in (1, 40)]
    mlp = Mlp.random(rng, 160, 416, (3, 3), 90, 200)
    w = Coded.random(rng, 160, 1504, TABLES)
    for model in (mlp.model(), matmul_model(w, 100)):
        assert_same_for_any_thread_count(model, inputs, 20, tmp_path)


def damaged(change: str) -> onnx.ModelProto:
    """A sound model with one thing wrong."""
    model = matmul_model(Coded.random(np.random.default_rng(8), 64, 96, TABLES))
    node = model.graph.node[0]
    attributes = {a.name: a for a in node.attribute}
    tensors = {t.name.removeprefix("w."): t for t in model.graph.initializer}

    def put(name: str, array: Array) -> None:
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensors[name].name))

    def array(name: str) -> Array:
        return np.asarray(onnx.numpy_helper.to_array(tensors[name]))

    match change:
        case "K" | "N":
            attributes[change].i = 128
        case "N not of tiles":
            attributes["N"].i = 80
        case "bits 4" | "bits 5" | "bits 2":
            attributes["bits"].i = int(change[-1])
        case "missing input":
            node.input.pop()
        case "empty input":
            node.input[3] = ""
        case "one more input":
            node.input.append("w.high")
        case "codebook of 3":
            put("codebook", array("codebook")[:3])
        case "swapped planes":
            node.input[2], node.input[3] = node.input[3], node.input[2]
        case _:
            name, what = change.split()
            put(name, array(name).astype(np.float32) if what == "type" else array(name)[..., :-1])
    return model


@pytest.mark.parametrize(
    "change",
    [
        *("K", "N", "N not of tiles", "bits 4", "bits 5", "bits 2", "missing input", "empty input", "one more input"),
        *("codebook of 3", "swapped planes"),
        *(f"{name} {what}" for name in ("low", "high", "block_scale", "output_scale") for what in ("short", "type")),
        "codebook type",
    ],
)
def test_damaged_matrices_are_refused(change: str) -> None:
    with pytest.raises(Exception, match="PrunedMatMul") as caught:
        open_session(damaged(change))
    assert "\n" not in str(caught.value).strip()


def test_a_codebook_of_minus_128_is_refused() -> None:
    """Its negative is no byte."""
    tables = TABLES.copy()
    tables[3, 7] = -128
    w = replace(Coded.random(np.random.default_rng(8), 64, 96, TABLES), codebook=tables)
    with pytest.raises(Exception, match="PrunedMatMul: input codebook: got -128, expected -127 to 127"):
        open_session(matmul_model(w))


@pytest.mark.parametrize("active", [-1, 65])
def test_counts_out_of_range_are_refused(active: int) -> None:
    model = matmul_model(Coded.random(np.random.default_rng(9), 64, 96, TABLES), active)
    with pytest.raises(Exception, match=r"PrunedMatMul: input active: got -?\d+, expected 0 to 64 channels"):
        run(model, np.ones((1, 64), np.float32))


@pytest.mark.parametrize("op", ["NestedMatMul", "NestedGather"])
def test_the_output_matrix_has_no_3_bits(op: str) -> None:
    tensors = list(Nested.random(np.random.default_rng(10), 64, 96, 4).tensors("w.", channel_major=False).values())
    kind, shape = (TensorProto.FLOAT, ["M", 64]) if op == "NestedMatMul" else (TensorProto.INT64, [1, "S"])
    with pytest.raises(Exception, match=f"{op}: attribute bits: got 3, expected 4, 6 or 8"):
        open_session(model_of(op, shape, kind, tensors, K=64, N=96, bits=3))


@dataclass(frozen=True)
class CodebookLayer(Layer):
    """A layer whose matrices `three` have 3 bits, the others 4."""

    three: tuple[str, ...] = ("qkv", "o", "up", "down")

    @property
    def layer_bits(self) -> LayerBits:
        """Of the reference: activations at 3 bits are those of 4."""
        return LayerBits.alike(4)

    @cached_property
    def matrices(self) -> dict[str, Any]:
        rng = np.random.default_rng(self.seed)
        nested = super().matrices
        return {name: Coded.random(rng, *w.q.shape, TABLES) if name in self.three else w for name, w in nested.items()}

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The node alone: that of a layer of 4 bits with other matrices."""
        model = onnx.ModelProto()
        model.CopyFrom(Layer(**{name: getattr(self, name) for name in Layer.__dataclass_fields__}).model)
        del model.functions[:]
        node = model.graph.node[0]
        for name in self.three:
            old = [f"{name}.{part}" for part in ("base", "scale", "zero")]
            at = list(node.input).index(old[0])
            assert list(node.input[at : at + 3]) == old
            new = initializers(self.matrices[name], f"{name}.")
            node.input[at : at + 3] = [tensor.name for tensor in new]
            for index in reversed(range(len(model.graph.initializer))):
                if model.graph.initializer[index].name in old:
                    del model.graph.initializer[index]
            model.graph.initializer.extend(new)
            node.attribute.append(helper.make_attribute(f"{name}_bits", 3))
        return model


LAYERS = [
    CodebookLayer(describe(family), 4, tokens, 100, 2, *active, kv=kv, three=three)
    for family, kv in (("llama", FLOAT16), ("qwen2", INT8))
    for tokens in (1, 5)
    for active in ((0, 0, 0, 0), (40, 33, 45, 20))
    for three in (("qkv", "o", "up", "down"), ("up", "down"), ("qkv", "down"))
]


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.tokens > 1])
def test_fixed_layers_give_a_few_tokens_the_bits_of_each_alone(layer: CodebookLayer) -> None:
    for got, expected in zip(run_layer(layer.model, layer.feed), by_steps(layer), strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    "layer",
    LAYERS,
    ids=lambda layer: f"{layer.decoder.family}-{layer.tokens}-{layer.active_up}-{'-'.join(layer.three)}",
)
def test_fixed_layers(layer: CodebookLayer) -> None:
    check(layer, run_layer(layer.model, layer.feed), layer.reference(), 0.02)


def test_a_layer_whose_heads_are_no_tiles_is_refused() -> None:
    """144 outputs of q, k and v cannot have 3 bits; the layer's other matrices can."""
    decoder = replace(describe("llama"), num_heads=4, num_kv_heads=1, head_dim=24, rotary_dim=24)
    layer = CodebookLayer(decoder, 4, 1, 0, three=("o", "up", "down"))
    check(layer, run_layer(layer.model, layer.feed), layer.reference(), 0.02)
    layer.model.graph.node[0].attribute.append(helper.make_attribute("qkv_bits", 3))
    with pytest.raises(Exception, match="DecoderLayer qkv: got 144 outputs at 3 bits, expected a multiple of 32"):
        run_layer(layer.model, layer.feed)


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names targets of x86")
@pytest.mark.parametrize("mask", X86_TARGETS.values(), ids=X86_TARGETS)
def test_every_simd_target(mask: int) -> None:
    """A target that this processor lacks falls back to a lower one, which runs then."""
    done = run_tests(__file__, "test_fixed", mask)
    assert done.returncode == 0, done.stdout[-3000:]
