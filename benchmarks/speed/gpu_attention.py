"""Measures the time of one layer's attention at decode on a device, dense and sparse. gpu.py uses it; no command."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from operators.attention import SINKS, attention_node, attention_shape
from sol_rt.bundle.config import PAGE_SIZE, KvLayout, ModelDims
from sol_rt.engine.providers import Provider
from sol_rt.engine.signature import GATHER_CAPACITY
from sol_rt.export.graphs.functions.attention import sparse_attention
from sol_rt.export.graphs.gpu_graph import gather_capacity
from sol_rt.export.graphs.nodes import IR_VERSION, OPSETS
from speed.gpu_limits import Wait

import onnxruntime as ort

LAYERS = 8
"""Number of layers. Each has its own KV cache, so that no layer finds its keys in a hardware cache."""
_RUNS = 20
_ALL = 1 << 30


@dataclass(frozen=True)
class Attention:
    """Microseconds of one layer's attention for one new token.

    Attributes:
        dense: time if attention reads all tokens.
        sparse: time if attention chooses and reads few tokens.
    """

    dense: float
    sparse: float


def measure(provider: Provider, dims: ModelDims, context: int, kept: int, repeats: int = 5) -> Attention:
    """Measures attention after `context` tokens in the cache; sparse attention reads `kept` of them.

    `kept` includes the sinks and the newest page. The provider's kernels run if it has any, captured if it can capture;
    otherwise function bodies run.
    """
    few = max((kept - SINKS - PAGE_SIZE) // PAGE_SIZE, 1)
    return Attention(*(_us(provider, dims, context, pages, repeats) for pages in (_ALL, few)))


def _us(provider: Provider, dims: ModelDims, context: int, pages: int, repeats: int) -> float:
    capacity = KvLayout().capacity_for(context + 1)
    chooses = pages != _ALL or provider.native
    kv_density = min(100, -(-100 * pages * PAGE_SIZE // context)) / 100
    options = provider.options()
    capture = provider.native and provider.can_capture
    session = provider._session(
        _model(dims, provider.floats, capacity, kv_density if chooses else None).SerializeToString(),
        options,
        capture=capture,
    )
    places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    on_host = {node.name for node, place in places if place.name.lower().startswith("cpu")} if not capture else set()
    binding, random = session.io_binding(), np.random.default_rng(0)
    memory = None if provider.gpu is None else provider.memory()
    kept_alive = []

    def value(array: np.ndarray, name: str) -> ort.OrtValue:
        kept_alive.append(array)
        return ort.OrtValue.ortvalue_from_numpy(array) if memory is None or name in on_host else memory.place(array)

    shape = (1, dims.num_kv_heads, capacity, dims.head_dim)
    keys = random.standard_normal(shape).astype(provider.floats)
    codes = random.integers(0, 256, (*shape[:3], dims.head_dim // 2), np.uint8)
    page = np.repeat([-3.0, 0.4], PAGE_SIZE).astype(provider.floats)  # minima, then steps
    ranges = np.tile(page, capacity * dims.num_kv_heads // PAGE_SIZE).reshape(*shape[:3], 2)
    angles = np.arange(capacity)[:, None] * 10000.0 ** (-np.arange(dims.head_dim // 2) / (dims.head_dim // 2))
    qkv = random.standard_normal((1, 1, (dims.num_heads + 2 * dims.num_kv_heads) * dims.head_dim))
    small = {
        "qkv": qkv.astype(np.float32),
        "past_length": np.array([context]),
        "kv_pages": np.array([pages]),
        "total_length": np.array([context + 1], np.int32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    for node in session.get_inputs():
        if node.name in small:
            binding.bind_ortvalue_input(node.name, value(small[node.name], node.name))
    for layer in range(LAYERS):
        for part, array in {"key": keys, "value": keys, "key_codes": codes, "key_range": ranges}.items():
            buffer = value(array.copy(), "")
            binding.bind_ortvalue_input(f"past_{part}.{layer}", buffer)
            binding.bind_ortvalue_output(f"present_{part}.{layer}", buffer)
        y = value(np.zeros((1, 1, dims.num_heads * dims.head_dim), np.float32), "")
        binding.bind_ortvalue_output(f"y.{layer}", y)
    wait, best = Wait(provider), float("inf")
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(_RUNS if repeat else 3):
            session.run_with_iobinding(binding)
        wait()
        if repeat:
            best = min(best, (time.perf_counter() - start) / _RUNS)
    return best / LAYERS * 1e6


def _model(dims: ModelDims, floats: str, capacity: int, kv_density: float | None) -> ModelProto:
    """A model of LAYERS SparseAttention nodes, each with its own cache of type `floats`.

    The nodes can gather the share `kv_density` of the tokens. If it is None, they get no counts and read all tokens.
    """
    shape = attention_shape(dims.num_heads, dims.num_kv_heads, dims.head_dim)
    half, byte, info = (
        helper.np_dtype_to_tensor_dtype(np.dtype(floats)),
        TensorProto.UINT8,
        helper.make_tensor_value_info,
    )
    rows = [1, dims.num_kv_heads, capacity]
    parts = {
        "key": (half, [*rows, dims.head_dim]),
        "value": (half, [*rows, dims.head_dim]),
        "key_codes": (byte, [*rows, dims.head_dim // 2]),
        "key_range": (half, [*rows, 2]),
    }
    table = (TensorProto.FLOAT, [capacity, dims.head_dim // 2])
    inputs = {
        "qkv": (TensorProto.FLOAT, [1, 1, (dims.num_heads + 2 * dims.num_kv_heads) * dims.head_dim]),
        "past_length": (TensorProto.INT64, [1]),
        "kv_pages": (TensorProto.INT64, [1]),
        "total_length": (TensorProto.INT32, [1]),
        "cos": table,
        "sin": table,
    }
    attributes = shape.attributes
    if kv_density is None:
        del inputs["kv_pages"]
    else:
        attributes |= {GATHER_CAPACITY: gather_capacity(shape.row_pairs, shape.kv_heads, kv_density, KvLayout())}
    outputs: dict[str, Any] = {}
    nodes = []
    for layer in range(LAYERS):
        inputs |= {f"past_{part}.{layer}": kind for part, kind in parts.items()}
        outputs |= {f"present_{part}.{layer}": kind for part, kind in parts.items()}
        outputs[f"y.{layer}"] = (TensorProto.FLOAT, [1, 1, dims.num_heads * dims.head_dim])
        nodes.append(attention_node(layer, attributes, "total_length"))
    graph = helper.make_graph(
        nodes,
        "attention",
        [info(name, *kind) for name, kind in inputs.items()],
        [info(name, *kind) for name, kind in outputs.items()],
        [] if kv_density is not None else [helper.make_tensor("kv_pages", TensorProto.INT64, [0], [])],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return helper.make_model(
        graph, opset_imports=opsets, functions=[sparse_attention(shape, floats=half)], ir_version=IR_VERSION
    )
