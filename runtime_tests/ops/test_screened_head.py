"""The screened LM head: all rows at 4 bits, and those with the highest scores at all bits."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from test_bodies import BODY, ONE_OPERATOR, assert_close, operands, run_operator

from helpers import reference
from helpers.reference import Array, Coded, Nested
from helpers.simd_targets import X86_TARGETS, run_tests
from helpers.thread_counts import assert_same_for_any_thread_count
from sol_rt.bundle.bits import Screen
from sol_rt.export.graphs.functions import operators as bodies
from sol_rt.ops import library_path

import onnxruntime as ort

needs_kernels = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")


def screened(x: Array, nested: Nested, bits: int, screen: Screen, *, native: bool, coded: Coded | None = None) -> Array:
    """The operator's y [rows, N] of x [rows, K]. `coded` is the matrix of a screen of 3 bits."""
    k, n = nested.q.shape
    attributes = {"K": k, "N": n, "bits": bits, **screen.attributes}
    body = bodies.screened_matmul(bits, k, n, screen)
    body.overload = ""
    weights = operands(nested, bits) | ({} if coded is None else coded_operands(coded))
    (y,) = run_operator(body, {"x": x}, weights, attributes, native=native)
    return y


def coded_operands(coded: Coded) -> dict[str, Array]:
    tensors = {name.removeprefix("w."): array for name, array in coded.tensors("w").items()}
    return {**tensors, "codebook": coded.codebook}


def made(rng: np.random.Generator, k: int, n: int) -> tuple[Nested, Coded]:
    nested = Nested.random(rng, k, n)
    return nested, Coded.screening(rng, nested, reference.random_codebook(rng))


def whole(x: Array, nested: Nested, bits: int) -> Array:
    k, n = nested.q.shape
    attributes = {"K": k, "N": n, "bits": bits}
    (y,) = run_operator(bodies.nested_matmul(bits), {"x": x}, operands(nested, bits), attributes, native=True)
    return y


