"""A bundle's weights in a GPU's memory: one copy for all graphs that read them."""

from __future__ import annotations

from collections.abc import Iterable

from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.gpu.device_memory import DeviceMemory
from sol_rt.engine.gpu.gpu_graphs import Value, repacked

import onnxruntime as ort


class DeviceWeights:
    """Values made of the weights file and kept on the GPU, by the names that graphs give them.

    Args:
        stored: the weights file, mapped.
        memory: of the GPU.
    """

    def __init__(self, stored: SharedWeights, memory: DeviceMemory) -> None:
        self._stored, self._memory = stored, memory
        self._placed: dict[str, ort.OrtValue] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of everything that was placed."""
        return sum(value.tensor_size_in_bytes() for value in self._placed.values())

    def place(self, values: Iterable[Value]) -> None:
        """Places the values that no earlier graph needed. Raises ProviderError if memory is short."""
        missing = [value for value in values if value.name not in self._placed]
        self._memory.require(sum(value.bytes for value in missing), "weights")
        makers: dict[bytes, ort.InferenceSession] = {}
        for value in missing:
            with self._memory.errors():
                self._placed[value.name] = self._make(value, makers)

    def bind(self, binding: ort.IOBinding, values: Iterable[Value]) -> None:
        """Binds values that were placed to the inputs of a graph that name them."""
        for value in values:
            placed = self._placed[value.name]
            if value.dtype == "uint4":
                self._memory.bind_four_bits(binding, value.name, placed, value.shape)
            else:
                binding.bind_ortvalue_input(value.name, placed)

    def _make(self, value: Value, makers: dict[bytes, ort.InferenceSession]) -> ort.OrtValue:
        entry = self._stored.entry(value.weights[0])
        if value.repacked:
            return self._memory.place(repacked(self._stored.raw(value.weights[0]), *entry.shape))
        if value.recipe is None:
            raw = self._stored.raw(value.weights[0])
            return self._memory.place(raw if entry.dtype == "uint4" else raw.view(entry.dtype).reshape(entry.shape))
        if value.recipe not in makers:
            makers[value.recipe] = _on_the_cpu(value.recipe)
        feeds = {str(index): self._stored.value(name) for index, name in enumerate(value.weights)}
        return self._memory.place(makers[value.recipe].run_with_ort_values(None, feeds)[0].numpy())


def _on_the_cpu(model: bytes) -> ort.InferenceSession:
    """A session on the process-wide pool, for what is computed once."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.use_per_session_threads = False
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
