"""The native operators on nested weights, run by ONNX Runtime, against float64 references on the same integer codes."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from helpers.simd_targets import X86_TARGETS, run_tests, with_targets
from helpers.thread_counts import assert_same_for_any_thread_count
from operators.ops import bound, pruned_matmul
from sol_rt.ops import library_path

import onnxruntime as ort

LIBRARY = library_path()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native operators are not built")

BLOCK = 32
CENTER = {4: 0.0, 6: 6.5, 8: 8.0}
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Nested:
    """A random matrix: codes uint8 [K, N], scale float16 [K/32, N], zero uint8 [K/32, N]."""

    codes: Array
    scale: Array
    zero: Array
    bits: int

    @staticmethod
    def random(rng: np.random.Generator, k: int, n: int, bits: int) -> Nested:
        codes = rng.integers(0, 256, (k, n), dtype=np.uint8)
        scale = rng.uniform(0.01, 0.1, (k // BLOCK, n)).astype(np.float16)
        return Nested(codes, scale, rng.integers(0, 256, (k // BLOCK, n), dtype=np.uint8), bits)

    def integers(self) -> Array:
        """Integers that a level reads of the codes, int64 [K, N]."""
        mask = {4: 0xF0, 6: 0xFC, 8: 0xFF}[self.bits]
        return (self.codes & mask).astype(np.int64)

    def dense(self) -> Array:
        """The weights themselves, float64 [K, N]."""
        zero = np.repeat(self.zero, BLOCK, axis=0).astype(np.float64)
        scale = np.repeat(self.scale, BLOCK, axis=0).astype(np.float64)
        return scale / 16 * (self.integers() - zero - CENTER[self.bits])

    def tensors(self, prefix: str, channel_major: bool) -> dict[str, onnx.TensorProto]:
        k, n = self.codes.shape
        q, b, c = self.codes >> 4, self.codes >> 2 & 3, self.codes & 3
        blocks = k // BLOCK
        if channel_major:
            packed = (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8)
            base = helper.make_tensor(f"{prefix}base", TensorProto.UINT4, [k, n], packed.tobytes(), raw=True)
        else:
            rows = q.reshape(blocks, BLOCK, n).transpose(0, 2, 1)
            base = onnx.numpy_helper.from_array(rows[..., ::2] | rows[..., 1::2] << 4, f"{prefix}base")

        def plane(field: Array, name: str) -> onnx.TensorProto:
            rows = field.reshape(blocks, 8, 4, n).transpose(0, 3, 1, 2)
            return onnx.numpy_helper.from_array(
                rows[..., 0] | rows[..., 1] << 2 | rows[..., 2] << 4 | rows[..., 3] << 6, name
            )

        result = {
            "base": base,
            "scale": onnx.numpy_helper.from_array(self.scale, f"{prefix}scale"),
            "zero": onnx.numpy_helper.from_array(self.zero, f"{prefix}zero"),
        }
        if self.bits >= 6:
            result["plane1"] = plane(b, f"{prefix}plane1")
        if self.bits == 8:
            result["plane2"] = plane(c, f"{prefix}plane2")
        return result


MOST_CODE = {4: 127, 6: 127, 8: 254 * 127}


def quantized_product(x: Array, w: Nested) -> Array:
    """x W with integer activations (docs/reference/bundle-details.md section 2): float32 [M, K] -> float64 [M, N]."""
    k, n = w.codes.shape
    result = np.zeros((x.shape[0], n))
    for b in range(k // BLOCK):
        rows = slice(b * BLOCK, (b + 1) * BLOCK)
        part = x[:, rows].astype(np.float32)
        a = np.abs(part).max(axis=1, keepdims=True) / np.float32(MOST_CODE[w.bits])
        codes = np.where(a > 0, np.rint(part / np.where(a > 0, a, 1)), 0).astype(np.int64)
        exact = codes @ w.integers()[rows] - (w.zero[b] + CENTER[w.bits]) * codes.sum(axis=1, keepdims=True)
        result += a.astype(np.float64) * (w.scale[b].astype(np.float64) / 16) * exact
    return result


def keep_largest(x: Array, keep: int) -> Array:
    """Zeroes all but the `keep` largest magnitudes of every row; ties keep the lower index."""
    order = np.argsort(-np.abs(x), axis=1, kind="stable")[:, :keep]
    result = np.zeros_like(x)
    np.put_along_axis(result, order, np.take_along_axis(x, order, axis=1), axis=1)
    return result


def close(got: Array, expected: Array, tolerance: float = 2e-5) -> None:
    """Within float32 rounding of sums whose terms are as large as the largest output."""
    assert got.shape == expected.shape
    error = np.abs(got - expected).max() if got.size else 0.0
    size = np.abs(expected).max() if got.size else 0.0
    assert error <= tolerance * size + 1e-6, f"error {error} on outputs up to {size}"


def model_of(
    op: str, x_shape: list[Any], x_type: int, tensors: list[onnx.TensorProto], **attributes: Any
) -> onnx.ModelProto:
    node = helper.make_node(op, ["x", *[t.name for t in tensors]], ["y"], domain="sol", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", x_type, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("sol", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def open_session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, x: Array) -> Array:
    return np.asarray(open_session(model).run(None, {"x": x})[0])


def matmul_model(w: Nested, rank: int = 2) -> onnx.ModelProto:
    k, n = w.codes.shape
    shape = [*[f"d{i}" for i in range(rank - 1)], k]
    tensors = list(w.tensors("w.", channel_major=False).values())
    return model_of("NestedMatMul", shape, TensorProto.FLOAT, tensors, K=k, N=n, bits=w.bits)


@dataclass(frozen=True)
class Mlp:
    """A random MLP and its attributes."""

    up: Nested
    down: Nested
    gated: bool
    activation: str
    active_up: int
    active_down: int
    up_bias: Array | None
    down_bias: Array | None

    @staticmethod
    def random(
        rng: np.random.Generator,
        k: int,
        i: int,
        bits: int,
        *,
        up_bits: int | None = None,
        gated: bool = True,
        activation: str = "silu",
        active_up: int | None = None,
        active_down: int | None = None,
        bias: bool = False,
    ) -> Mlp:
        width = 2 * i if gated else i
        biases = [rng.normal(size=m).astype(np.float32) if bias else None for m in (width, k)]
        return Mlp(
            Nested.random(rng, k, width, up_bits or bits),
            Nested.random(rng, i, k, bits),
            gated,
            activation,
            k if active_up is None else active_up,
            i if active_down is None else active_down,
            biases[0],
            biases[1],
        )

    def model(self) -> onnx.ModelProto:
        up = self.up.tensors("up.", channel_major=True)
        down = self.down.tensors("down.", channel_major=True)
        counts = {"active_up": self.active_up, "active_down": self.active_down}
        tensors = [onnx.numpy_helper.from_array(np.array([count]), name) for name, count in counts.items()]
        tensors += [m[name] for m in (up, down) for name in ("base", "scale", "zero")]
        tensors += [m[name] for name in ("plane1", "plane2") for m in (up, down) if name in m]
        if self.up_bias is not None and self.down_bias is not None:
            tensors.append(onnx.numpy_helper.from_array(self.up_bias, "up.bias"))
            tensors.append(onnx.numpy_helper.from_array(self.down_bias, "down.bias"))
        widths = {"up_bits": self.up.bits, "down_bits": self.down.bits}
        widest = max(widths.values())
        mixed = {name: bits for name, bits in widths.items() if bits < widest}
        return model_of(
            "PrunedMLP",
            ["tokens", self.up.codes.shape[0]],
            TensorProto.FLOAT,
            tensors,
            K=self.up.codes.shape[0],
            I=self.down.codes.shape[0],
            bits=widest,
            **mixed,
            gated=int(self.gated),
            activation=self.activation,
            has_bias=int(self.up_bias is not None),
        )

    def hidden(self, x: Array) -> Array:
        """Input of the second pruning, float64 [M, I]."""
        u = quantized_product(keep_largest(x, self.active_up), self.up)
        if self.up_bias is not None:
            u += self.up_bias
        if not self.gated:
            return activated(self.activation, u)
        half = u.shape[1] // 2
        return activated(self.activation, u[:, :half]) * u[:, half:]

    def output(self, hidden: Array) -> Array:
        y = quantized_product(keep_largest(hidden, self.active_down), self.down)
        return y if self.down_bias is None else y + self.down_bias


def activated(name: str, x: Array) -> Array:
    if name == "silu":
        return np.asarray(x / (1 + np.exp(-x)))
    if name == "gelu":
        return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))))
    if name == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    return np.maximum(x, 0)


blocks = st.integers(1, 5)
widths = st.sampled_from([4, 6, 8])
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(seeds, blocks, st.integers(1, 300), st.sampled_from([1, 1, 2, 3, 7, 130]), widths)
def test_matmul_matches_the_reference(seed: int, k_blocks: int, n: int, tokens: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    w = Nested.random(rng, k_blocks * BLOCK, n, bits)
    x = rng.normal(size=(tokens, k_blocks * BLOCK)).astype(np.float32) * np.float32(rng.choice([1e-3, 1.0, 1e3]))
    close(run(matmul_model(w), x), quantized_product(x, w))


def rows_alone(model: onnx.ModelProto, x: Array) -> Array:
    return np.concatenate([run(model, row[None]) for row in x])


@settings(max_examples=60, deadline=None)
@given(seeds, blocks, st.integers(1, 320), st.integers(2, 16), widths)
def test_a_few_tokens_have_the_bits_of_each_alone(seed: int, k_blocks: int, n: int, tokens: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, k_blocks * BLOCK)).astype(np.float32)
    model = matmul_model(Nested.random(rng, k_blocks * BLOCK, n, bits))
    assert np.array_equal(run(model, x), rows_alone(model, x))


@settings(max_examples=60, deadline=None)
@given(seeds, blocks, st.integers(1, 160), st.integers(2, 16), widths, st.floats(0, 1))
def test_a_few_tokens_have_the_bits_of_each_alone_at_any_density(
    seed: int, k_blocks: int, pairs: int, tokens: int, bits: int, density: float
) -> None:
    rng = np.random.default_rng(seed)
    k, n = k_blocks * BLOCK, 2 * pairs
    x = rng.normal(size=(tokens, k)).astype(np.float32) * (rng.random((tokens, k)) < 0.5)
    active = helper.make_tensor("active", TensorProto.INT64, [1], [round(density * k)])
    tensors = [active, *Nested.random(rng, k, n, bits).tensors("w.", channel_major=True).values()]
    model = model_of("PrunedMatMul", ["m", k], TensorProto.FLOAT, tensors, K=k, N=n, bits=bits)
    assert np.array_equal(run(model, x.astype(np.float32)), rows_alone(model, x.astype(np.float32)))


@settings(max_examples=40, deadline=None)
@given(seeds, blocks, st.integers(1, 300), st.integers(2, 16), st.integers(0, 2))
def test_a_few_tokens_read_copies_with_the_bits_of_each_alone(
    seed: int, k_blocks: int, pairs: int, tokens: int, inactive: int
) -> None:
    """Copies of a matrix at 4 bits, last panels of all widths among them."""
    rng = np.random.default_rng(seed)
    k, n, operators = k_blocks * BLOCK, 2 * pairs, ctypes.CDLL(str(library_path()))
    x = rng.normal(size=(tokens, k)).astype(np.float32)
    active = helper.make_tensor("active", TensorProto.INT64, [1], [k - inactive])
    tensors = [active, *Nested.random(rng, k, n, 4).tensors("w.", channel_major=True).values()]
    session = open_session(model_of("PrunedMatMul", ["m", k], TensorProto.FLOAT, tensors, K=k, N=n, bits=4))
    expected = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    try:
        operators.SolOpsCopies(1)
        (got,) = session.run(None, {"x": x})
    finally:
        operators.SolOpsCopies(0)
    assert np.array_equal(got, expected)


def test_matmul_is_near_the_unquantized_product() -> None:
    rng = np.random.default_rng(0)
    w = Nested.random(rng, 576, 200, 8)
    x = rng.normal(size=(1, 576)).astype(np.float32)
    got, exact = run(matmul_model(w), x), x @ w.dense()
    assert np.abs(got - exact).max() < 1e-4 * np.abs(exact).max()


@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 5, 64), (0, 64)])
def test_matmul_keeps_leading_axes(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    w = Nested.random(rng, 64, 10, 6)
    x = rng.normal(size=shape).astype(np.float32)
    got = run(matmul_model(w, rank=len(shape)), x)
    assert got.shape == (*shape[:-1], 10)
    close(got.reshape(-1, 10), quantized_product(x.reshape(-1, 64), w))


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_codes_of_16_bits_are_exact(tokens: int) -> None:
    """Integers up to the largest code, in blocks whose step is 1, at weights that are integers: nothing is rounded."""
    rng = np.random.default_rng(16)
    k, n = 96, 134
    w = Nested(np.full((k, n), 8, np.uint8), np.full((3, n), 16, np.float16), np.zeros((3, n), np.uint8), 8)
    w.codes[rng.integers(0, k, (4, n)), np.arange(n)] += 1  # every output picks up to four channels
    x = rng.integers(-32258, 32259, (tokens, k)).astype(np.float32)
    x[:, 1:9] = [127, -127, 128, 254, -255, 381, 32131, 32257]  # both parts at and beside their ends
    x[:, ::BLOCK] = 32258.0
    assert np.array_equal(run(matmul_model(w), x), x @ w.dense())
    identity = Nested(np.where(np.eye(k, dtype=bool), 9, 8).astype(np.uint8), w.scale[:, :k], w.zero[:, :k], 8)
    mlp = Mlp(identity, identity, False, "relu", k, k, None, None)
    assert np.array_equal(run(mlp.model(), x), np.maximum(x, 0))
    few = replace(mlp, active_up=9, active_down=5)
    assert np.array_equal(run(few.model(), x), keep_largest(np.maximum(keep_largest(x, 9), 0), 5))


@pytest.mark.parametrize("tokens", [1, 4])
def test_small_channels_beside_large_ones_count_at_8_bits(tokens: int) -> None:
    """A channel below half a step of 8 bits has a code of its own in the second part only."""
    k = 64
    codes = np.where(np.eye(k, dtype=bool), 9, 8).astype(np.uint8)
    identity = Nested(codes, np.full((2, k), 16, np.float16), np.zeros((2, k), np.uint8), 8)
    x = np.zeros((tokens, k), np.float32)
    x[:, 3], x[:, 7], x[:, 40] = 32258.0, 1.0, 5.0
    got = run(Mlp(identity, identity, False, "relu", 3, 3, None, None).model(), x)
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-3)


def full(k: int, n: int, bits: int) -> Nested:
    """The largest code everywhere."""
    blocks = (k // BLOCK, n)
    return Nested(np.full((k, n), 255, np.uint8), np.ones(blocks, np.float16), np.zeros(blocks, np.uint8), bits)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_blocks_of_zeros_and_extremes(bits: int) -> None:
    rng = np.random.default_rng(2)
    w = full(96, 40, bits)
    x = np.zeros((2, 96), np.float32)
    x[:, 32:64] = 1.0
    x[1, 64:] = rng.choice([-3.0, 3.0], 32)
    for rows in (x, x[:1]):
        close(run(matmul_model(w), rows), quantized_product(rows, w))
    assert not run(matmul_model(w), np.zeros((1, 96), np.float32)).any()
    up, down = (full(k, n, bits) for k, n in ((96, 160), (160, 96)))
    mlp = Mlp(up, down, False, "relu", 96, 160, None, None)
    for rows in (x, x[1:]):
        close(run(mlp.model(), rows), mlp.output(mlp.hidden(rows)))


@pytest.mark.parametrize("tokens", [1, 3])
def test_nan_is_not_hidden(tokens: int) -> None:
    w = Nested.random(np.random.default_rng(3), 64, 40, 4)
    x = np.ones((tokens, 64), np.float32)
    x[:, 40] = np.nan
    assert np.isnan(run(matmul_model(w), x)).all()


@settings(max_examples=30, deadline=None)
@given(seeds, blocks, st.integers(1, 60), st.integers(0, 40), widths)
def test_gather_returns_rows_of_the_matrix(seed: int, k_blocks: int, n: int, tokens: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    w = Nested.random(rng, k_blocks * BLOCK, n, bits)
    ids = rng.integers(0, n, (1, tokens))
    tensors = list(w.tensors("w.", channel_major=False).values())
    model = model_of("NestedGather", [1, "S"], TensorProto.INT64, tensors, K=k_blocks * BLOCK, N=n, bits=bits)
    got = run(model, ids)
    assert got.shape == (1, tokens, k_blocks * BLOCK)
    close(got[0], w.dense().T[ids[0]], 1e-6)


def test_gather_refuses_ids_outside_the_vocabulary() -> None:
    w = Nested.random(np.random.default_rng(4), 32, 8, 4)
    tensors = list(w.tensors("w.", channel_major=False).values())
    session = open_session(model_of("NestedGather", [1, "S"], TensorProto.INT64, tensors, K=32, N=8, bits=4))
    for bad in (-1, 8):
        with pytest.raises(Exception, match=f"token id {bad}, expected 0 to 7"):
            session.run(None, {"x": np.array([[0, bad]])})


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    blocks,
    blocks,
    widths,
    widths,
    st.booleans(),
    st.sampled_from(["silu", "gelu", "gelu_tanh", "relu"]),
    st.booleans(),
    st.sampled_from([1, 1, 2, 5, 129]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_mlp_matches_the_reference(
    seed: int,
    k_blocks: int,
    i_blocks: int,
    bits: int,
    up_bits: int,
    gated: bool,
    activation: str,
    bias: bool,
    tokens: int,
    share_in: float,
    share_mid: float,
) -> None:
    rng = np.random.default_rng(seed)
    k, i = k_blocks * BLOCK, i_blocks * BLOCK
    mlp = Mlp.random(
        rng,
        k,
        i,
        bits,
        up_bits=up_bits,
        gated=gated,
        activation=activation,
        bias=bias,
        active_up=max(1, round(share_in * k)),
        active_down=max(1, round(share_mid * i)),
    )
    x = rng.normal(size=(tokens, k)).astype(np.float32)
    got = run(mlp.model(), x)
    hidden = mlp.hidden(x)
    expected = mlp.output(hidden)
    # Where two magnitudes at the edge of what is kept are as good as equal, float32 may keep the other one.
    magnitudes = np.sort(np.abs(hidden), axis=1)[:, ::-1]
    last = magnitudes[:, mlp.active_down - 1]
    next_one = magnitudes[:, mlp.active_down] if mlp.active_down < i else np.full(tokens, -1.0)
    clear = (last - next_one > 1e-5 * magnitudes[:, 0]) | (last == 0)
    # And a quotient at the edge of two codes may be rounded to the other one.
    close(got[clear], expected[clear], 2e-4 if bits == up_bits == 8 else 3e-2)


def identity_mlp(k: int, active_up: int, active_down: int) -> Mlp:
    """Plain relu MLP of 4 bits whose matrices are the identity."""
    codes = np.zeros((k, k), np.uint8)
    codes[np.arange(k), np.arange(k)] = 16
    ones = np.ones((k // BLOCK, k), np.float16)
    w = Nested(codes, ones, np.zeros((k // BLOCK, k), np.uint8), 4)
    return Mlp(w, w, False, "relu", active_up, active_down, None, None)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize(("active_up", "active_down"), [(1, 96), (10, 96), (64, 96), (96, 7), (96, 96), (50, 20)])
def test_pruning_keeps_exactly_the_largest(tokens: int, active_up: int, active_down: int) -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(1, 128, (tokens, 96)).astype(np.float32)
    x[:, ::BLOCK] = 127.0  # every block's step is 1, and all its values are exact
    got = run(identity_mlp(96, active_up, active_down).model(), x)
    expected = keep_largest(keep_largest(x, active_up), active_down)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("tokens", [1, 3])
def test_ties_keep_the_lower_index(tokens: int) -> None:
    x = np.full((tokens, 96), 2.0, np.float32)
    x[:, 1::2] = 5.0
    got = run(identity_mlp(96, 60, 96).model(), x)
    for row in got:
        assert list(np.flatnonzero(row)) == sorted([*range(1, 96, 2), *range(0, 24, 2)])


@pytest.mark.parametrize(("active_up", "active_down"), [(0, 96), (64, 0), (0, 0)])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_count_of_zero_prunes_nothing(tokens: int, active_up: int, active_down: int) -> None:
    mlp = Mlp.random(np.random.default_rng(13), 64, 96, 4)
    x = np.random.default_rng(14).normal(size=(tokens, 64)).astype(np.float32)
    zero = replace(mlp, active_up=active_up, active_down=active_down)
    assert np.array_equal(run(zero.model(), x), run(mlp.model(), x))


@pytest.mark.parametrize(("active_up", "active_down"), [(-1, 96), (65, 96), (64, 97)])
def test_counts_out_of_range_are_refused(active_up: int, active_down: int) -> None:
    mlp = replace(Mlp.random(np.random.default_rng(15), 64, 96, 4), active_up=active_up, active_down=active_down)
    with pytest.raises(Exception, match="PrunedMLP: input active_"):
        run(mlp.model(), np.ones((1, 64), np.float32))


def test_mlp_without_pruning_equals_keeping_all() -> None:
    rng = np.random.default_rng(6)
    mlp = Mlp.random(rng, 64, 96, 4, active_up=64, active_down=96)
    x = rng.normal(size=(1, 64)).astype(np.float32)
    x[0, 5:] = 0.0
    few = Mlp(mlp.up, mlp.down, True, "silu", 5, 96, None, None)
    assert np.array_equal(run(mlp.model(), x), run(few.model(), x))


@pytest.mark.parametrize("bits", [4, 8])
def test_thread_count_changes_no_bit(bits: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    mlp = Mlp.random(rng, 160, 416, bits, active_up=90, active_down=200)
    w = Nested.random(rng, 160, 1500, bits)
    inputs = [{"x": rng.normal(size=(tokens, 160)).astype(np.float32)} for tokens in (1, 40)]
    for model in (mlp.model(), matmul_model(w)):
        assert_same_for_any_thread_count(model, inputs, 20, tmp_path)


@pytest.mark.parametrize(("k_blocks", "i_blocks"), [(1, 1), (1, 3), (2, 5), (5, 9)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kept_blocks", [slice(0, 1), slice(-1, None)])
def test_parts_of_the_channels_add_up(k_blocks: int, i_blocks: int, bits: int, kept_blocks: slice) -> None:
    """Fewer blocks than parts, parts of unequal size, parts without a kept channel."""
    rng = np.random.default_rng(9)
    k, i = k_blocks * BLOCK, i_blocks * BLOCK
    x = np.zeros((1, k), np.float32)
    x.reshape(k_blocks, BLOCK)[kept_blocks] = rng.normal(size=BLOCK)
    for bias in (True, False):
        mlp = Mlp.random(rng, k, i, bits, bias=bias, active_up=20, active_down=i)
        close(run(mlp.model(), x), mlp.output(mlp.hidden(x)), 2e-4 if bits == 8 else 3e-2)


def test_one_session_serves_many_threads() -> None:
    rng = np.random.default_rng(8)
    session = open_session(Mlp.random(rng, 64, 256, 6, active_up=30, active_down=90).model())
    inputs = [rng.normal(size=(t, 64)).astype(np.float32) for t in (1, 2, 1, 3) * 4]
    alone = [session.run(None, {"x": x})[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: session.run(None, {"x": x})[0], inputs * 3))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 3, together, strict=True))


def broken(model: onnx.ModelProto, change: str) -> onnx.ModelProto:
    node = model.graph.node[0]
    by_name = {a.name: a for a in node.attribute}
    tensors = {t.name.split(".")[-1]: t for t in model.graph.initializer}
    if change == "wrong K":
        by_name["K"].i = 96
    elif change == "K not of blocks":
        by_name["K"].i = 60
    elif change == "wrong N":
        by_name["N"].i = 41
    elif change == "bits":
        by_name["bits"].i = 5
    elif change == "missing plane":
        node.input.pop()
    elif change == "short scale":
        scale = onnx.numpy_helper.to_array(tensors["scale"])[:, :-1].copy()
        tensors["scale"].CopyFrom(onnx.numpy_helper.from_array(scale, tensors["scale"].name))
    elif change == "scale type":
        scale = onnx.numpy_helper.to_array(tensors["scale"]).astype(np.float32)
        tensors["scale"].CopyFrom(onnx.numpy_helper.from_array(scale, tensors["scale"].name))
    elif change == "huge N":
        by_name["N"].i = 2**62
    return model


@pytest.mark.parametrize(
    "change", ["wrong K", "K not of blocks", "wrong N", "bits", "missing plane", "short scale", "scale type", "huge N"]
)
def test_damaged_models_are_refused(change: str) -> None:
    w = Nested.random(np.random.default_rng(9), 64, 40, 8)
    with pytest.raises(Exception, match=r"NestedMatMul|scale") as caught:
        open_session(broken(matmul_model(w), change))
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("I", 96), ("activation", "swish"), ("bits", 8), ("bits", 5)),
        *((f"{side}_bits", value) for side in ("up", "down") for value in (5, 6, 8, "all")),
    ],
)
def test_damaged_mlps_are_refused(name: str, value: int | str) -> None:
    widths = (4, 6) if name == "down_bits" else (6, 4)
    model = Mlp.random(np.random.default_rng(10), 64, 128, widths[0], up_bits=widths[1]).model()
    attribute = next(a for a in model.graph.node[0].attribute if a.name == name)
    attribute.CopyFrom(helper.make_attribute(name, value))
    with pytest.raises(Exception, match="PrunedMLP"):
        open_session(model)


def test_a_wrong_input_length_is_an_error_not_a_crash() -> None:
    w = Nested.random(np.random.default_rng(11), 64, 40, 4)
    model = matmul_model(w)
    model.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    with pytest.raises(Exception, match=r"input x: got shape \[1, 32\], expected \[..., 64\]"):
        open_session(model).run(None, {"x": np.ones((1, 32), np.float32)})


def test_external_weights_are_read_where_they_are_mapped(tmp_path: Path) -> None:
    """Opening many sessions on one mapped file must not add memory by the size of the weights."""
    k, n = 1024, 32768  # 16 MiB of base codes
    raw = np.random.default_rng(12).integers(0, 256, k * n // 2, dtype=np.uint8)
    (tmp_path / "weights.bin").write_bytes(raw.tobytes())
    scale = onnx.numpy_helper.from_array(np.full((k // BLOCK, n), 0.01, np.float16), "scale")
    zero = onnx.numpy_helper.from_array(np.zeros((k // BLOCK, n), np.uint8), "zero")
    base = TensorProto(name="base", data_type=TensorProto.UINT8, dims=[k // BLOCK, n, 16])
    base.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "0", "length": str(raw.size)}.items():
        base.external_data.add(key=key, value=value)
    model = model_of("NestedMatMul", ["t", k], TensorProto.FLOAT, [base, scale, zero], K=k, N=n, bits=4)
    onnx.save(model, tmp_path / "m.onnx")

    x = np.ones((1, k), np.float32)
    sessions = [open_session(tmp_path / "m.onnx")]
    sessions[0].run(None, {"x": x})
    before = anonymous_bytes()
    for _ in range(4):
        sessions.append(open_session(tmp_path / "m.onnx"))
        sessions[-1].run(None, {"x": x})
    small = scale.ByteSize() + zero.ByteSize()
    assert anonymous_bytes() - before < 4 * (3 * small + 2**21)


def anonymous_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Anonymous line in smaps_rollup")


CHECKED = "reference or refuse or bit or ties or largest or zeros or small"


@pytest.mark.slow
@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.skipif("SOL_RT_SIMD_TARGETS" in os.environ, reason="this is the run of one target")
def test_every_target_of_this_machine(target: str) -> None:
    mask = X86_TARGETS[target]
    load = f"import ctypes; f = ctypes.CDLL({str(LIBRARY)!r}).SolOpsTarget"
    probe = f"{load}; f.restype = ctypes.c_char_p; print(f().decode())"
    found = with_targets([sys.executable, "-c", probe], mask)
    assert found.returncode == 0, found.stderr
    if found.stdout.strip() != target:
        pytest.skip(f"this processor has no {target}")
    result = run_tests(__file__, CHECKED, mask)
    assert result.returncode == 0, result.stdout[-3000:]


def test_an_input_of_high_rank_is_refused_by_name() -> None:
    model = matmul_model(Nested.random(np.random.default_rng(12), 64, 40, 4), rank=9)
    with pytest.raises(Exception, match=r"NestedMatMul: input x: got shape of rank 9, expected \[..., 64\]"):
        run(model, np.ones((1,) * 8 + (64,), np.float32))


def test_errors_show_only_the_beginning_of_a_text_of_the_graph() -> None:
    model = Mlp.random(np.random.default_rng(13), 64, 128, 4).model()
    attribute = next(a for a in model.graph.node[0].attribute if a.name == "activation")
    attribute.CopyFrom(helper.make_attribute("activation", "line\n" * 1000))
    with pytest.raises(
        Exception, match=r"PrunedMLP: attribute activation: got line\?line.*\.\.\., expected silu"
    ) as caught:
        open_session(model)
    assert len(str(caught.value)) < 400


def test_an_old_runtime_is_told_so() -> None:
    """RegisterCustomOps on a host without API 21 returns a status and does not abort."""
    made: list[bytes] = []
    create_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)

    def create(_code: int, message: bytes) -> int:
        made.append(message)
        return 1

    created = create_type(create)
    old_api = (ctypes.c_void_p * 300)()
    old_api[0] = ctypes.cast(created, ctypes.c_void_p).value
    get_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    getter = get_type(lambda version: ctypes.addressof(old_api) if version <= 20 else None)
    base = (ctypes.c_void_p * 2)(ctypes.cast(getter, ctypes.c_void_p).value, None)
    register = ctypes.CDLL(str(LIBRARY)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    register.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    assert register(None, ctypes.addressof(base)) == 1
    assert b"1.21" in made[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("count", "k", "n"), [(1, 4096, 8192), (48, 576, 960)])
def test_copies_take_memory_while_they_are_asked_for(count: int, k: int, n: int) -> None:
    """Of a large matrix, and of small ones, which share large pages where the system has such."""

    def megabytes(kind: str) -> float:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
        return int(next(line for line in text.splitlines() if line.startswith(f"{kind}:")).split()[1]) / 1e3

    def private() -> float:
        return megabytes("Anonymous")

    operators = ctypes.CDLL(str(library_path()))
    rng = np.random.default_rng(0)
    session, binding = bound([pruned_matmul(rng, i, k, n, 4) for i in range(count)], k, argparse.Namespace(tokens=1))

    def products() -> list[bytes]:
        session.run_with_iobinding(binding)
        return [bytes(output.tobytes()) for output in binding.copy_outputs_to_cpu()]

    def gives_large_pages() -> bool:
        """True if the system gives large pages to whoever asks, at this moment."""
        with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as control:
            with contextlib.suppress(OSError):  # a kernel without them
                control.madvise(mmap.MADV_HUGEPAGE)
            before = megabytes("AnonHugePages")
            control[:] = bytes(len(control))
            return megabytes("AnonHugePages") - before > 25

    expected, before, large = products(), private(), megabytes("AnonHugePages")
    size = count * k * n * 19 / 32 / 1e6  # of bases, scales and zero points
    slack = 6  # a large page, begun at either end
    try:
        operators.SolOpsCopies(1)
        assert [products(), products()] == [expected] * 2
        assert private() - before == pytest.approx(size, abs=slack)
        got = megabytes("AnonHugePages") - large
        assert got >= 0.7 * size or not gives_large_pages()
        operators.SolOpsCopies(2)
        assert products() == expected
        assert private() - before == pytest.approx(size, abs=slack)  # kept, for a setting that follows
    finally:
        operators.SolOpsCopies(0)
    assert products() == expected
    assert private() - before == pytest.approx(0, abs=slack)
