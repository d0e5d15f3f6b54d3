"""Writes sol_rt/probe.onnx and sol_rt/probe_native.onnx: tiny models that say whether a provider, and its native
operators, really compute.

`python -m sol_rt.export.probe_graph` from the repository root after a change here; a test compares the files with this
source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, BLOCK, ROWS = 64, 32, 8


def build() -> onnx.ModelProto:
    """ids int64 [1, S] -> probabilities float [1, S, 64]: a lookup, a norm, a 4-bit product and a softmax."""
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


def build_native() -> onnx.ModelProto:
    """The same inputs and outputs by native operators, with 8-bit weights."""
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


def _model(nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], domain: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "S"])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, "S", SIZE])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="sol_rt")


def main() -> None:
    """Writes the files."""
    for name, model in (("probe", build()), ("probe_native", build_native())):
        Path(f"sol_rt/{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
