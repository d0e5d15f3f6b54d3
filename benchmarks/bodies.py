"""What function bodies cost on WebGPU, counted where there is no GPU: dispatches and bytes of one layer's decode step.

    python benchmarks/bodies.py                     # every bit-width, at contexts of 512 and 16384
    python benchmarks/bodies.py --model smollm2-135m --contexts 4096 --nodes

A layer is what a graph of two layers has more than one of one layer, of random weights in a model's sizes. Nodes and
shapes are those that ONNX Runtime's profile of a strict session tells; how many dispatches a node takes, and what it
reads, is read off ONNX Runtime's sources (1.30 to 1.32):

- views (Reshape, Unsqueeze, …) take none; GroupQueryAttention takes 3 at one token and reads keys and values once;
- MatMulNBits takes 2 where it makes codes of its input (float32, accuracy level 4, K a multiple of 128, N of 16);
- TopK of n > 2048 sorts in memory: one dispatch for each of log2(n) (log2(n) + 1) / 2 steps, and two more;
- every other node takes 1, reads its inputs and writes its outputs, Gather only the rows that it copies.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")  # before ONNX Runtime starts

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime_tests"))
from random_decoder import RandomDecoder, describe

from sol_rt import providers

SIZES = {
    "smollm2-135m": {"hidden_size": 576, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "intermediate_size": 1536},
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "num_heads": 12,
        "num_kv_heads": 2,
        "head_dim": 128,
        "intermediate_size": 8960,
    },
}
CHOICES = {"dense": (0, 0), "choosing tokens": (1, 0), "pruning channels": (0, 1)}
"""Whether the session chooses tokens, and channels."""
_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Shape", "Identity", "MemcpyFromHost"}
_ITEM_BYTES = {"float": 4, "float16": 2, "uint8": 1, "int64": 8, "int32": 4, "bool": 1}
_TYPES = {f"tensor({name})": np.dtype(name) for name in ("float16", "uint8", "int64", "int32")}
_DIMS = ("choosing_layers", "pruning_layers")


class Cost(defaultdict[str, list[int]]):
    """(dispatches, bytes) by operator."""

    def __init__(self) -> None:
        super().__init__(lambda: [0, 0])

    def total(self) -> tuple[int, int]:
        return sum(cost[0] for cost in self.values()), sum(cost[1] for cost in self.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="smollm2-135m", help="whose sizes")
    parser.add_argument("--bits", default="4,6,8", help="bit-widths")
    parser.add_argument("--contexts", default="512,16384", help="tokens in the cache")
    parser.add_argument("--nodes", action="store_true", help="tell the costs of every operator")
    args = parser.parse_args()
    print(f"| {args.model}, a layer at decode | bits | context | dispatches | MB |\n|---|--:|--:|--:|--:|")
    for name, choices in CHOICES.items():
        for bits in map(int, args.bits.split(",")) if name == "dense" else [4]:
            for context in map(int, args.contexts.split(",")):
                layer = _layer(args.model, bits, context, choices)
                dispatches, size = layer.total()
                print(f"| {name} | {bits} | {context} | {dispatches} | {size / 1e6:.2f} |", flush=True)
                if args.nodes:
                    for op, (count, part) in sorted(layer.items(), key=lambda item: -item[1][1]):
                        print(f"|   {op} | | | {count} | {part / 1e6:.3f} |")


def _layer(model: str, bits: int, context: int, choices: tuple[int, int]) -> Cost:
    one, two = (_step(model, layers, bits, context, choices) for layers in (1, 2))
    layer = Cost()
    for op in two:
        layer[op] = [two[op][i] - one[op][i] for i in range(2)]
    return layer


def _step(model: str, layers: int, bits: int, context: int, choices: tuple[int, int]) -> Cost:
    """A decode step of a graph of so many layers behind `context` tokens."""
    sizes: dict[str, Any] = {**SIZES[model], "rotary_dim": SIZES[model]["head_dim"], "num_layers": layers}
    decoder = replace(describe("llama"), vocab_size=96, max_context=context + 64, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        graph = RandomDecoder.write(decoder, Path(folder)).write_graph(Path(folder), 100, bits)
        provider = providers.choose("webgpu", native_ops=False)
        options = provider.options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        if bits == 8:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        for dim, chosen in zip(_DIMS, choices, strict=True):
            options.add_free_dimension_override_by_name(dim, layers * chosen)
        session = provider.session(graph, options)
        feed = {}
        for node in session.get_inputs():
            shape = [{"S": 1, "C": context + 64}.get(dim, dim) for dim in node.shape]
            feed[node.name] = np.ones(shape, _TYPES[node.type])
        feed["past_length"][:] = context
        if "total_length" in feed:
            feed["total_length"][:] = context + 1
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    cost = Cost()
    for event in events:
        if event["cat"] == "Node" and "op_name" in event["args"]:
            op = event["args"]["op_name"]
            dispatches, size = _node(op, event["args"], bits, context + 1)
            cost[op][0] += dispatches
            cost[op][1] += size
    return cost


def _node(op: str, event: dict[str, Any], bits: int, tokens: int) -> tuple[int, int]:
    """(dispatches, bytes) of a node, from the types and shapes that its profile event tells."""
    inputs, outputs = (
        [next(iter(tensor.items())) for tensor in event[f"{side}_type_shape"]] for side in ("input", "output")
    )
    read, written = (sum(_ITEM_BYTES[kind] * math.prod(shape) for kind, shape in side) for side in (inputs, outputs))
    if op in _VIEWS or written == 0:
        return 0, 0
    if op == "GroupQueryAttention":
        kind, (_, heads, _, width) = next(tensor for tensor in inputs if len(tensor[1]) == 4)
        return 3, 2 * heads * tokens * width * _ITEM_BYTES[kind]
    if op == "MatMulNBits":
        rows, _, packed = inputs[1][1]
        codes = inputs[0][1][-1] % 128 == 0 and rows % 16 == 0 and not (bits == 8 and packed == 16)
        return 1 + codes, read + written
    if op == "TopK" and inputs[0][1][-1] > 2048:
        steps = math.ceil(math.log2(inputs[0][1][-1]))
        return 2 + steps * (steps + 1) // 2, read + written + steps * (steps + 1) * 8 * 2**steps
    if op == "Gather":
        return 1, 2 * written
    if op in ("ScatterND", "MemcpyToHost"):  # in place; a copy that waits for everything before it
        return 1, 2 * sum(_ITEM_BYTES[kind] * math.prod(shape) for kind, shape in inputs[-1:])
    return 1, read + written


if __name__ == "__main__":
    main()
