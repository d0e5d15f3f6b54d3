"""Counts what the function bodies cost on WebGPU, without a GPU: dispatches and bytes of one layer's decode step.

    export PYTHONPATH=runtime_tests               # its helpers build the graphs
    python benchmarks operators.bodies            # 4, 6 and 8 bits at contexts of 512 and 16384
    python benchmarks operators.bodies --model smollm2-135m --contexts 4096 --nodes
    python benchmarks operators.bodies --model phi-3-mini --contexts 4096 --kv-density 0.1

Prints a Markdown table with a row per kind of step, bits and context; `--nodes` adds the cost of every operator. The
program builds graphs of one and of two layers with random weights in a model's sizes; the difference of the two is a
layer's cost. Nodes and shapes come from ONNX Runtime's profile, dispatches and bytes of a node from node_costs.py.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")  # before ONNX Runtime starts

import numpy as np

from helpers.random_decoder import RandomDecoder, describe
from operators.node_costs import node_cost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import PAGE_SIZE, KvLayout
from sol_rt.engine import providers
from sol_rt.engine.gpu.device_graph import device_graph
from sol_rt.engine.signature import CHANNEL_INPUTS, SPARSE_DIMS

SIZES = {
    "smollm2-135m": {"hidden_size": 576, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "intermediate_size": 1536},
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "num_heads": 12,
        "num_kv_heads": 2,
        "head_dim": 128,
        "intermediate_size": 8960,
    },
    "phi-2": {"hidden_size": 2560, "num_heads": 32, "num_kv_heads": 32, "head_dim": 80, "intermediate_size": 10240},
    "phi-3-mini": {"hidden_size": 3072, "num_heads": 32, "num_kv_heads": 32, "head_dim": 96, "intermediate_size": 8192},
}
"""Sizes of known models; each is built as a Llama."""
_TYPES = {f"tensor({name})": np.dtype(name) for name in ("float16", "uint8", "int64", "int32")} | {
    "tensor(float)": np.dtype(np.float32)
}


class Cost(defaultdict[str, list[int]]):
    """[dispatches, bytes] by operator."""

    def __init__(self) -> None:
        super().__init__(lambda: [0, 0])

    def total(self) -> tuple[int, int]:
        return sum(cost[0] for cost in self.values()), sum(cost[1] for cost in self.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="smollm2-135m", help="model whose sizes are used")
    parser.add_argument("--bits", default="4,6,8", help="weight bits, from 4, 6 and 8")
    parser.add_argument("--contexts", default="512,16384", help="tokens in the cache")
    parser.add_argument(
        "--kv-density", type=float, default=0.1, help="share of the old tokens that the sparse step reads"
    )
    parser.add_argument("--nodes", action="store_true", help="also print the cost of every operator")
    args = parser.parse_args()
    print(f"| {args.model}, a layer at decode | bits | context | dispatches | MB |\n|---|--:|--:|--:|--:|")
    sessions = {
        "dense": (1.0, False),
        f"KV density {args.kv_density:g}": (args.kv_density, False),
        "pruning channels": (1.0, True),
    }
    for name, (kv_density, prunes) in sessions.items():
        for bits in map(int, args.bits.split(",")) if name == "dense" else [4]:
            for context in map(int, args.contexts.split(",")):
                layer = _layer(args.model, bits, context, kv_density, prunes)
                dispatches, size = layer.total()
                print(f"| {name} | {bits} | {context} | {dispatches} | {size / 1e6:.2f} |", flush=True)
                if args.nodes:
                    for op, (count, part) in sorted(layer.items(), key=lambda item: -item[1][1]):
                        print(f"|   {op} | | | {count} | {part / 1e6:.3f} |")


def _layer(model: str, bits: int, context: int, kv_density: float, prunes: bool) -> Cost:
    one, two = (_step(model, layers, bits, context, kv_density, prunes) for layers in (1, 2))
    layer = Cost()
    for op in two:
        layer[op] = [two[op][i] - one[op][i] for i in range(2)]
    return layer


def _step(model: str, layers: int, bits: int, context: int, kv_density: float, prunes: bool) -> Cost:
    """Cost of a decode step of a graph with `layers` layers after `context` tokens, of which `kv_density` is read."""
    sizes: dict[str, Any] = {**SIZES[model], "rotary_dim": SIZES[model]["head_dim"], "num_layers": layers}
    decoder = replace(describe("llama"), vocab_size=96, max_context=context + 64, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        graph = RandomDecoder.write(decoder, Path(folder)).write_graph(Path(folder), 1.0, bits)
        provider = providers.choose("webgpu", native_ops=False)
        options = provider.options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        nothing = np.zeros(0, np.int64)
        constants = {"num_logits": np.ones(1, np.int64)}
        constants |= {} if kv_density < 1.0 else {"kv_pages": nothing}
        constants |= {} if prunes else dict.fromkeys(CHANNEL_INPUTS, nothing)
        made = device_graph(
            graph.read_bytes(),
            inline=True,
            bits=bits,
            kv=KvLayout(),
            constants=constants,
            dims=dict.fromkeys(SPARSE_DIMS, layers),
            one_token=True,
            kv_density=kv_density,
        )
        session = provider.session(graph, options, made.model)
        feed, capacity = {}, KvLayout().capacity_for(context + 1)
        for node in session.get_inputs():
            shape = [capacity if dim == "C" else dim for dim in node.shape]
            feed[node.name] = np.ones(shape, _TYPES[node.type])
        feed["past_length"][:] = context
        feed["total_length"][:] = context + 1
        if kv_density < 1.0:
            feed["kv_pages"][:] = Action(kv_density, 1.0, bits).pages(context, PAGE_SIZE)
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    cost = Cost()
    for event in events:
        if event["cat"] == "Node" and "op_name" in event["args"]:
            op = event["args"]["op_name"]
            dispatches, size = node_cost(op, event["args"], bits, context + 1)
            cost[op][0] += dispatches
            cost[op][1] += size
    return cost


if __name__ == "__main__":
    main()
