"""The KV cache that all variants of a bundle share: keys, values and key codes. Graphs append to it in place.

Layers with a window read no token before it. In main memory the cache gives back what lies further back: buffers
keep their shape, and their memory there goes back to the system.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sol_rt.bundle.config import KvLayout, ModelDims, tensor_bytes

import onnxruntime as ort

if TYPE_CHECKING:
    from sol_rt.engine.gpu.device_memory import DeviceMemory

SLACK = 512
"""Tokens that layers with a window keep before it, so that rewinds by as many tokens run nothing again."""
STEP = 256
"""Tokens of such a layer that are given back at a time; a multiple of the page size."""


def most_kept(window: int) -> int:
    """The most tokens that a layer with a window keeps between two runs; 0 without a window."""
    return window and window + SLACK + STEP


class Buffer(NamedTuple):
    """One tensor of the cache.

    Its shape is [1, kv_heads, tokens, width], or [1, kv_heads, tokens] if the width is 0.

    Attributes:
        past, present: names of the graph input and output that are both bound to it.
        width: numbers for each token and KV head.
        dtype: uint8, int8, float16 or, on a GPU without that, float32.
        window: tokens that its layer attends to; 0: all, or nothing of it is given back.
    """

    past: str
    present: str
    width: int
    dtype: str
    window: int = 0


class _Bound(NamedTuple):
    """Value that is bound to the graphs for one tensor, and in main memory the array that shares its bytes."""

    value: ort.OrtValue
    array: np.ndarray | None = None


class KvCache:
    """Cache of a key, a value and 4-bit codes of the key, for each attending layer, token and KV head.

    Attention chooses tokens by the codes.

    Keys and values are float16, or int8 with a float16 scale for each token and KV head. On a GPU without float16,
    everything that is float16 otherwise is float32.

    Args:
        model: sizes of the model.
        layout: type, page size, and the step in which the capacity grows.
        device: memory of the GPU that computes; None puts the cache into main memory.
        whole: keep every token in layers with a window, too. On a GPU all are kept anyway.
        codes: whether anything reads the key codes. Only kernels do; without them a GPU leaves their content undefined.

    Attributes:
        capacity: tokens that the buffers have room for.
        due: number of tokens from which on `discard` gives something back.
    """

    def __init__(
        self,
        model: ModelDims,
        layout: KvLayout,
        device: DeviceMemory | None = None,
        *,
        whole: bool = False,
        codes: bool = True,
    ) -> None:
        self._model, self._layout, self._device, self._codes = model, layout, device, codes
        self._windows = () if whole or device is not None else layout.windows
        self.capacity = 0
        self.forget()
        self._bound: dict[str, _Bound] = {}
        self._memory: _Memory | None = None

    def buffers(self) -> Iterator[Buffer]:
        """Every tensor of the cache, layer by layer. Layers that do not attend have none."""
        floats = "float16" if self._device is None else self._device.floats
        width, dtype = self._model.head_dim, "int8" if self._layout.dtype == "int8" else floats
        for layer in self._layout.attending(self._model.num_layers):
            window = self._windows[layer] if self._windows else 0
            for part in ("key", "value"):
                yield Buffer(f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", width, dtype, window)
            others = [("key_codes", width // 2, "uint8"), ("key_range", 2, floats)]
            if dtype == "int8":
                others += [("key_scale", 0, floats), ("value_scale", 0, floats)]
            for part, size, kind in others:
                yield Buffer(f"past_{part}.{layer}", f"present_{part}.{layer}", size, kind, window)

    def bindings(self) -> Iterator[tuple[str, str, ort.OrtValue]]:
        """Names of a graph input and output, and the buffer to bind to both. Valid until the capacity changes."""
        for buffer in self.buffers():
            yield buffer.past, buffer.present, self._bound[buffer.past].value

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

    def bytes_at(self, capacity: int, window: int | None = None) -> int:
        """Bytes that the cache takes at most at a capacity in tokens, or that its layers with this window take."""
        return sum(
            tensor_bytes(buffer.dtype, self.shape(buffer, min(capacity, most_kept(buffer.window) or capacity)))
            for buffer in self.buffers()
            if window is None or buffer.window == window
        )

    def capacity_for(self, tokens: int) -> int:
        """Capacity in tokens after growing for `tokens` of them: the next multiple of the layout's capacity step."""
        return self._layout.capacity_for(tokens)

    def holds(self, length: int) -> bool:
        """True if a token after the first `length` tokens finds all that its attention reads."""
        return length >= self._shortest

    def discard(self, length: int) -> None:
        """Gives back what layers with a window no longer need of `length` tokens, all but the last SLACK before it."""
        before = self._firsts
        wanted = {window: _whole_steps(length - window - SLACK) for window in before}
        self._hold_from({window: max(first, before[window]) for window, first in wanted.items()})
        for i, buffer in enumerate(self.buffers()):  # last: an interrupt before it leaves no token that seems held
            if buffer.window and self._memory is not None:
                self._memory.discard(i, before[buffer.window], self._firsts[buffer.window])

    def forget(self) -> None:
        """Begins a new text, of which no memory has been given back."""
        self._hold_from(dict.fromkeys(filter(None, self._windows), 0))

    def _hold_from(self, firsts: dict[int, int]) -> None:
        self._firsts = firsts  # by window, the first token that is held
        self._shortest = max((first + window - 1 for window, first in firsts.items() if first), default=0)
        self.due = min((first + most_kept(window) for window, first in firsts.items()), default=sys.maxsize)

    def resize(self, capacity: int, used: int) -> None:
        """Moves what is held of the first `used` tokens into buffers of another capacity.

        One buffer is moved at a time, so that little memory is held twice. If memory is short, this raises MemoryError,
        or on a GPU ProviderError; some buffers have then grown and some have not.
        """
        if self._device is not None:
            self._resize_on(self._device, capacity, used)
            return
        old, buffers = self._memory, list(self.buffers())
        memory = _Memory([(self.shape(buffer, capacity), buffer.dtype) for buffer in buffers])
        memory.use_large_pages([not 0 < most_kept(buffer.window) < capacity for buffer in buffers])
        self.capacity = 0  # until all have grown: after an interrupt the next run makes them alike
        for i, buffer in enumerate(buffers):
            grown = memory.array(i)
            bound = self._bound.get(buffer.past)
            if bound is not None and bound.array is not None:
                held = slice(self._firsts.get(buffer.window, 0), used)
                grown[:, :, held] = bound.array[:, :, held]
            self._bound[buffer.past] = _Bound(ort.OrtValue.ortvalue_from_numpy(grown), grown)
            if old is not None:  # last: an interrupt before it leaves nothing bound whose memory has gone
                old.release(i)
        self._memory = memory
        self.capacity = capacity

    def _resize_on(self, device: DeviceMemory, capacity: int, used: int) -> None:
        # old buffers go one by one as new ones come
        added = self.bytes_at(capacity) - self.bytes_at(self.capacity)
        device.require(added, f"a KV cache of {capacity} tokens")
        for buffer in self.buffers():
            shape = self.shape(buffer, capacity)
            if buffer.dtype == "uint8" and not self._codes:
                self._bound.pop(buffer.past, None)
                grown = device.empty(shape, buffer.dtype)
            elif used:
                grown = device.grown(self._bound[buffer.past].value, shape, buffer.dtype)
            else:
                self._bound.pop(buffer.past, None)
                grown = device.zeros(shape, buffer.dtype)
            self._bound[buffer.past] = _Bound(grown)
        self.capacity = capacity

    def free(self) -> None:
        """Frees every buffer. The capacity is then 0."""
        self._bound.clear()
        self._memory = None
        self.capacity = 0
        self.forget()

    def wipe(self, start: int, stop: int) -> None:
        """Zeroes tokens `start` to `stop`, so that non-finite numbers that a step wrote reach no later masked sum.

        The key codes of a page's tokens are interleaved, so some codes of earlier tokens are zeroed as well. They are
        computed again when the page next gets a token, which is before anything is chosen by them.
        """
        for buffer in self.buffers():
            bound = self._bound[buffer.past]
            if self._device is not None:
                self._device.wipe(bound.value, buffer.dtype, start, stop)
            elif bound.array is not None:
                bound.array[:, :, start:stop] = 0


