"""Writes sol_rt/engine/probes/*.onnx: tiny models that show whether a provider computes correct numbers.

There is one model for the provider's own operators, one for the products of function bodies, one for the native
operators, and one per KV cache type for attention. Those named `pad` make a cache's tensors on a GPU longer. After a
change here, run `python scripts/probe_graph.py` from the repository root. A test compares the files with this source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sol_rt.engine.probes.attention_probe import FLOATS

SIZE, BLOCK, ROWS = 64, 32, 8
HEADS, KV_HEADS, CAPACITY = 4, 2, 256


def build() -> onnx.ModelProto:
    """Builds ids int64 [1, S] -> probabilities float [1, S, 64]: a lookup, a norm, a 4-bit product and a softmax."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (SIZE, SIZE // BLOCK, BLOCK // 2), dtype=np.uint8)
    tensors: dict[str, np.ndarray] = {
        "embedding": rng.standard_normal((ROWS, SIZE)).astype(np.float32),
        "gain": np.ones(SIZE, np.float32),
        "codes": codes,
        "scales": np.full((SIZE, SIZE // BLOCK), 0.05, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["x"]),
        helper.make_node("RMSNormalization", ["x", "gain"], ["n"], axis=-1, epsilon=1e-5),
        helper.make_node(
            "MatMulNBits",
            ["n", "codes", "scales"],
            ["y"],
            domain="com.microsoft",
            K=SIZE,
            N=SIZE,
            bits=4,
            block_size=BLOCK,
        ),
        helper.make_node("Softmax", ["y"], ["p"], axis=-1),
    ]
    return _model(nodes, tensors, "com.microsoft")


def build_bodies() -> onnx.ModelProto:
    """Builds ids int64 [1, S] -> probabilities float [1, S, 192]: a softmax for each product that function bodies make.

    These are by 2 bits with their zero points left out, by 2 bits with zero points of 0, and by 8 bits.
    """
    rng = np.random.default_rng(1)
    tensors: dict[str, np.ndarray] = {
        "embedding": rng.standard_normal((ROWS, SIZE)).astype(np.float32),
        "gain": np.ones(SIZE, np.float32),
        "plane2.zero": np.zeros((SIZE, 1), np.uint8),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["x"]),
        helper.make_node("RMSNormalization", ["x", "gain"], ["n"], axis=-1, epsilon=1e-5),
    ]
    products = (("plane1", 2, 0.1, []), ("plane2", 2, 0.1, ["plane2.zero"]), ("coded", 8, 0.002, []))
    for name, bits, step, zero_points in products:
        shape = SIZE, SIZE // BLOCK
        tensors[f"{name}.codes"] = rng.integers(0, 256, (*shape, BLOCK * bits // 8), dtype=np.uint8)
        tensors[f"{name}.scales"] = (step * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
        nodes += [
            helper.make_node(
                "MatMulNBits",
                ["n", f"{name}.codes", f"{name}.scales", *zero_points],
                [f"{name}.y"],
                domain="com.microsoft",
                K=SIZE,
                N=SIZE,
                bits=bits,
                block_size=BLOCK,
            ),
            helper.make_node("Softmax", [f"{name}.y"], [f"{name}.p"], axis=-1),
        ]
    nodes.append(helper.make_node("Concat", [f"{name}.p" for name, *_ in products], ["p"], axis=-1))
    return _model(nodes, tensors, "com.microsoft", len(products) * SIZE)


def build_native() -> onnx.ModelProto:
    """Builds a model with the inputs and outputs of `build` from native operators, with 8-bit weights."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {"gain": np.ones(SIZE, np.float32)}
    weights = {}
    for name, outputs in (("embedding", ROWS), ("head", SIZE)):
        shape = SIZE // BLOCK, outputs
        parts: dict[str, np.ndarray] = {
            "base": rng.integers(0, 256, (*shape, BLOCK // 2), dtype=np.uint8),
            "scale": np.full(shape, 0.05, np.float16),
            "zero": np.full(shape, 128, np.uint8),
            "plane1": rng.integers(0, 256, (*shape, BLOCK // 4), dtype=np.uint8),
            "plane2": rng.integers(0, 256, (*shape, BLOCK // 4), dtype=np.uint8),
        }
        weights[name] = [f"{name}.{part}" for part in parts]
        tensors.update(zip(weights[name], parts.values(), strict=True))
    sizes = {"domain": "sol", "K": SIZE, "bits": 8}
    nodes = [
        helper.make_node("NestedGather", ["ids", *weights["embedding"]], ["x"], N=ROWS, **sizes),
        helper.make_node("RMSNormalization", ["x", "gain"], ["n"], axis=-1, epsilon=1e-5),
        helper.make_node("NestedMatMul", ["n", *weights["head"]], ["y"], N=SIZE, **sizes),
        helper.make_node("Softmax", ["y"], ["p"], axis=-1),
    ]
    return _model(nodes, tensors, "sol")


def build_attention(dtype: str) -> onnx.ModelProto:
    """Builds qkv float [1, S, 512] -> y float [1, S, 256]: attention with rotary embedding.

    The cache has the type `dtype`, float16 or float32, and holds `total_length` - S tokens before the step.
    """
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    angles = np.arange(CAPACITY)[:, None] * 10000.0 ** (-np.arange(SIZE // 2) / (SIZE // 2))
    tables = {"cos": np.cos(angles).astype(dtype), "sin": np.sin(angles).astype(dtype), "one": np.ones(1, np.int32)}
    nodes = [
        helper.make_node("Cast", ["qkv"], ["packed"], to=kind),
        helper.make_node("Sub", ["total_length", "one"], ["last"]),
        helper.make_node(
            "GroupQueryAttention",
            ["packed", "", "", "past_key", "past_value", "last", "total_length", "cos", "sin"],
            ["attended", "present_key", "present_value"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
        ),
        helper.make_node("Cast", ["attended"], ["y"], to=TensorProto.FLOAT),
    ]
    info, cache = helper.make_tensor_value_info, (kind, [1, KV_HEADS, CAPACITY, SIZE])
    graph = helper.make_graph(
        nodes,
        "probe",
        [
            info("qkv", TensorProto.FLOAT, [1, "S", (HEADS + 2 * KV_HEADS) * SIZE]),
            info("past_key", *cache),
            info("past_value", *cache),
            info("total_length", TensorProto.INT32, [1]),
        ],
        [
            info("y", TensorProto.FLOAT, [1, "S", HEADS * SIZE]),
            info("present_key", *cache),
            info("present_value", *cache),
        ],
        [numpy_helper.from_array(value, name) for name, value in tables.items()],
    )
    return _complete(graph, "com.microsoft")


def build_pad(dtype: str, rank: int) -> onnx.ModelProto:
    """Builds x of any sizes and pads int64 [2 rank] -> y: x and zeros around it."""
    kind, info = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), helper.make_tensor_value_info
    (x, y) = (info(name, kind, [f"{name}{axis}" for axis in range(rank)]) for name in "xy")
    pads = info("pads", TensorProto.INT64, [2 * rank])
    graph = helper.make_graph([helper.make_node("Pad", ["x", "pads"], ["y"])], "pad", [x, pads], [y])
    return _complete(graph)


def _model(
    nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], domain: str, outputs: int = SIZE
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "S"])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, "S", outputs])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return _complete(graph, domain)


def _complete(graph: onnx.GraphProto, *domains: str) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 23), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="sol_rt")


def models() -> dict[str, onnx.ModelProto]:
    """All models, by name."""
    found = {"probe": build(), "probe_bodies": build_bodies(), "probe_native": build_native()}
    found |= {f"probe_attention_{dtype}": build_attention(dtype) for dtype in FLOATS}
    return found | {f"pad_{dtype}_{rank}": build_pad(dtype, rank) for dtype in FLOATS for rank in (3, 4)}


def main() -> None:
    """Writes all models."""
    for name, model in models().items():
        Path(f"sol_rt/engine/probes/{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
