"""Writes sol_rt/probe.onnx: the tiny model that says whether a provider really computes.

`python -m sol_rt.export.probe_graph` from the repository root after a change here; a test compares the file with this
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
    tensors = {
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
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "S"])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, "S", SIZE])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="sol_rt")


def main() -> None:
    """Writes the file."""
    Path("sol_rt/probe.onnx").write_bytes(build().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
