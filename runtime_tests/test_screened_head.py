"""The screened LM head: all rows at 4 bits, and those with the highest scores at all bits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from test_bodies import BODY, ONE_OPERATOR, assert_close, operands, run_operator

from helpers import reference
from helpers.reference import Array, Nested
from helpers.simd_targets import X86_TARGETS, run_tests
from helpers.thread_counts import assert_same_for_any_thread_count
from sol_rt.bundle.bits import Screen
from sol_rt.export.graphs.functions import operators as bodies
from sol_rt.ops import library_path

needs_kernels = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")


def screened(x: Array, nested: Nested, bits: int, screen: Screen, *, native: bool) -> Array:
    """The operator's y [rows, N] of x [rows, K]."""
    k, n = nested.q.shape
    attributes = {"K": k, "N": n, "bits": bits, **screen._asdict()}
    body = bodies.screened_matmul(bits, k, n, screen)
    body.overload = ""
    (y,) = run_operator(body, {"x": x}, operands(nested, bits), attributes, native=native)
    return y


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
    """As many candidates as rows, or more, give the whole matrix."""
    rng = np.random.default_rng(seed)
    nested, x = Nested.random(rng, 32 * blocks, n), rng.standard_normal((rows, 32 * blocks)).astype(np.float32)
    y = screened(x, nested, bits, Screen(candidates, 0.25), native=True)
    expected = reference.screened_matmul(x, nested, bits, candidates, 0.25)
    scores = reference.nested_matmul(x, nested, 4)
    if candidates < n:  # rows so near the edge that float32 may order them otherwise
        edge = np.sort(scores, axis=-1)[..., -candidates, None]
        expected = np.where(np.abs(scores - edge) < 1e-4, y, expected)
    assert_close(y, expected, ONE_OPERATOR)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 3])
def test_of_equal_scores_the_lower_rows_are_candidates(rows: int) -> None:
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
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_scores_that_are_all_equal_or_no_numbers(value: float) -> None:
    nested, x = Nested.random(np.random.default_rng(5), 64, 100), np.full((2, 64), value, np.float32)
    y = screened(x, nested, 8, Screen(7, 0.5), native=True)
    if value == 0:
        np.testing.assert_array_equal(y, np.broadcast_to(np.where(np.arange(100) < 7, 0, 0.5), y.shape))
    else:
        assert not np.isfinite(y).any()


@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("rows", [1, 5])
def test_the_body_computes_the_reference(rows: int, bits: int) -> None:
    """Bodies round activations otherwise: where that moves a row over the edge, either of its logits is right."""
    rng = np.random.default_rng(rows)
    nested, x = Nested.random(rng, 96, 400), rng.standard_normal((rows, 96)).astype(np.float32)
    y = screened(x, nested, bits, Screen(40, 3.0), native=False)
    low, high = reference.nested_matmul(x, nested, 4) + 3.0, reference.nested_matmul(x, nested, bits)
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
    ],
)
def test_a_damaged_node_is_refused(bits: int, change: dict[str, float], words: list[str]) -> None:
    nested = Nested.random(np.random.default_rng(6), 32, 40)
    attributes = {"K": 32, "N": 40, "bits": bits, "candidates": 5, "tail_offset": 0.0, **change}
    body = bodies.nested_matmul(bits)
    body.attribute.extend(Screen._fields)
    with pytest.raises(Exception, match="NestedMatMul") as caught:
        run_operator(body, {"x": np.ones((1, 32), np.float32)}, operands(nested, bits), attributes, native=True)
    assert all(word in str(caught.value) for word in words), caught.value


@needs_kernels
@pytest.mark.slow
def test_no_bit_depends_on_the_number_of_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    nested = Nested.random(rng, 96, 3000)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in operands(nested, 8).items()]
    node = helper.make_node(
        "NestedMatMul",
        ["x", *(tensor.name for tensor in tensors)],
        ["y"],
        domain="sol",
        K=96,
        N=3000,
        bits=8,
        candidates=70,
        tail_offset=0.5,
    )
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 96])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("sol", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], tensors), opset_imports=opsets, ir_version=11)
    inputs = [{"x": rng.standard_normal((rows, 96)).astype(np.float32)} for rows in (1, 9)]
    assert_same_for_any_thread_count(model, inputs, 20, tmp_path)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.skipif("SOL_RT_SIMD_TARGETS" in os.environ, reason="this is the run of one target")
def test_every_target_of_this_machine(target: str) -> None:
    result = run_tests(__file__, "kernel_computes or equal_scores or whole_matrix_s", X86_TARGETS[target])
    assert result.returncode == 0, result.stdout[-3000:]
