"""Main memory in the place of a GPU's, for the host side of GPUs where there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sol_rt.engine.gpu.device_memory import DeviceMemory, Mirror, PackedMirror

import onnxruntime as ort


def cpu_session(model: bytes) -> ort.InferenceSession:
    """A session on the CPU, without native operators."""
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


class MainMemory(DeviceMemory):
    """Tensors that the CPU provider's sessions are bound to."""

    def __init__(self, free_bytes: int | None = None, floats: str = "float16") -> None:
        super().__init__("provider cpu: main memory", cpu_session, lambda: free_bytes, floats)

    def _allocate(self, shape: Sequence[int], dtype: Any) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype)

    def read(self, values: Sequence[ort.OrtValue], into: Sequence[ort.OrtValue]) -> None:
        for value, target in zip(values, into, strict=True):
            np.copyto(target.numpy(), value.numpy())

    def mirror(self, arrays: Mapping[str, np.ndarray], apart: Collection[str] = ()) -> Mirror:
        return PackedMirror(self, arrays, apart, _block)

    def bind_four_bits(
        self, binding: ort.IOBinding, name: str, packed: ort.OrtValue, onnx_type: int, shape: Sequence[int]
    ) -> None:
        binding.bind_input(name, "cpu", 0, onnx_type, shape, packed.data_ptr())


def _block(size_bytes: int) -> Callable[[Sequence[int], Any, int], ort.OrtValue]:
    content = np.zeros(size_bytes, np.uint8)

    def tensor(shape: Sequence[int], dtype: Any, offset: int) -> ort.OrtValue:
        count = int(np.prod(shape))
        return ort.OrtValue.ortvalue_from_numpy(np.frombuffer(content, dtype, count, offset).reshape(shape))

    return tensor
