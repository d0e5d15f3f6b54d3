"""Estimates how many dispatches a node takes on WebGPU, and how many bytes it reads and writes.

gpu_limits.py uses it. The rules come from ONNX Runtime's sources (1.30 to 1.32):

- Views (Reshape, Unsqueeze, …) take no dispatch. GroupQueryAttention takes 3 at one token and reads keys and values
  once.
- MatMulNBits takes 2 if it quantizes its input (float32, accuracy level 4, K a multiple of 128, N of 16), else 1.
- TopK of n > 2048 sorts in memory: one dispatch for each of log2(n) (log2(n) + 1) / 2 steps, and two more.
- Every other node takes 1, reads its inputs and writes its outputs. Gather, GatherElements and RotaryEmbedding read
  only as much of the tensor that they look up in as they copy; ScatterND and ScatterElements write in place.
"""

from __future__ import annotations

import math
from typing import Any

_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Shape", "Identity", "MemcpyFromHost"}
_ITEM_BYTES = {"float": 4, "float16": 2, "uint8": 1, "int64": 8, "int32": 4, "bool": 1}


def node_cost(op: str, event: dict[str, Any], bits: int, tokens: int) -> tuple[int, int]:
    """(dispatches, bytes) of a node, from the types and shapes in its profile event."""
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
    if op in ("Gather", "GatherElements", "RotaryEmbedding"):
        return 1, 2 * written
    if op in ("ScatterND", "ScatterElements", "MemcpyToHost"):  # MemcpyToHost waits for all earlier work
        return 1, 2 * sum(_ITEM_BYTES[kind] * math.prod(shape) for kind, shape in inputs[-1:])
    return 1, read + written