def selected(scores: Array, candidates: int) -> Array:
    """The rows of the highest scores, bool as `scores`; ties go to the lower row."""
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.argsort(-scores, axis=-1, kind="stable")[..., :candidates], True, -1)
    return mask


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.one_of(st.integers(1, 40), st.integers(41, 700)),
    st.sampled_from([1, 2, 31, 32, 33, 100]),
    st.sampled_from([6, 8]),
    st.sampled_from([1, 2, 17]),
    st.integers(0, 1 << 16),
)
def test_the_kernel_computes_the_reference(
    blocks: int, n: int, candidates: int, bits: int, rows: int, seed: int
) -> None:
    """Candidates as many as rows, or more, give the whole matrix."""
    rng = np.random.default_rng(seed)
    nested, x = Nested.random(rng, 32 * blocks, n), rng.standard_normal((rows, 32 * blocks)).astype(np.float32)
    y = screened(x, nested, bits, Screen(candidates, 0.25), native=True)
    expected = reference.screened_matmul(x, nested, bits, candidates, 0.25)
    scores = reference.nested_matmul(x, nested, 4)
    if candidates < n:  # rows so near the edge that float32 may order them otherwise
        edge = np.sort(scores, axis=-1)[..., -candidates, None]
        expected = np.where(np.abs(scores - edge) < 1e-4, y, expected)
    # A single product may cancel to nearly nothing: it is compared with the size that such a product usually has.
    usual = np.linalg.norm(x, axis=-1).max() * np.sqrt((nested.weights(bits) ** 2).mean())
    assert np.abs(y - expected).max() <= ONE_OPERATOR * max(np.abs(expected).max(), usual)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.one_of(st.integers(1, 20), st.integers(21, 90)),
    st.sampled_from([1, 2, 31, 33, 100]),
    st.sampled_from([6, 8]),
    st.sampled_from([1, 2, 17]),
    st.integers(0, 1 << 16),
)
def test_the_kernel_computes_the_reference_after_three_bits(
    blocks: int, tiles: int, candidates: int, bits: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    nested, coded = made(rng, 32 * blocks, 32 * tiles)
    x = rng.standard_normal((rows, 32 * blocks)).astype(np.float32)
    y = screened(x, nested, bits, Screen(candidates, 0.25, 3), native=True, coded=coded)
    expected = reference.screened_matmul(x, nested, bits, candidates, 0.25, coded)
    scores = reference.nested_matmul(x, coded, 3)[:, : 32 * tiles]
    if candidates < 32 * tiles:
        edge = np.sort(scores, axis=-1)[..., -candidates, None]
        expected = np.where(np.abs(scores - edge) < 1e-4, y, expected)
    assert_close(y, expected, ONE_OPERATOR)


@needs_kernels
@pytest.mark.parametrize("first", [4, 3])
@pytest.mark.parametrize("rows", [2, 5, 16])
@pytest.mark.parametrize("copies", [False, True])
def test_the_kernel_computes_a_few_rows_with_the_bits_of_each_alone(rows: int, first: int, copies: bool) -> None:
    rng = np.random.default_rng(rows)
    nested, coded = made(rng, 96, 1056)
    x, screen, of_screen = (
        rng.standard_normal((rows, 96)).astype(np.float32),
        Screen(70, 0.5, first),
        coded if first == 3 else None,
    )
    alone = [screened(row[None], nested, 8, screen, native=True, coded=of_screen) for row in x]
    operators = ctypes.CDLL(str(library_path()))
    try:
        operators.SolOpsCopies(int(copies))
        got = screened(x, nested, 8, screen, native=True, coded=of_screen)
    finally:
        operators.SolOpsCopies(0)
    assert np.array_equal(got, np.concatenate(alone))


@needs_kernels
@pytest.mark.parametrize("rows", [1, 3])
def test_the_lower_rows_of_equal_scores_are_candidates(rows: int) -> None:
    """Three kinds of rows that are equal at 4 bits and differ beyond; so many that the edge cuts one kind."""
    rng, n = np.random.default_rng(3), 300
    kinds = Nested.random(rng, 64, 3)
    kind = rng.integers(0, 3, n)
    fine = Nested.random(rng, 64, n)
    nested = Nested(kinds.q[:, kind], fine.b, fine.c, kinds.scale[:, kind], kinds.zero[:, kind])
    x = rng.standard_normal((rows, 64)).astype(np.float32)
    scores = whole(x, nested, 4)
    assert all(len(np.unique(row)) == 3 for row in scores)
    for candidates in (1, 16, 50, 150, 299):
        y = screened(x, nested, 8, Screen(candidates, 0.5), native=True)
        mask = selected(scores, candidates)
        np.testing.assert_array_equal(y[~mask], scores[~mask] + np.float32(0.5))
        assert_close(y[mask], reference.nested_matmul(x, nested, 8)[mask], ONE_OPERATOR)


@needs_kernels
def test_candidates_have_the_whole_matrix_s_logits() -> None:
    """Bit by bit: the bits of a sum do not depend on which other rows are read."""
    rng = np.random.default_rng(4)
    nested, x = Nested.random(rng, 576, 5000), rng.standard_normal((1, 576)).astype(np.float32)
    y, scores = screened(x, nested, 8, Screen(200, -0.125), native=True), whole(x, nested, 4)
    mask = selected(scores, 200)
    np.testing.assert_array_equal(y[mask], whole(x, nested, 8)[mask])
    np.testing.assert_array_equal(y[~mask], scores[~mask] - np.float32(0.125))


@needs_kernels
@pytest.mark.parametrize("rows", [1, 3])
def test_after_a_3_bit_screen_candidates_have_the_whole_matrix_s_logits(rows: int) -> None:
    """Bit by bit. The others have the scores of the matrix of 3 bits, whose sums its own operator adds in two parts."""
    rng = np.random.default_rng(4)
    nested, coded = made(rng, 576, 5024)
    x = rng.standard_normal((rows, 576)).astype(np.float32)
    body = bodies.pruned_matmul(3)
    sizes = {"K": 576, "N": coded.code.shape[1], "bits": 3}
    feed = {"x": x[None], "active": np.zeros(1, np.int64)}
    (scores,) = run_operator(body, feed, coded_operands(coded), sizes, native=True)
    y = screened(x, nested, 8, Screen(200, -0.125, 3), native=True, coded=coded)
    scores = scores[0, :, :5024]
    mask = selected(scores, 200)
    exact = np.concatenate([whole(row[None], nested, 8) for row in x])
    np.testing.assert_array_equal(y[mask], exact[mask])
    assert_close(y[~mask], scores[~mask] - np.float32(0.125), ONE_OPERATOR)


@needs_kernels
@pytest.mark.parametrize("first", [4, 3])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_scores_that_are_all_equal_or_no_numbers(value: float, first: int) -> None:
    nested, coded = made(np.random.default_rng(5), 64, 128)
    x = np.full((2, 64), value, np.float32)
    y = screened(x, nested, 8, Screen(7, 0.5, first), native=True, coded=coded if first == 3 else None)
    if value == 0:
        np.testing.assert_array_equal(y, np.broadcast_to(np.where(np.arange(128) < 7, 0, 0.5), y.shape))
    else:
        assert not np.isfinite(y).any()


@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("first", [4, 3])
def test_the_body_computes_the_reference(first: int, rows: int, bits: int) -> None:
    """Bodies round activations otherwise: where that moves a row over the edge, either of its logits is right."""
    rng = np.random.default_rng(rows)
    nested, x = Nested.random(rng, 96, 416), rng.standard_normal((rows, 96)).astype(np.float32)
    coded = Coded.screening(rng, nested, reference.random_codebook(rng)) if first == 3 else None
    y = screened(x, nested, bits, Screen(40, 3.0, first), native=False, coded=coded)
    scores = reference.nested_matmul(x, nested if coded is None else coded, first)[:, :416]
    low, high = scores + 3.0, reference.nested_matmul(x, nested, bits)
    mask = np.abs(y - high) < np.abs(y - low)
    assert (mask.sum(-1) == 40).all()
    assert (mask != selected(low, 40)).sum() <= rows
    assert_close(y, np.where(mask, high, low), BODY[4])


@needs_kernels
@pytest.mark.parametrize(
    ("bits", "change", "words"),
    [
        (8, {"candidates": -1}, ["candidates", "got -1"]),
        (4, {}, ["candidates", "got 5 at 4 bits"]),
        (8, {"tail_offset": float("inf")}, ["tail_offset", "no finite number"]),
        (8, {"screen_bits": 2}, ["screen_bits", "got 2", "3 or 4"]),
        (8, {"screen_bits": 3}, ["got 6 inputs, expected 11"]),
    ],
)
def test_a_damaged_node_is_refused(bits: int, change: dict[str, float], words: list[str]) -> None:
    nested = Nested.random(np.random.default_rng(6), 32, 40)
    attributes = {"K": 32, "N": 40, "bits": bits, "candidates": 5, "tail_offset": 0.0, **change}
    body = bodies.nested_matmul(bits)
    body.attribute.extend([*Screen(5, 0.0, 3).attributes])
    with pytest.raises(Exception, match="NestedMatMul") as caught:
        run_operator(body, {"x": np.ones((1, 32), np.float32)}, operands(nested, bits), attributes, native=True)
    assert all(word in str(caught.value) for word in words), caught.value


def model_of_one_node(nested: Nested, screen: Screen, coded: Coded) -> onnx.ModelProto:
    """A graph of the operator at 8 bits, whose weights are in the graph. `coded` is read by a screen of 3 bits."""
    k, n = nested.q.shape
    weights = operands(nested, 8) | (coded_operands(coded) if screen.bits == 3 else {})
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs, sizes = ["x", *(tensor.name for tensor in tensors)], {"K": k, "N": n, "bits": 8}
    node = helper.make_node("NestedMatMul", inputs, ["y"], domain="sol", **sizes, **screen.attributes)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", k])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("sol", 1)]
    return helper.make_model(helper.make_graph([node], "g", [x], [y], tensors), opset_imports=opsets, ir_version=11)


@pytest.mark.slow
@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("n", [16032, 16128])  # the last panel of 256 is narrower, or whole
def test_a_copy_of_the_screen_has_the_whole_matrix_s_bits(n: int) -> None:
    """Copies are made at the first step that is asked for them, and freed at the first that is asked for none."""
    k, rng = 1536, np.random.default_rng(9)
    nested, coded = made(rng, k, n)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    model = model_of_one_node(nested, Screen(70, 0.5, 3), coded).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": rng.standard_normal((1, k)).astype(np.float32)}
    feed["x"][0, 96:160] = 0  # no row of two blocks is active

    def product() -> tuple[bytes, float]:
        """The logits, and the process's private memory in MB."""
        (y,) = session.run(None, feed)
        text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
        private = next(line for line in text.splitlines() if line.startswith("Anonymous:"))
        return y.tobytes(), int(private.split()[1]) / 1e3

    operators, size = ctypes.CDLL(str(library_path())), coded.code.size * 13 / 32 / 1e6
    expected, before = product()
    try:
        operators.SolOpsCopies(1)
        for logits, private in (product(), product()):
            assert logits == expected
            assert private - before == pytest.approx(size, abs=6)  # a large page, begun at either end
    finally:
        operators.SolOpsCopies(0)
    logits, private = product()
    assert logits == expected
    assert private - before == pytest.approx(0, abs=6)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("first", [4, 3])
def test_no_bit_depends_on_the_number_of_threads(tmp_path: Path, first: int) -> None:
    nested, coded = made(np.random.default_rng(7), 96, 3008)
    rng = np.random.default_rng(8)
    model = model_of_one_node(nested, Screen(70, 0.5, first), coded)
    inputs = [{"x": rng.standard_normal((rows, 96)).astype(np.float32)} for rows in (1, 9)]
    assert_same_for_any_thread_count(model, inputs, 20, tmp_path)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.skipif("SOL_RT_SIMD_TARGETS" in os.environ, reason="this is the run of one target")
def test_every_target_of_this_machine(target: str) -> None:
    result = run_tests(__file__, "kernel_computes or equal_scores or whole_matrix_s", X86_TARGETS[target])
    assert result.returncode == 0, result.stdout[-3000:]
