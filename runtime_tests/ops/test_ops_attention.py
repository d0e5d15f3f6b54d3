"""The native kernel of SparseAttention against a float64 model of docs/reference/bundle-details.md, section 3."""

from __future__ import annotations

import functools
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from helpers.reference import (
    PAGE,
    best_tokens,
    by_token,
    in_pages,
    key_codes,
    quantized_rows,
    query_codes,
    scaled_rows,
    token_scores,
    unpacked,
)
from helpers.simd_targets import MASKS, run_tests, with_targets
from helpers.thread_counts import assert_same_for_any_thread_count
from sol_rt.ops import library_path

import onnxruntime as ort

LIBRARY = library_path()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native operators are not built")

TOLERANCE = 1e-3  # relative to the largest output; measured errors are below 1e-5
CACHE = ("key", "value", "key_codes", "key_range")
SCALES = ("key_scale", "value_scale")


@dataclass(frozen=True)
class Dims:
    """Attributes of the node and the cache's capacity in tokens."""

    kv_heads: int = 3
    group: int = 3
    head_dim: int = 64
    rotary_dim: int = 64
    sinks: int = 4
    capacity: int = 1024
    int8: bool = False

    @property
    def cache(self) -> tuple[str, ...]:
        return CACHE + SCALES if self.int8 else CACHE

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def scale(self) -> float:
        return float(np.float32(self.head_dim**-0.5))


@dataclass(frozen=True)
class Case:
    """One call: dims, tokens in the cache, new tokens, pages to pages."""

    dims: Dims
    past: int
    tokens: int
    pages: int
    seed: int = 0