def _whole_steps(tokens: int) -> int:
    return max(tokens, 0) // STEP * STEP


class _Memory:
    """Zeroed arrays, one after the other in one mapping.

    Args:
        arrays: shape and dtype of each array, [1, heads, tokens, …].

    Raises MemoryError.
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

    def use_large_pages(self, wanted: Sequence[bool]) -> None:
        """Asks for large memory pages for the arrays where they are wanted, and for small ones elsewhere.

        With small pages, a step at a long context misses in the processor's address cache: that took a seventh of its
        time. A large page would be filled again as a whole where a part of it was given back.
        """
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return
        for large, start, stop in zip(wanted, self._offsets, self._offsets[1:], strict=False):
            with contextlib.suppress(OSError):  # a kernel without large pages
                self._mapping.madvise(mmap.MADV_HUGEPAGE if large else mmap.MADV_NOHUGEPAGE, start, stop - start)

    def array(self, i: int) -> np.ndarray:
        """Array `i`. The mapping lives as long as any of its arrays."""
        shape, dtype = self._arrays[i]
        return np.frombuffer(self._mapping, np.dtype(dtype), math.prod(shape), self._offsets[i]).reshape(shape)

    def discard(self, i: int, start: int, stop: int) -> None:
        """Returns the memory of tokens `start` to `stop` of every head of array `i` to the system, in whole pages.

        The tokens before `start` were returned already, but for what shares a page with `start`.
        """
        (_, heads, tokens, *width), dtype = self._arrays[i]
        token = tensor_bytes(dtype, width)
        for head in range(heads):
            begin = self._offsets[i] + head * tokens * token
            first = max(_round_up(begin, mmap.PAGESIZE), (begin + start * token) // mmap.PAGESIZE * mmap.PAGESIZE)
            self._give_back(first, (begin + stop * token) // mmap.PAGESIZE * mmap.PAGESIZE)

    def release(self, i: int) -> None:
        """Returns the memory of array `i` to the system. Nobody may read the array any more."""
        self._give_back(*self._offsets[i : i + 2])

    def _give_back(self, start: int, stop: int) -> None:
        if hasattr(mmap, "MADV_DONTNEED") and stop > start:
            self._mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
