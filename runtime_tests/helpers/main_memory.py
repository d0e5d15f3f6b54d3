"""Main memory in the place of a GPU's, for the host side of GPUs where there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sol_rt.bundle.weights import ONNX_UINT4
from sol_rt.engine.gpu.device_memory import DeviceMemory, Mirror, PackedMirror
from sol_rt.engine.providers import Provider

import onnxruntime as ort


def cpu_session(model: bytes) -> ort.InferenceSession:
    """A session on the CPU, without native operators."""
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


class MainMemory(DeviceMemory):
    """Tensors that the CPU provider's sessions are bound to."""

    def __init__(
        self,
        free_bytes: int | None = None,
        floats: str = "float16",
        session: Callable[[bytes], ort.InferenceSession] = cpu_session,
    ) -> None:
        super().__init__("provider cpu: main memory", session, lambda: free_bytes, floats)

    def _allocate(self, shape: Sequence[int], dtype: Any) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype)

    def read(self, values: Sequence[ort.OrtValue], into: Sequence[ort.OrtValue]) -> None:
        for value, target in zip(values, into, strict=True):
            np.copyto(target.numpy(), value.numpy())

    def mirror(self, arrays: Mapping[str, np.ndarray], apart: Collection[str] = ()) -> Mirror:
        return PackedMirror(self, arrays, apart, _block)

    def bind_four_bits(self, binding: ort.IOBinding, name: str, packed: ort.OrtValue, shape: Sequence[int]) -> None:
        binding.bind_input(name, "cpu", 0, ONNX_UINT4, shape, packed.data_ptr())


class OnMainMemory(Provider):
    """A GPU's provider whose kernels and memory are the CPU's, which captures what it is asked to."""

    def _session(self, model: Any, options: ort.SessionOptions, **_: Any) -> ort.InferenceSession:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def memory(self) -> MainMemory:
        return MainMemory(session=self._made_there)

    @property
    def can_capture(self) -> bool:
        return True


def _block(size_bytes: int) -> Callable[[Sequence[int], Any, int], ort.OrtValue]:
    content = np.zeros(size_bytes, np.uint8)

    def tensor(shape: Sequence[int], dtype: Any, offset: int) -> ort.OrtValue:
        count = int(np.prod(shape))
        return ort.OrtValue.ortvalue_from_numpy(np.frombuffer(content, dtype, count, offset).reshape(shape))

    return tensor