def model_of(dims: Dims, **changed: float | str) -> onnx.ModelProto:
    """A graph of one node; `changed`: its attributes."""
    attributes: dict[str, float | str] = {
        "num_heads": dims.heads,
        "kv_heads": dims.kv_heads,
        "head_dim": dims.head_dim,
        "rotary_dim": dims.rotary_dim,
        "page_size": PAGE,
        "sinks": dims.sinks,
        "softmax_scale": dims.scale,
    }
    attributes.update(changed)
    half, integer, single = TensorProto.FLOAT16, TensorProto.INT64, TensorProto.FLOAT
    element = TensorProto.INT8 if dims.int8 else half
    kinds = [(element, 4), (element, 4), (TensorProto.UINT8, 4), (half, 4), (half, 3), (half, 3)]
    cache = dict(zip(dims.cache, kinds, strict=False))
    types = {"qkv": (single, 3), **{f"past_{name}": cache[name] for name in CACHE}}
    types |= {"past_length": (integer, 1), "kv_pages": (integer, 1), "cos": (single, 2), "sin": (single, 2)}
    types |= {f"past_{name}": cache[name] for name in dims.cache[len(CACHE) :]}
    outputs = {"y": (single, 3), **{f"present_{name}": cache[name] for name in dims.cache}}

    def info(name: str, kind: tuple[int, int]) -> object:
        return helper.make_tensor_value_info(name, kind[0], [f"{name}_{i}" for i in range(kind[1])])

    node = helper.make_node("SparseAttention", list(types), list(outputs), domain="sol", **attributes)
    graph = helper.make_graph(
        [node], "attention", [info(*item) for item in types.items()], [info(*item) for item in outputs.items()]
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("sol", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


@functools.cache
def session(dims: Dims, **changed: float | str) -> ort.InferenceSession:
    return open_session(model_of(dims, **changed))


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def rotary_tables(dims: Dims) -> tuple[np.ndarray, np.ndarray]:
    half = dims.rotary_dim // 2
    angle = np.arange(dims.capacity)[:, None] * 10000.0 ** (-np.arange(half) / max(half, 1))[None, :]
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def attended_rows(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Keys or values as attention reads them, float64; `name` is that of their tensor."""
    scale = tensors.get(f"{name}_scale")
    return tensors[name].astype(np.float64) if scale is None else scaled_rows(tensors[name], scale)


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    dims, rng = case.dims, np.random.default_rng(case.seed)
    shape = (1, dims.kv_heads, dims.capacity, dims.head_dim)
    # Rows beyond past_length hold large finite rubbish that nothing may read.
    key, value = (np.full(shape, 1000.0, np.float16) for _ in range(2))
    key[:, :, : case.past] = rng.standard_normal((1, dims.kv_heads, case.past, dims.head_dim))
    value[:, :, : case.past] = rng.standard_normal((1, dims.kv_heads, case.past, dims.head_dim))
    cache = {"past_key": key, "past_value": value}
    if dims.int8:
        for name in ("past_key", "past_value"):
            cache[name], cache[f"{name}_scale"] = quantized_rows(cache[name])
    cos, sin = rotary_tables(dims)
    width = (dims.heads + 2 * dims.kv_heads) * dims.head_dim
    inputs = {
        "qkv": (rng.standard_normal((1, case.tokens, width)) * 1.5).astype(np.float32),
        **cache,
        "past_length": np.array([case.past]),
        "kv_pages": np.array([case.pages]),
        "cos": cos,
        "sin": sin,
    }
    make_codes(inputs)
    return inputs


def make_codes(inputs: dict[str, np.ndarray]) -> None:
    """Sets codes and ranges to those of the keys, beyond past_length to rubbish that scores high."""
    codes, ranges = key_codes(attended_rows(inputs, "past_key"))
    beyond = int(inputs["past_length"][0])
    codes[:, :, beyond:], ranges[:, :, beyond:] = 0xAB, 1000.0
    inputs |= dict(zip(("past_key_codes", "past_key_range"), in_pages(codes, ranges), strict=True))


def with_rows(tensors: dict[str, np.ndarray], when: str) -> dict[str, np.ndarray]:
    """The tensors with codes and ranges in the order of tokens; `when` is past or present."""
    names = (f"{when}_key_codes", f"{when}_key_range")
    return tensors | dict(zip(names, by_token(*(tensors[name] for name in names)), strict=True))


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Half-split rotary of x [S, heads, D] by tables [S, rotary_dim / 2]."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)


class TooCloseError(Exception):
    """Two tokens' scores differ by less than float32 can tell."""


def attended(dims: Dims, query: np.ndarray, codes: np.ndarray, ranges: np.ndarray, pages: int) -> np.ndarray:
    """Positions that every KV head reads at a decode step, bool [Hk, T]: for rotated queries [Hk, group, D], codes and
    ranges [Hk, T, …] of all tokens.
    """
    total = codes.shape[1]
    old = PAGE * (-(-total // PAGE) - 1)
    read = np.ones((dims.kv_heads, total), bool)
    if PAGE * pages >= old:
        return read
    heads = list(zip(query, codes[:, :old], ranges[:, :old], strict=True))
    scores = np.array([token_scores(*head, dims.scale) for head in heads])
    read[:, :old] = kept = best_tokens(scores, dims.kv_heads * PAGE * pages)
    # A score is off by the error of its logits, and by 1e-5 of it for exponentials and sums.
    error = np.exp([[dims.scale * float32_error(*head) + 1e-5] for head in heads])
    lowest = np.where(kept, scores / error, np.inf).min()
    highest = np.where(kept, -np.inf, scores * error).max()
    near = scores[(scores * error >= lowest) & (scores / error <= highest)]
    if near.size and near.min() < near.max():
        raise TooCloseError
    read[:, : dims.sinks] = True
    return read


def float32_error(query: np.ndarray, codes: np.ndarray, ranges: np.ndarray) -> float:
    """Largest difference of two scores that may still come in the other order.

    Causes are the rounding of the sums, and a code of the query that rotation in float32 moves across a rounding
    boundary.
    """
    whole, step = query_codes(query)
    least, key_step = ranges.astype(np.float64).T
    parts = np.abs(key_step * (whole @ unpacked(codes).T)) + np.abs(least * whole.sum(-1, keepdims=True))
    exact = np.divide(query, step, out=np.zeros_like(query), where=step > 0)
    unsure = np.abs(np.abs(exact - whole) - 0.5) < 1e-4
    largest = np.abs(key_step[:, None] * unpacked(codes) + least[:, None]).max(0)
    return float((step * (1e-6 * parts.max() + 2 * (unsure * largest).sum(-1, keepdims=True))).max())


def check(case: Case, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
    """Asserts that the outputs are what the specification says."""
    dims, total = case.dims, case.past + case.tokens
    inputs, outputs = with_rows(inputs, "past"), with_rows(outputs, "present")
    qkv = inputs["qkv"][0].astype(np.float64).reshape(case.tokens, -1, dims.head_dim)
    tables = [inputs[name][case.past : total].astype(np.float64) for name in ("cos", "sin")]
    query = rotate(qkv[:, : dims.heads], *tables)
    new_key = rotate(qkv[:, dims.heads : dims.heads + dims.kv_heads], *tables)
    new_value = qkv[:, dims.heads + dims.kv_heads :]

    new = slice(case.past, total)
    key, value = (attended_rows(outputs, f"present_{name}") for name in ("key", "value"))
    for name in dims.cache:
        untouched = np.ones(dims.capacity, bool)
        untouched[new] = False
        np.testing.assert_array_equal(
            outputs[f"present_{name}"][:, :, untouched], inputs[f"past_{name}"][:, :, untouched]
        )
    new_key, new_value = new_key.transpose(1, 0, 2), new_value.transpose(1, 0, 2)
    if dims.int8:
        codes, scale = quantized_rows(new_value)
        np.testing.assert_array_equal(outputs["present_value"][0, :, new], codes)
        np.testing.assert_array_equal(outputs["present_value_scale"][0, :, new], scale)
        # Rotation in float32 may land on the other side of a rounding boundary.
        scale = outputs["present_key_scale"][0, :, new].astype(np.float64)
        np.testing.assert_allclose(scale, np.abs(new_key).max(-1) / 127, rtol=2**-11 * 1.01, atol=2**-25)
        # Half a step, and where float16 rounded a scale below 2^-14 down, what lies beyond 127 steps.
        bound = 0.5001 * scale[..., None] + np.maximum(np.abs(new_key) - 127.5 * scale[..., None], 0)
        assert (np.abs(key[0, :, new] - new_key) <= bound + 1e-6).all()
    else:
        # Rotation in float32 may land on the other side of a rounding boundary.
        np.testing.assert_allclose(key[0, :, new], new_key, rtol=2**-11 * 1.01, atol=1e-6)
        np.testing.assert_array_equal(value[0, :, new], new_value.astype(np.float16))

    codes, ranges = (outputs[f"present_{name}"][0] for name in ("key_codes", "key_range"))
    for got, expected in zip((codes, ranges), key_codes(key[0, :, new]), strict=True):
        np.testing.assert_array_equal(got[:, new], expected)

    read = np.ones((dims.kv_heads, total), bool)
    if case.tokens == 1:
        queries = query[0].reshape(dims.kv_heads, dims.group, dims.head_dim)
        read = attended(dims, queries, codes[:, :total], ranges[:, :total], case.pages)
    expected_y = np.empty((case.tokens, dims.heads, dims.head_dim))
    for head in range(dims.kv_heads):
        keys, values = key[0, head], value[0, head]
        group = slice(head * dims.group, (head + 1) * dims.group)
        for token in range(case.tokens):
            seen = np.flatnonzero(read[head, : case.past + token + 1])
            logits = dims.scale * query[token, group] @ keys[seen].T
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            expected_y[token, group] = weights @ values[seen] / weights.sum(-1, keepdims=True)
    error = np.abs(outputs["y"][0].reshape(expected_y.shape) - expected_y).max()
    assert error <= TOLERANCE * np.abs(expected_y).max()


def run(case: Case, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    outputs = session(case.dims).run(None, inputs)
    return dict(zip(["y", *(f"present_{name}" for name in case.dims.cache)], outputs, strict=True))


def run_in_place(case: Case, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same call with each cache tensor bound as input and output at once."""
    used = session(case.dims)
    binding = used.io_binding()
    arrays = {name: array.copy() for name, array in inputs.items()}  # an OrtValue borrows its array's memory
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    for name in case.dims.cache:
        binding.bind_ortvalue_output(f"present_{name}", values[f"past_{name}"])
    used.run_with_iobinding(binding)
    return {"y": binding.get_outputs()[0].numpy()} | {
        f"present_{name}": arrays[f"past_{name}"] for name in case.dims.cache
    }


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    head_dim = draw(st.sampled_from([16, 18, 24, 32, 40, 64, 72, 80, 128]))
    dims = Dims(
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 12])),
        head_dim=head_dim,
        rotary_dim=draw(st.sampled_from([head_dim, head_dim // 2 // 2 * 2, 2, 0])),
        sinks=draw(st.sampled_from([0, 4, 16, 21])),
        capacity=PAGE * draw(st.integers(12, 80)),
        int8=draw(st.booleans()),
    )
    tokens = draw(st.one_of(st.just(1), st.just(1), st.integers(2, 40)))
    room = dims.capacity - tokens
    past = draw(
        st.one_of(st.sampled_from([0, 1, 3, 4, 5, 31, 32, 33, room]), st.integers(0, room)).filter(lambda n: n <= room)
    )
    pages = draw(st.one_of(st.sampled_from([0, 1, 2, 2**40]), st.integers(0, 80)))
    return Case(dims, past, tokens, pages, draw(st.integers(0, 2**32 - 1)))


@settings(deadline=None, max_examples=200)
@given(cases())
@example(Case(Dims(head_dim=2, rotary_dim=2), 100, 1, 3))
@example(Case(Dims(head_dim=20, rotary_dim=20), 100, 1, 3))
@example(Case(Dims(head_dim=100, rotary_dim=100, int8=True), 100, 1, 3))
@example(Case(Dims(head_dim=256, rotary_dim=256, group=5, capacity=64), 33, 1, 1))
@example(Case(Dims(head_dim=256, rotary_dim=128, group=1, capacity=64), 7, 57, 0))
def test_any_shape(case: Case) -> None:
    inputs = make_inputs(case)
    outputs = run(case, inputs)
    try:
        check(case, inputs, outputs)
    except TooCloseError:
        reject()
    assert_same(outputs, run_in_place(case, inputs))


FIXED = [
    Case(Dims(), 0, 1, 0),
    Case(Dims(), 700, 1, 2**62),
    Case(Dims(), 1023, 1, 5),
    Case(Dims(), 600, 1, 0),
    Case(Dims(head_dim=80, rotary_dim=32, group=1), 527, 1, 7),
    Case(Dims(head_dim=128, rotary_dim=128, group=6, kv_heads=2), 400, 1, 12),
    Case(Dims(), 0, 200, 0),
    Case(Dims(), 333, 16, 1),
    Case(Dims(head_dim=80, rotary_dim=32, group=1), 65, 130, 3),
    Case(Dims(capacity=1600), 1500, 17, 0),
    Case(Dims(head_dim=128, rotary_dim=64, group=5, kv_heads=1), 17, 70, 3),
    Case(Dims(head_dim=18, rotary_dim=10, group=2, kv_heads=2), 17, 70, 3),
    Case(Dims(group=12, kv_heads=1), 520, 1, 7, seed=1),
]
FIXED += [replace(case, dims=replace(case.dims, int8=True)) for case in FIXED]
INT8 = pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])


@pytest.mark.parametrize("case", FIXED)
def test_fixed(case: Case) -> None:
    inputs = make_inputs(case)
    outputs = run(case, inputs)
    check(case, inputs, outputs)
    assert_same(outputs, run(case, inputs))


def test_shares_are_of_all_blocks_of_a_long_context() -> None:
    """More blocks than a vector has lanes. Most of what one KV head attends to lies in its last ones."""
    case = Case(Dims(kv_heads=2, group=2, head_dim=16, rotary_dim=16, capacity=18432), 18400, 1, 3)
    inputs = make_inputs(case)
    inputs["past_key"][:, 0, 17000 : case.past] *= 2
    make_codes(inputs)
    check(case, inputs, run(case, inputs))


@pytest.mark.slow
@INT8
def test_long_context_splits_the_same_for_any_thread_count(int8: bool, tmp_path: Path) -> None:
    dims = Dims(capacity=4096, int8=int8)
    cases = [
        Case(dims, 4000, 1, 2**40),
        Case(dims, 4000, 1, 240, seed=2),
        Case(dims, 3900, 24, 0),
        Case(dims, 3071, 1, 400, seed=2),
    ]
    inputs = [make_inputs(case) for case in cases]
    for case, feeds in zip(cases, inputs, strict=True):
        check(case, feeds, run(case, feeds))
    assert_same_for_any_thread_count(model_of(dims), inputs, 3, tmp_path)


@INT8
def test_prompt_in_chunks_equals_prompt_at_once_and_steps(int8: bool) -> None:
    whole = Case(Dims(capacity=128, int8=int8), 0, 90, 2**40)
    parts = whole.dims.cache
    inputs = make_inputs(whole)
    expected = run(whole, inputs)
    for sizes in ([40, 50], [15, 1, 1, 73], [1] * 90):
        state = {name: inputs[f"past_{name}"] for name in parts}
        rows, past = [], 0
        for size in sizes:
            step = replace(whole, past=past, tokens=size)
            feeds = inputs | {f"past_{name}": state[name] for name in parts}
            feeds |= {"qkv": inputs["qkv"][:, past : past + size], "past_length": np.array([past])}
            outputs = run(step, feeds)
            state = {name: outputs[f"present_{name}"] for name in parts}
            rows.append(outputs["y"])
            past += size
        for name in parts:
            np.testing.assert_array_equal(state[name], expected[f"present_{name}"])
        np.testing.assert_allclose(np.concatenate(rows, 1), expected["y"], atol=1e-5)


@INT8
def test_rewinding_into_a_page(int8: bool) -> None:
    dims = Dims(capacity=128, int8=int8)
    first = Case(dims, 0, 75, 0)
    inputs = make_inputs(first)
    cache = {f"past_{name}": run(first, inputs)[f"present_{name}"] for name in dims.cache}
    for past, tokens, pages in ((37, 1, 1), (48, 1, 0), (5, 30, 0), (0, 1, 0)):
        case = Case(dims, past, tokens, pages, seed=past + 2)
        feeds = make_inputs(case) | cache
        check(case, feeds, run(case, feeds))


@pytest.mark.parametrize("pages", [1, 2, 5, 13])
def test_among_equal_tokens_the_lower_ones_are_kept(pages: int) -> None:
    dims = Dims(kv_heads=1, sinks=0, capacity=512)
    case = Case(dims, 500, 1, pages)
    inputs = make_inputs(case)
    # All keys the same: every token scores the same, every attended token weighs the same.
    inputs["past_key"][:, :, :500] = inputs["past_key"][:, :, :1]
    make_codes(inputs)
    inputs["qkv"][:, :, dims.heads * 64 : dims.heads * 64 + 64] = 0
    check(case, inputs, run(case, inputs))


@INT8
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_needle_is_found_with_one_page(int8: bool, data: st.DataObject) -> None:
    """One key that answers one head's query, anywhere among old tokens: a single page's worth is enough to read it."""
    dims = Dims(group=data.draw(st.integers(1, 4)), int8=int8)
    past = data.draw(st.integers(2 * PAGE, dims.capacity - 1))
    at = data.draw(st.integers(0, past // PAGE * PAGE - 1))
    kv_head, member = data.draw(st.integers(0, dims.kv_heads - 1)), data.draw(st.integers(0, dims.group - 1))
    case = Case(dims, past, 1, 1, data.draw(st.integers(0, 2**32 - 1)))
    inputs = make_inputs(case)
    head = kv_head * dims.group + member
    tables = [inputs[name][past : past + 1] for name in ("cos", "sin")]
    query = rotate(inputs["qkv"][0].reshape(1, -1, dims.head_dim)[:, : dims.heads], *tables)[0, head]
    needle = 60 / (dims.scale * query @ query) * query  # its logit is 60, those of random keys are within 6 or so
    inputs["qkv"][:, :, dims.heads * dims.head_dim :] *= 0.01  # so that the newest token is no rival
    if int8:
        codes, scales = quantized_rows(needle)
        inputs["past_key"][0, kv_head, at], inputs["past_key_scale"][0, kv_head, at] = codes, scales
    else:
        inputs["past_key"][0, kv_head, at] = needle
    make_codes(inputs)
    outputs = run(case, inputs)
    value = attended_rows(outputs, "present_value")[0, kv_head, at]
    np.testing.assert_allclose(outputs["y"].reshape(dims.heads, -1)[head], value, atol=1e-3)
    try:
        check(case, inputs, outputs)
    except TooCloseError:  # tokens of another head, whose keys are random
        reject()


def test_huge_logits_stay_finite() -> None:
    case = Case(Dims(), 400, 1, 10)
    inputs = make_inputs(case)
    inputs["qkv"] *= 500
    inputs["past_key"][:, :, :400] *= 100
    make_codes(inputs)
    check(case, inputs, run(case, inputs))
    prompt = Case(Dims(), 0, 100, 0)
    inputs = make_inputs(prompt)
    inputs["qkv"] *= 200
    check(prompt, inputs, run(prompt, inputs))


def test_one_session_run_by_several_threads() -> None:
    steps = [Case(Dims(), 300 + i, 1, 4, seed=i) for i in range(4)] + [
        Case(Dims(), 30 * i, 60, 0, seed=i) for i in range(4)
    ]
    inputs = [make_inputs(case) for case in steps]
    expected = [run(case, feeds) for case, feeds in zip(steps, inputs, strict=True)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not np.array_equal(run(steps[i], inputs[i])["y"], expected[i]["y"]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("tokens", [1, 20])
def test_scales_of_all_sizes(tokens: int) -> None:
    """Rows of zeros, of numbers that float16 has no scale for, of scales it rounds coarsely, and of large numbers."""
    case = Case(Dims(capacity=128, int8=True), 60, tokens, 0)
    inputs = make_inputs(case)
    new = inputs["qkv"][0].reshape(tokens, -1, case.dims.head_dim)
    for size in (0.0, 1e-7, 3e-6, 1e-5, 2e-3, 5e4):
        new[:, case.dims.heads :] /= np.abs(new[:, case.dims.heads :]).max(-1, keepdims=True)
        feeds = inputs | {"qkv": inputs["qkv"].copy()}
        feeds["qkv"][0].reshape(new.shape)[:, case.dims.heads :] *= size
        outputs = run(case, feeds)
        check(case, feeds, outputs)
        if size <= 1e-7:
            assert not outputs["present_value"][:, :, 60 : 60 + tokens].any()


def test_a_row_too_large_for_its_scale_gives_no_finite_result() -> None:
    case = Case(Dims(capacity=128, int8=True), 60, 1, 2**40)
    inputs = make_inputs(case)
    inputs["qkv"][..., -64:] *= 1e8
    assert not np.isfinite(run(case, inputs)["y"]).all()


@INT8
@pytest.mark.parametrize(("tokens", "pages"), [(1, 2**40), (1, 3), (20, 0)], ids=["dense", "sparse", "prompt"])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_nan_is_not_hidden(int8: bool, tokens: int, pages: int, part: str) -> None:
    """Of the last token, a query's spoils its head, a key's or value's all heads that read it, and no other."""
    dims = Dims(int8=int8)
    case = Case(dims, 101, tokens, pages)
    inputs = make_inputs(case)
    first = {"query": 0, "key": dims.heads, "value": dims.heads + dims.kv_heads}[part]
    inputs["qkv"][0, -1].reshape(-1, dims.head_dim)[first, 5] = np.nan
    y = run(case, inputs)["y"][0, -1].reshape(dims.heads, dims.head_dim)
    spoiled = 1 if part == "query" else dims.group
    channels = 5 if part == "value" else slice(None)  # at least
    assert np.isnan(y[:spoiled, channels]).all()
    assert np.isfinite(y[spoiled:]).all()


def half(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float16)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("past_length", np.array([-1])),
        ("past_length", np.array([1024])),
        ("past_length", np.array([2**63 - 1])),
        ("past_length", np.array([-(2**63)])),
        ("past_length", np.array([], np.int64)),
        ("past_length", np.array([1, 2])),
        ("kv_pages", np.array([-1])),
        ("kv_pages", np.array([], np.int64)),
        ("qkv", np.zeros((1, 0, 960), np.float32)),
        ("qkv", np.zeros((2, 1, 960), np.float32)),
        ("qkv", np.zeros((1, 1, 959), np.float32)),
        ("past_key", half(1, 3, 1024, 32)),
        ("past_key", half(1, 2, 1024, 64)),
        ("past_key", half(2, 3, 1024, 64)),
        ("past_key", half(1, 3, 1030, 64)),
        ("past_key", half(1, 3, 0, 64)),
        ("past_value", half(1, 3, 1008, 64)),
        ("past_key_codes", np.zeros((1, 3, 1023, 32), np.uint8)),
        ("past_key_codes", np.zeros((1, 3, 1024, 64), np.uint8)),
        ("past_key_range", half(1, 3, 256, 2)),
        ("past_key_range", half(1, 3, 1024, 1)),
        ("cos", np.zeros((1024, 16), np.float32)),
        ("cos", np.zeros((64, 32), np.float32)),
        ("cos", np.zeros((0, 32), np.float32)),
        ("sin", np.zeros((64, 32), np.float32)),
    ],
)
def test_bad_input_is_one_line(name: str, value: np.ndarray) -> None:
    case = Case(Dims(), 100, 1, 3)
    with pytest.raises(Exception, match=r"SparseAttention: input .*(got|expected)") as caught:
        session(case.dims).run(None, make_inputs(case) | {name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert name in message or name in ("cos", "sin", "past_key")


def test_tokens_of_all_kv_heads_are_counted_in_32_bits() -> None:
    """Their scores are, so a cache with more of them is refused. The array's memory is never touched."""
    dims = Dims(kv_heads=1024, group=1, head_dim=2, rotary_dim=2, capacity=4, int8=True)
    feeds = make_inputs(Case(dims, 3, 1, 0)) | {"past_key": np.zeros((1, 1024, 2**20 + 4, 2), np.int8)}
    with pytest.raises(
        Exception, match=r"SparseAttention: input past_key: got capacity 1048580, expected .* to 1048576"
    ):
        session(dims).run(None, feeds)


@pytest.mark.parametrize("counts", [0, 2], ids=["fewer", "more"])
def test_computed_counts_of_another_length_than_declared_are_refused(counts: int) -> None:
    """ONNX Runtime holds a graph's inputs to the lengths that it declares, not what nodes compute."""
    case = Case(Dims(), 100, 1, 3)
    model = model_of(case.dims)
    graph = model.graph
    declared = next(value for value in graph.input if value.name == "kv_pages")
    graph.input.remove(declared)
    declared.type.tensor_type.shape.dim[0].dim_value = 1
    graph.value_info.append(declared)
    graph.input.append(helper.make_tensor_value_info("flags", TensorProto.FLOAT, ["n"]))
    graph.initializer.append(helper.make_tensor("flat", TensorProto.INT64, [1], [-1]))
    graph.node.insert(0, helper.make_node("NonZero", ["flags"], ["places"]))
    graph.node.insert(1, helper.make_node("Reshape", ["places", "flat"], ["kv_pages"]))
    feeds = make_inputs(case)
    del feeds["kv_pages"]
    with pytest.raises(Exception, match=rf"SparseAttention: input kv_pages: got shape \[{counts}\], expected \[1\]"):
        open_session(model).run(None, feeds | {"flags": np.ones(counts, np.float32)})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *(("num_heads", value) for value in (0, 10, -3, 2**62)),
        *(("kv_heads", value) for value in (0, 10)),
        *(("head_dim", value) for value in (0, 63, 2**40)),
        *(("rotary_dim", value) for value in (-2, 33, 66)),
        *(("page_size", value) for value in (0, 16)),
        ("sinks", -1),
        *(("softmax_scale", value) for value in (float("nan"), float("inf"))),
    ],
)
def test_bad_attribute_is_refused_at_load(attribute: str, value: float) -> None:
    with pytest.raises(Exception, match=r"SparseAttention: attribute .*got"):
        session(Dims(), **{attribute: value})


@pytest.mark.parametrize(
    ("attribute", "value"), [("window", 128.0), ("window", "128"), ("softcap", 30), ("sinks", 4.0)]
)
def test_an_attribute_of_another_type_is_refused_at_load(attribute: str, value: float | str) -> None:
    """One that may be missing too: it must not count as missing."""
    with pytest.raises(Exception, match=f"SparseAttention: attribute {attribute}: .*export the bundle again"):
        session(Dims(), **{attribute: value})


def test_a_missing_attribute_is_named_at_load() -> None:
    model = model_of(Dims())
    attributes = model.graph.node[0].attribute
    attributes.remove(next(attribute for attribute in attributes if attribute.name == "sinks"))
    with pytest.raises(Exception, match=r"SparseAttention: attribute sinks: .*export the bundle again"):
        open_session(model)


@pytest.mark.parametrize("name", ["past_key_scale", "past_value_scale", "present_key_scale", "present_value_scale"])
def test_an_int8_cache_without_its_scales_is_refused_at_load(name: str) -> None:
    """Scales are optional to ONNX Runtime, as a float16 cache has none."""
    model = model_of(Dims(int8=True))
    node, graph = model.graph.node[0], model.graph
    for names, values in ((node.input, graph.input), (node.output, graph.output)):
        if name in names:
            names[list(names).index(name)] = ""
            values.remove(next(value for value in values if value.name == name))
    with pytest.raises(Exception, match=f"SparseAttention: .*without {name}.*export the bundle again") as caught:
        open_session(model)
    assert "\n" not in str(caught.value).strip()


def available_targets() -> dict[str, int]:
    """The targets that the library has and this processor runs: name to mask for SOL_RT_SIMD_TARGETS."""
    program = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).SolOpsTarget; f.restype = ctypes.c_char_p; print(f())"
    found: dict[str, int] = {}
    for mask in MASKS:
        name = with_targets([sys.executable, "-c", program, str(LIBRARY)], mask).stdout.strip()
        found.setdefault(name, mask)
    return found


@pytest.mark.slow
def test_every_simd_target() -> None:
    targets = available_targets()
    assert "" not in targets
    for name, mask in targets.items():
        # Without an instruction that reads float16, Highway reads NaN as a number.
        select = "test_fixed or equal_tokens" + ("" if "SSE" in name else " or nan")
        done = run_tests(__file__, select, mask)
        assert done.returncode == 0, f"{name}: {done.stdout[-3000:]}"
