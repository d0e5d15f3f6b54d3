"""Measures the time of the native SparseAttention kernel, at decode and at prefill.

    python benchmarks operators.attention
    python benchmarks operators.attention --heads 12 --kv-heads 2 --head-dim 128 --layers 28 --contexts 512,4096

Prints two Markdown tables: decode steps by context and KV density (microseconds per layer, GB/s), and prefills by
prompt length (milliseconds per layer, GFLOP/s). The graph has `--layers` attention nodes, each with its own cache,
bound in place. A large array is read before every decode step, as a model reads its weights between two steps, so keys
and values come from memory. Times are the minimum over repetitions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from sol_rt.bundle.config import PAGE_SIZE, KvLayout
from sol_rt.export.graphs.functions.attention_shape import AttentionShape
from sol_rt.ops import library_path

import onnxruntime as ort

EVICTED_BYTES = 96 << 20
SINKS = 4
FLOAT, HALF, BYTE, INTEGER = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64
CACHE = {"key": HALF, "value": HALF, "key_codes": BYTE, "key_range": HALF}


def attention_node(layer: int, attributes: Mapping[str, Any], *more: str) -> NodeProto:
    """The SparseAttention node of a layer; `more` inputs come last.

    The layer's cache is past_PART.LAYER and present_PART.LAYER, for each PART of CACHE.
    """
    past, present = ([f"{side}_{part}.{layer}" for part in CACHE] for side in ("past", "present"))
    return helper.make_node(
        "SparseAttention",
        ["qkv", *past, "past_length", "kv_pages", "cos", "sin", *more],
        [f"y.{layer}", *present],
        domain="sol",
        **attributes,
    )


def attention_shape(heads: int, kv_heads: int, head_dim: int) -> AttentionShape:
    """The shape of attention whose rotary embedding covers the whole head."""
    return AttentionShape(heads, kv_heads, head_dim, head_dim, SINKS, head_dim**-0.5, KvLayout().capacity_step)


def build(args: argparse.Namespace) -> ModelProto:
    """A model of `layers` SparseAttention nodes that share qkv, lengths and tables."""
    ranks = {
        "qkv": (FLOAT, 3),
        "past_length": (INTEGER, 1),
        "kv_pages": (INTEGER, 1),
        "cos": (FLOAT, 2),
        "sin": (FLOAT, 2),
    }
    nodes = []
    outputs: dict[str, tuple[int, int]] = {}
    for layer in range(args.layers):
        past = [f"past_{name}.{layer}" for name in CACHE]
        present = [f"present_{name}.{layer}" for name in CACHE]
        kinds = [(kind, 4) for kind in CACHE.values()]
        ranks |= dict(zip(past, kinds, strict=True))
        outputs |= {f"y.{layer}": (FLOAT, 3)} | dict(zip(present, kinds, strict=True))
        nodes.append(attention_node(layer, attention_shape(args.heads, args.kv_heads, args.head_dim).attributes))
    inputs, results = (
        [
            helper.make_tensor_value_info(name, kind, [f"{name}_{i}" for i in range(rank)])
            for name, (kind, rank) in ports.items()
        ]
        for ports in (ranks, outputs)
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("sol", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "attention", inputs, results), opset_imports=opsets, ir_version=11
    )


class Layers:
    """A session in which every layer's cache is bound as input and as output."""

    def __init__(self, args: argparse.Namespace, capacity: int, longest: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = args.threads
        options.register_custom_ops_library(str(library_path()))
        self.session = ort.InferenceSession(
            build(args).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.binding = self.session.io_binding()
        self.layers = args.layers
        rng = np.random.default_rng(0)
        cache = rng.standard_normal((1, args.kv_heads, capacity, args.head_dim)).astype(np.float16)
        codes = rng.integers(0, 256, (*cache.shape[:3], args.head_dim // 2), np.uint8)
        minima, steps = np.full(PAGE_SIZE, -3.0), np.full(PAGE_SIZE, 0.4)
        page = np.concatenate([minima, steps]).astype(np.float16)
        ranges = np.tile(page, capacity * args.kv_heads // PAGE_SIZE).reshape(*cache.shape[:3], 2)
        self.arrays: list[np.ndarray] = []
        self.weights = np.ones(EVICTED_BYTES // 4, np.float32)
        for layer in range(args.layers):
            for name, array in zip(CACHE, (cache, cache, codes, ranges), strict=True):
                value = self.keep(array.copy())
                self.binding.bind_ortvalue_input(f"past_{name}.{layer}", value)
                self.binding.bind_ortvalue_output(f"present_{name}.{layer}", value)
        angle = np.arange(capacity)[:, None] * 10000.0 ** (-np.arange(args.head_dim // 2) / (args.head_dim // 2))
        self.binding.bind_ortvalue_input("cos", self.keep(np.cos(angle).astype(np.float32)))
        self.binding.bind_ortvalue_input("sin", self.keep(np.sin(angle).astype(np.float32)))
        width = (args.heads + 2 * args.kv_heads) * args.head_dim
        self.qkv = rng.standard_normal((1, longest, width)).astype(np.float32)
        self.heads_width = args.heads * args.head_dim

    def keep(self, array: np.ndarray) -> ort.OrtValue:
        self.arrays.append(array)  # an OrtValue borrows its array's memory
        return ort.OrtValue.ortvalue_from_numpy(array)

    def seconds(self, past: int, tokens: int, pages: int, repetitions: int) -> float:
        """Shortest time of one layer over the repetitions, in seconds."""
        self.binding.bind_ortvalue_input("qkv", self.keep(self.qkv[:, :tokens].copy()))
        self.binding.bind_ortvalue_input("past_length", self.keep(np.array([past])))
        self.binding.bind_ortvalue_input("kv_pages", self.keep(np.array([pages])))
        y = self.keep(np.empty((1, tokens, self.heads_width), np.float32))
        for layer in range(self.layers):
            self.binding.bind_ortvalue_output(f"y.{layer}", y)
        best = float("inf")
        for _ in range(repetitions):
            if tokens == 1:
                self.weights.sum()
            start = time.perf_counter()
            self.session.run_with_iobinding(self.binding)
            best = min(best, time.perf_counter() - start)
        return best / self.layers


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def shares(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--contexts", type=numbers, default=[64, 256, 512, 1024, 2048, 4096, 8000])
    parser.add_argument(
        "--kv-densities", type=shares, default=[1.0, 0.5, 0.25, 0.1], help="shares of the old pages read"
    )
    parser.add_argument("--prompts", type=numbers, default=[16, 128, 512, 2048])
    args = parser.parse_args()
    capacity = -(-(max(args.contexts + args.prompts) + 32) // PAGE_SIZE) * PAGE_SIZE
    token_bytes = 4 * args.kv_heads * args.head_dim
    page_bytes = PAGE_SIZE * args.kv_heads * (args.head_dim // 2 + 4)

    layers = Layers(args, capacity, max([1, *args.prompts]))
    print("| decode, context | KV density | us a layer | GB/s read |\n|---:|---:|---:|---:|")
    for context in args.contexts:
        old = -(-(context + 1) // PAGE_SIZE) - 1
        for kv_density in args.kv_densities:
            pages = -(-old * round(100 * kv_density) // 100)
            seconds = layers.seconds(context, 1, pages, args.repetitions)
            sparse = pages < old
            read = token_bytes * min(context + 1, PAGE_SIZE * (pages + 1) + 4) + (page_bytes * old if sparse else 0)
            print(f"| {context} | {kv_density:g} | {seconds * 1e6:.2f} | {read / seconds / 1e9:.1f} |", flush=True)
    print("\n| prefill, tokens | after | ms a layer | GFLOP/s |\n|---:|---:|---:|---:|")
    for tokens in args.prompts:
        for past in sorted({0, max(args.contexts) - tokens}):
            if past < 0:
                continue
            seconds = layers.seconds(past, tokens, 0, max(3, args.repetitions // 10))
            attended = tokens * past + tokens * (tokens + 1) / 2
            flops = 4 * args.heads * args.head_dim * attended
            print(f"| {tokens} | {past} | {seconds * 1e3:.3f} | {flops / seconds / 1e9:.0f} |", flush=True)


if __name__ == "__main__":
    main()
