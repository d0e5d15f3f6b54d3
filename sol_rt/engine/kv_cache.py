"""The KV cache that all variants of a bundle share: keys, values and key codes. Graphs append to it in place."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnxruntime as ort

from sol_rt.bundle.config import KvLayout, ModelDims, tensor_bytes

if TYPE_CHECKING:
    from sol_rt.engine.gpu.device_memory import DeviceMemory


class Buffer(NamedTuple):
    """One tensor of the cache.

    Its shape is [1, kv_heads, tokens, width], or [1, kv_heads, tokens] if the width is 0.

    Attributes:
        past, present: names of the graph input and output that are both bound to it.
        width: numbers for each token and KV head.
        dtype: uint8, int8, float16 or, on a GPU without that, float32.
    """

    past: str
    present: str
    width: int
    dtype: str


class KvCache:
    """For each layer that attends, each token and KV head: a key, a value, and 4-bit codes of the key.

    Attention chooses tokens by the codes.

    Keys and values are float16, or int8 with a float16 scale for each token and KV head. On a GPU without float16,
    everything that is float16 otherwise is float32.

    Args:
        model: sizes of the model.
        layout: type, page size, and the step in which the capacity grows.
        device: memory of the GPU that computes; None puts the cache into main memory.

    Attributes:
        capacity: tokens that the buffers have room for.
    """

    def __init__(self, model: ModelDims, layout: KvLayout, device: DeviceMemory | None = None) -> None:
        self._model, self._layout, self._device = model, layout, device
        self.capacity = 0
        self._values: dict[str, ort.OrtValue] = {}
        self._memory: _Memory | None = None

    def buffers(self) -> Iterator[Buffer]:
        """Every tensor of the cache, layer by layer. Layers that do not attend have none."""
        floats = "float16" if self._device is None else self._device.floats
        width, dtype = self._model.head_dim, "int8" if self._layout.dtype == "int8" else floats
        for layer in self._layout.attending(self._model.num_layers):
            for part in ("key", "value"):
                yield Buffer(f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", width, dtype)
            others = [("key_codes", width // 2, "uint8"), ("key_range", 2, floats)]
            if dtype == "int8":
                others += [("key_scale", 0, floats), ("value_scale", 0, floats)]
            for part, size, kind in others:
                yield Buffer(f"past_{part}.{layer}", f"present_{part}.{layer}", size, kind)

    def bindings(self) -> Iterator[tuple[str, str, ort.OrtValue]]:
        """Names of a graph input and output, and the buffer to bind to both. Valid until the capacity changes."""
        for buffer in self.buffers():
            yield buffer.past, buffer.present, self._values[buffer.past]

    def scratch_bindings(self) -> Iterator[tuple[str, str, ort.OrtValue]]:
        """Like `bindings`, but with buffers of zeros that all layers share, for runs whose results nobody uses."""
        assert self._device is not None
        values: dict[str, ort.OrtValue] = {}
        for buffer in self.buffers():
            part = "".join(c for c in buffer.past if not c.isdigit())
            if part not in values:
                values[part] = self._device.zeros(self.shape(buffer, self.capacity), buffer.dtype)
            yield buffer.past, buffer.present, values[part]

    def shape(self, buffer: Buffer, capacity: int) -> tuple[int, ...]:
        """The shape of a tensor at a capacity in tokens."""
        shape = (1, self._model.num_kv_heads, capacity)
        return (*shape, buffer.width) if buffer.width else shape

    def bytes_at(self, capacity: int) -> int:
        """Bytes of the whole cache at a capacity in tokens."""
        return sum(tensor_bytes(buffer.dtype, self.shape(buffer, capacity)) for buffer in self.buffers())

    def capacity_for(self, tokens: int) -> int:
        """The capacity to grow to for so many tokens: the next multiple of the layout's capacity step."""
        return self._layout.capacity_for(tokens)

    def resize(self, capacity: int, used: int) -> None:
        """Moves the first `used` tokens into buffers of another capacity.

        One buffer is moved at a time, so that little memory is held twice. If memory is short, this raises MemoryError,
        or on a GPU ProviderError; some buffers have then grown and some have not.
        """
        if self._device is not None:
            self._resize_on(self._device, capacity, used)
            return
        old = self._memory
        memory = _Memory([(self.shape(buffer, capacity), buffer.dtype) for buffer in self.buffers()])
        for i, buffer in enumerate(self.buffers()):
            grown = memory.array(i)
            if used:
                grown[:, :, :used] = self._values[buffer.past].numpy()[:, :, :used]
            self._values[buffer.past] = ort.OrtValue.ortvalue_from_numpy(grown)
            if old is not None:
                old.release(i)
        self._memory = memory
        self.capacity = capacity

    def _resize_on(self, device: DeviceMemory, capacity: int, used: int) -> None:
        # old buffers go one by one as new ones come
        added = self.bytes_at(capacity) - self.bytes_at(self.capacity)
        device.require(added, f"a KV cache of {capacity} tokens")
        for buffer in self.buffers():
            shape = self.shape(buffer, capacity)
            if used:
                grown = device.grown(self._values[buffer.past], shape, buffer.dtype)
            else:
                self._values.pop(buffer.past, None)
                grown = device.zeros(shape, buffer.dtype)
            self._values[buffer.past] = grown
        self.capacity = capacity

    def free(self) -> None:
        """Frees every buffer. The capacity is then 0."""
        self._values.clear()
        self._memory = None
        self.capacity = 0

    def wipe(self, start: int, stop: int) -> None:
        """Zeroes tokens `start` to `stop`, so that non-finite numbers that a step wrote reach no later masked sum.

        The key codes of a page's tokens are interleaved, so some codes of earlier tokens are zeroed as well. They are
        computed again when the page next gets a token, which is before anything is chosen by them.
        """
        for buffer in self.buffers():
            if self._device is not None:
                self._device.wipe(self._values[buffer.past], buffer.dtype, start, stop)
                continue
            content = self._values[buffer.past].numpy()
            content[:, :, start:stop] = 0
            self._values[buffer.past].update_inplace(content)


class _Memory:
    """Zeroed arrays, one behind the other in one mapping, which has large memory pages if the system offers them.

    With small pages, a step at a long context misses in the processor's address cache: that took a seventh of its time.

    Args:
        arrays: shape and dtype of each array.
    """

    def __init__(self, arrays: Sequence[tuple[tuple[int, ...], str]]) -> None:
        self._arrays = arrays
        self._offsets = [0]
        for shape, dtype in arrays:
            self._offsets.append(self._offsets[-1] + _round_up(tensor_bytes(dtype, shape), mmap.PAGESIZE))
        try:
            # Shared memory, which is Python's default, gets no large pages and is not given back in parts.
            private: dict[str, Any] = {}
            if hasattr(mmap, "MAP_PRIVATE"):
                private["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._mapping = mmap.mmap(-1, self._offsets[-1], **private)
        except OSError as error:
            raise MemoryError(str(error)) from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without large pages
                self._mapping.madvise(mmap.MADV_HUGEPAGE)

    def array(self, i: int) -> np.ndarray:
        """Array `i`. The mapping lives as long as any of its arrays."""
        shape, dtype = self._arrays[i]
        return np.frombuffer(self._mapping, np.dtype(dtype), math.prod(shape), self._offsets[i]).reshape(shape)

    def release(self, i: int) -> None:
        """Returns the memory of array `i` to the system. Nobody may read the array any more."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start, stop = self._offsets[i : i + 2]
            self._mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
