"""Measures the native operators alone, at the shapes of a 135M model: microseconds and GB/s of weights per operator.

    python benchmarks operators.ops [--bits 4] [--threads 2] [--seconds 0.5] [--tokens 1] [--layers 30]
    python benchmarks operators.ops --compare [--threads 2] [--seconds 20]
    python benchmarks operators.ops --libraries before.so after.so --bits 8 --layers 1 --threads 1

Prints one line per operator. Each operator exists in as many copies as a model has layers, so that weights come from
memory as in a decode step; with `--layers 1` they stay in a core's cache, and what is left is arithmetic. Times are the
best over the repetitions, because other work on the machine can only slow a repetition down.

`--compare` measures the first MLP matrix of a 135M and a 1.5B model, which bundles read at 3 bits, at 3 bits beside 4
bits, and whole MLPs in the same way, in turn in one process. Its times are medians, its ratios those of neighbouring
runs with their quartiles. `--libraries` compares two builds of the operators; above 1 the second is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from report import quartiles
from sol_rt.ops import library_path

import onnxruntime as ort

HIDDEN, INNER, VOCAB, QKV, LAYERS = 576, 1536, 49152, 960, 30
MODELS = {"135M": (HIDDEN, INNER, LAYERS), "1.5B": (1536, 8960, 5)}  # hidden size, intermediate size, layers measured


Node = tuple[onnx.NodeProto, list[onnx.TensorProto], float]  # node, its weights, and the bytes that it reads


def matrix(
    rng: np.random.Generator, prefix: str, k: int, n: int, bits: int, channel_major: bool
) -> dict[str, onnx.TensorProto]:
    """Random nested tensors of a K x N matrix by part name."""

    def codes(name: str, shape: list[int]) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(rng.integers(0, 256, shape, dtype=np.uint8), prefix + name)

    blocks = k // 32
    if bits == 3:
        scale = onnx.numpy_helper.from_array(rng.uniform(1e-5, 1e-4, n).astype(np.float16), prefix + "output_scale")
        tables = onnx.numpy_helper.from_array(rng.integers(-127, 128, (4, 8), dtype=np.int8), prefix + "codebook")
        shapes = {"low": [k, n // 4], "high": [k, n // 8], "block_scale": [blocks, n]}
        return {name: codes(name, shape) for name, shape in shapes.items()} | {
            "output_scale": scale,
            "codebook": tables,
        }
    parts = {
        "base": codes("base", [blocks, n, 16]),
        "scale": onnx.numpy_helper.from_array(
            rng.uniform(0.001, 0.01, (blocks, n)).astype(np.float16), prefix + "scale"
        ),
        "zero": codes("zero", [blocks, n]),
    }
    if channel_major:
        raw = onnx.numpy_helper.to_array(parts["base"]).tobytes()
        parts["base"] = helper.make_tensor(prefix + "base", TensorProto.UINT4, [k, n], raw, raw=True)
    if bits >= 6:
        parts["plane1"] = codes("plane1", [blocks, n, 8])
    if bits == 8:
        parts["plane2"] = codes("plane2", [blocks, n, 8])
    return parts


def matmul(rng: np.random.Generator, i: int, k: int, n: int, bits: int) -> Node:
    """A node, its weights and the bytes it reads."""
    tensors = list(matrix(rng, f"w{i}.", k, n, bits, False).values())
    node = helper.make_node(
        "NestedMatMul", ["x", *[t.name for t in tensors]], [f"y{i}"], domain="sol", K=k, N=n, bits=bits
    )
    return node, tensors, k * n * bits / 8 + k / 32 * n * 3


def pruned_matmul(rng: np.random.Generator, i: int, k: int, n: int, bits: int, active: float = 1) -> Node:
    tensors = [onnx.numpy_helper.from_array(np.array([round(active * k)]), f"active{i}")]
    tensors += matrix(rng, f"w{i}.", k, n, bits, True).values()
    node = helper.make_node(
        "PrunedMatMul", ["x", *[t.name for t in tensors]], [f"y{i}"], domain="sol", K=k, N=n, bits=bits
    )
    return node, tensors, k * n / 8 * weight_bits(bits, active)


def weight_bits(bits: int, active: float) -> float:
    """Bits that a product reads of a weight."""
    return 3 * active + 8 / 32 if bits == 3 else 4 * active + (bits - 4) + 24 / 32


def mlp(
    rng: np.random.Generator,
    i: int,
    bits: int,
    active_up: float,
    active_down: float,
    hidden: int = HIDDEN,
    inner: int = INNER,
) -> Node:
    up = matrix(rng, f"u{i}.", hidden, 2 * inner, bits, True)
    down = matrix(rng, f"d{i}.", inner, hidden, bits, True)
    counts = {f"in{i}": round(active_up * hidden), f"mid{i}": round(active_down * inner)}
    tensors = [onnx.numpy_helper.from_array(np.array([count]), name) for name, count in counts.items()]
    tensors += [t for m in (up, down) for part, t in m.items() if not part.startswith("plane")]
    tensors += [m[part] for part in ("plane1", "plane2") if part in up for m in (up, down)]
    attributes: dict[str, Any] = {
        "K": hidden,
        "I": inner,
        "bits": bits,
        "gated": 1,
        "activation": "silu",
        "has_bias": 0,
    }
    node = helper.make_node("PrunedMLP", ["x", *[t.name for t in tensors]], [f"y{i}"], domain="sol", **attributes)
    return node, tensors, hidden * inner / 8 * (2 * weight_bits(bits, active_up) + weight_bits(bits, active_down))


Bound = tuple[ort.InferenceSession, ort.IOBinding]


def bound(made: list[Node], k: int, args: argparse.Namespace, library: Path | None = None) -> Bound:
    """A session of the nodes, and their input and outputs. The operators are the package's own, or `library`'s."""
    graph = helper.make_graph(
        [node for node, _, _ in made],
        "ops",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", k])],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node, _, _ in made],
        [t for _, tensors, _ in made for t in tensors],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("sol", 1)]
    options = ort.SessionOptions()
    options.use_per_session_threads = False  # threads of another session would spin beside those that work
    options.register_custom_ops_library(str(library or library_path()))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", np.random.default_rng(1).normal(size=(args.tokens, k)).astype(np.float32))
    for node, _, _ in made:
        binding.bind_output(node.output[0])
    return session, binding


def measure(name: str, made: list[Node], k: int, args: argparse.Namespace) -> float:
    session, binding = bound(made, k, args)
    best, until = float("inf"), time.perf_counter() + args.seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        best = min(best, time.perf_counter() - start)
    each = best / len(made)
    print(
        f"{name:28} {each * 1e6:9.1f} us {made[0][2] / each / 1e9:7.1f} GB/s {each * 1e6 / args.tokens:9.1f} us/token",
        flush=True,
    )
    return best


def in_turn(opened: tuple[Bound, Bound], seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of the runs of two sessions, which take turns after a warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while len(times[1]) < 6 or time.perf_counter() < until:
        for index in (0, 1) if len(times[1]) % 2 else (1, 0):
            session, binding = opened[index]
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            times[index].append(time.perf_counter() - start)
    return times[0][2:], times[1][2:]


def compare(args: argparse.Namespace) -> None:
    """First matrices of MLPs, and MLPs, at 3 bits beside 4 bits."""
    rng = np.random.default_rng(0)
    for model, (hidden, inner, layers) in MODELS.items():
        layers = min(layers, args.layers)
        for part, active in product(("first matrix", "MLP"), (1.0, 0.75, 0.5)):
            three, four = (
                [
                    mlp(rng, i, bits, active, active, hidden, inner)
                    if part == "MLP"
                    else pruned_matmul(rng, i, hidden, 2 * inner, bits, active)
                    for i in range(layers)
                ]
                for bits in (3, 4)
            )
            times = in_turn((bound(three, hidden, args), bound(four, hidden, args)), args.seconds)
            ratios = [a / b for a, b in zip(*times, strict=True)]
            us = [statistics.median(each) / layers * 1e6 for each in times]
            size = [three[0][2], four[0][2]]
            speeds = ", ".join(f"{us[i]:.0f} us {size[i] / us[i] / 1e3:.1f} GB/s" for i in (0, 1))
            share = size[0] / size[1]
            print(
                f"{model} {part}, {active:.0%} active: 3 and 4 bits {speeds}; time {quartiles(ratios)}, "
                f"bytes {share:.3f}, time over bytes {statistics.median(ratios) / share:.3f}",
                flush=True,
            )


def compare_libraries(args: argparse.Namespace) -> None:
    """Two builds of the operators."""
    rng = np.random.default_rng(0)
    layers = range(args.layers)
    operators: dict[str, tuple[list[Node], int]] = {}
    if args.bits == 3:
        for (model, (hidden, inner, count)), active in product(MODELS.items(), (1.0, 0.75, 0.5)):
            made = [pruned_matmul(rng, i, hidden, 2 * inner, 3, active) for i in range(min(count, args.layers))]
            operators[f"{model} first matrix of the MLP, {active:.0%}"] = made, hidden
    else:
        operators |= {
            "qkv": ([pruned_matmul(rng, i, HIDDEN, QKV, args.bits) for i in layers], HIDDEN),
            "mlp": ([mlp(rng, i, args.bits, 1, 1) for i in layers], HIDDEN),
            "mlp, 50%": ([mlp(rng, i, args.bits, 0.5, 0.5) for i in layers], HIDDEN),
            "block-major, 2048 outputs": ([matmul(rng, i, HIDDEN, 2048, args.bits) for i in layers], HIDDEN),
        }
    for name, (made, hidden) in operators.items():
        first, second = (bound(made, hidden, args, library) for library in args.libraries)
        times = in_turn((first, second), args.seconds)
        us = [statistics.median(each) / len(made) * 1e6 for each in times]
        ratios = [a / b for a, b in zip(*times, strict=True)]
        print(f"{name}: {us[0]:.1f} -> {us[1]:.1f} us, ratio {quartiles(ratios)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=4, choices=(3, 4, 6, 8))
    parser.add_argument("--compare", action="store_true", help="matrices of two models at 3 bits beside 4 bits")
    parser.add_argument("--libraries", type=Path, nargs=2, metavar="LIBRARY", help="two builds of the operators")
    parser.add_argument("--layers", type=int, default=LAYERS, help="copies of each operator")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds to spend on each operator")
    args = parser.parse_args()
    ort.set_global_thread_pool_sizes(args.threads, 1)
    if args.compare or args.libraries:
        (compare if args.compare else compare_libraries)(args)
        return
    rng = np.random.default_rng(0)
    bits = args.bits
    total = 0.0
    total += measure("qkv", [pruned_matmul(rng, i, HIDDEN, QKV, bits) for i in range(args.layers)], HIDDEN, args)
    output = [pruned_matmul(rng, i, HIDDEN, HIDDEN, bits) for i in range(args.layers)]
    total += measure("attention output", output, HIDDEN, args)
    total += measure("mlp, all", [mlp(rng, i, bits, 1, 1) for i in range(args.layers)], HIDDEN, args)
    if args.tokens == 1:
        total += measure("head", [matmul(rng, i, HIDDEN, VOCAB, max(bits, 4)) for i in range(2)], HIDDEN, args) / 2
        for active_up, active_down in ((0.83, 0.59), (0.58, 0.34), (0.3, 0.15)):
            name = f"mlp, {active_up:.0%} and {active_down:.0%}"
            measure(name, [mlp(rng, i, bits, active_up, active_down) for i in range(args.layers)], HIDDEN, args)
        for active in (0.8, 0.56):
            measure(
                f"qkv, {active:.0%}",
                [pruned_matmul(rng, i, HIDDEN, QKV, bits, active) for i in range(args.layers)],
                HIDDEN,
                args,
            )
    print(f"matrices of a step: {total * 1e3:.2f} ms, {args.tokens / total:.0f} tokens/s")


if __name__ == "__main__":
    main()
