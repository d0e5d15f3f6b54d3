"""The KV cache in a GPU's memory. All graphs append to it in place."""

from __future__ import annotations

from collections.abc import Iterator

from sol_rt.bundle.cache_layout import CacheLayout
from sol_rt.engine.gpu.device_memory import DeviceMemory

import onnxruntime as ort


class DeviceCache:
    """The tensors of a cache on a GPU. They hold every token, also in layers with a window.

    Args:
        layout: the tensors.
        memory: of the GPU.
        codes: whether anything reads the key codes. Only kernels do; without them their content is undefined.

    Attributes:
        layout: as given.
        capacity: tokens that the tensors have room for.
    """

    def __init__(self, layout: CacheLayout, memory: DeviceMemory, *, codes: bool = True) -> None:
        self.layout, self._memory, self._codes = layout, memory, codes
        self.capacity = 0
        self._values: dict[str, ort.OrtValue] = {}

    def bindings(self) -> Iterator[tuple[str, str, ort.OrtValue]]:
        """Names of a graph input and output, and the tensor to bind to both. Valid until the capacity changes."""
        for tensor in self.layout.tensors():
            yield tensor.past, tensor.present, self._values[tensor.past]

    def scratch_bindings(self) -> Iterator[tuple[str, str, ort.OrtValue]]:
        """Like `bindings`, but with tensors of zeros that all layers share, for runs whose results nobody uses."""
        values: dict[str, ort.OrtValue] = {}
        for tensor in self.layout.tensors():
            part = "".join(c for c in tensor.past if not c.isdigit())
            if part not in values:
                values[part] = self._memory.zeros(self.layout.shape(tensor, self.capacity), tensor.dtype)
            yield tensor.past, tensor.present, values[part]

    def resize(self, capacity: int, used: int) -> None:
        """Moves the first `used` tokens into tensors of another capacity.

        One tensor is moved at a time, so that little memory is held twice. If memory is short, this raises
        ProviderError; some tensors have then grown and some have not.
        """
        added = self.layout.bytes_at(capacity) - self.layout.bytes_at(self.capacity)
        self._memory.require(added, f"a KV cache of {capacity} tokens")
        for tensor in self.layout.tensors():
            shape = self.layout.shape(tensor, capacity)
            if tensor.dtype == "uint8" and not self._codes:
                self._values.pop(tensor.past, None)
                self._values[tensor.past] = self._memory.empty(shape, tensor.dtype)
            elif used:
                self._values[tensor.past] = self._memory.grown(self._values[tensor.past], shape, tensor.dtype)
            else:
                self._values.pop(tensor.past, None)
                self._values[tensor.past] = self._memory.zeros(shape, tensor.dtype)
        self.capacity = capacity

    def free(self) -> None:
        """Frees every tensor. The capacity is then 0."""
        self._values.clear()
        self.capacity = 0

    def wipe(self, start: int, stop: int) -> None:
        """Zeroes tokens `start` to `stop`, so that non-finite numbers that a run wrote reach no later masked sum."""
        for tensor in self.layout.tensors():
            self._memory.wipe(self._values[tensor.past], tensor.dtype, start, stop)
