"""The KV cache that all variants of a bundle share: float16 keys, values and page summaries, appended to in place."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnxruntime as ort

from sol_rt.config import KvLayout, ModelDims


class KvCache:
    """Per layer a key and a value [1, kv_heads, capacity, head_dim], and per page the minimum and maximum of its keys.

    Args:
        model: dims.
        layout: page size and the step in which capacity grows.
        place: makes an OrtValue of a float16 array where the provider computes; on the CPU it shares its memory.
    """

    def __init__(self, model: ModelDims, layout: KvLayout, place: Callable[[np.ndarray], ort.OrtValue]) -> None:
        self._model, self._layout, self._place = model, layout, place
        self.capacity = 0
        self._values: dict[str, ort.OrtValue] = {}
        self._memory: _Memory | None = None

    def names(self) -> Iterator[tuple[str, str, int]]:
        """(graph input, graph output, tokens one row of axis 2 stands for) of every buffer."""
        for layer in range(self._model.num_layers):
            yield f"past_key_values.{layer}.key", f"present.{layer}.key", 1
            yield f"past_key_values.{layer}.value", f"present.{layer}.value", 1
            yield f"past_page_min.{layer}", f"present_page_min.{layer}", self._layout.page_size
            yield f"past_page_max.{layer}", f"present_page_max.{layer}", self._layout.page_size

    def bindings(self) -> Iterator[tuple[str, str, ort.OrtValue]]:
        """(graph input, graph output, the one buffer to bind to both). Valid until the capacity changes."""
        for past, present, _ in self.names():
            yield past, present, self._values[past]

    def shape(self, rows: int) -> tuple[int, int, int, int]:
        return (1, self._model.num_kv_heads, rows, self._model.head_dim)

    def bytes_at(self, capacity: int) -> int:
        """Bytes of the whole cache at a capacity in tokens."""
        per_row = self._model.num_kv_heads * self._model.head_dim * 2
        return sum(per_row * (capacity // tokens) for _, _, tokens in self.names())

    def capacity_for(self, tokens: int) -> int:
        """The capacity that holds `tokens`: a multiple of the step, and no more than the model's context needs."""
        step, page = self._layout.capacity_step, self._layout.page_size
        return min(_round_up(tokens, step), max(_round_up(self._model.max_context, page), _round_up(tokens, page)))

    def resize(self, capacity: int, used: int) -> None:
        """Moves the first `used` tokens into buffers of another capacity, one buffer at a time to hold little twice."""
        old = self._memory
        memory = _Memory([self.shape(capacity // tokens) for _, _, tokens in self.names()])
        for i, (past, _, tokens) in enumerate(self.names()):
            grown = memory.array(i)
            rows = -(-used // tokens)
            if rows:
                grown[:, :, :rows] = self._values[past].numpy()[:, :, :rows]
            value = self._values[past] = self._place(grown)
            if value.data_ptr() != grown.ctypes.data:  # copied to a device
                memory.release(i)
            if old is not None:
                old.release(i)
        self._memory = memory
        self.capacity = capacity

    def free(self) -> None:
        """Lets go of every buffer."""
        self._values.clear()
        self._memory = None
        self.capacity = 0

    def wipe(self, start: int, stop: int) -> None:
        """Zeroes tokens `start` to `stop`, so that non-finite numbers a step wrote reach no later masked sum."""
        for past, _, tokens in self.names():
            content = self._values[past].numpy()
            content[:, :, start // tokens : -(-stop // tokens)] = 0
            self._values[past].update_inplace(content)


class _Memory:
    """Zeroed float16 arrays, one behind the other in a mapping of large pages where the system has them.

    A step at a long context reads more small pages than the processor remembers the places of: looking them up cost a
    seventh of the time.

    Args:
        shapes: of the arrays.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._offsets = [0]
        for shape in shapes:
            self._offsets.append(self._offsets[-1] + _round_up(2 * math.prod(shape), mmap.PAGESIZE))
        try:
            # Shared memory, which is Python's default, gets no large pages and is not given back in parts.
            private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
            self._mapping = mmap.mmap(-1, self._offsets[-1], **private)
        except OSError as error:
            raise MemoryError(str(error)) from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without large pages
                self._mapping.madvise(mmap.MADV_HUGEPAGE)

    def array(self, i: int) -> np.ndarray:
        """Array `i`; the memory lives as long as any of them."""
        shape = self._shapes[i]
        return np.frombuffer(self._mapping, np.float16, math.prod(shape), self._offsets[i]).reshape(shape)

    def release(self, i: int) -> None:
        """Gives back the memory of array `i`, which nobody may read any more."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start, stop = self._offsets[i : i + 2]
            self._mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
