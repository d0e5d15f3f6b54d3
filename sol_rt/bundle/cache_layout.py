"""Tensors of the KV cache that all graphs of a bundle read and append to, and the memory that they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sol_rt.bundle.config import KvLayout, ModelDims, tensor_bytes

SLACK = 512
"""Tokens that the core keeps before the window of a layer that has one (core/src/engine/ort/cache/kv_cache.h)."""
STEP = 256
"""Tokens of such a layer that it gives back at a time."""
COPIES = 2 + 16 + 32
"""Buffers of a layer's state in the core: a run reads one and writes one, and the others are to go back to."""


class CacheTensor(NamedTuple):
    """One tensor of the cache.

    Its shape is [1, kv_heads, tokens, width], or [1, kv_heads, tokens] if the width is 0.

    Attributes:
        past, present: names of the graph input and output that are both bound to it.
        width: numbers for each token and KV head.
        dtype: uint8, int8, float16 or, on a GPU without that, float32.
        window: tokens that its layer attends to; 0: all.
    """

    past: str
    present: str
    width: int
    dtype: str
    window: int = 0


class CacheLayout:
    """A key, a value and 4-bit codes of the key, for each attending layer, token and KV head.

    Attention chooses tokens by the codes. Keys and values are float16, or int8 with a float16 scale for each token and
    KV head.

    Args:
        model: sizes of the model.
        kv: type, page size, and the step in which the capacity grows.
        floats: type of what is float16; float32 on a GPU without that.
    """

    def __init__(self, model: ModelDims, kv: KvLayout, floats: str = "float16") -> None:
        self._model, self._kv, self._floats = model, kv, floats

    def tensors(self) -> Iterator[CacheTensor]:
        """Every tensor of the cache, layer by layer. Layers that do not attend have none."""
        floats, kv = self._floats, self._kv
        width, dtype = self._model.head_dim, "int8" if kv.dtype == "int8" else floats
        for layer in kv.attending(self._model.num_layers):
            window = kv.windows[layer] if kv.windows else 0
            for part in ("key", "value"):
                yield CacheTensor(f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", width, dtype, window)
            others = [("key_codes", width // 2, "uint8"), ("key_range", 2, floats)]
            if dtype == "int8":
                others += [("key_scale", 0, floats), ("value_scale", 0, floats)]
            for part, size, kind in others:
                yield CacheTensor(f"past_{part}.{layer}", f"present_{part}.{layer}", size, kind, window)

    def shape(self, tensor: CacheTensor, capacity: int) -> tuple[int, ...]:
        """The shape of a tensor at a capacity in tokens."""
        shape = (1, self._model.num_kv_heads, capacity)
        return (*shape, tensor.width) if tensor.width else shape

    def bytes_at(self, capacity: int) -> int:
        """Bytes of all tensors at a capacity in tokens."""
        return sum(tensor_bytes(tensor.dtype, self.shape(tensor, capacity)) for tensor in self.tensors())

    def most_held(self, capacity: int, window: int | None = None) -> int:
        """Bytes that the core holds of the cache at most, which gives back what layers with a window no longer need.

        Args:
            capacity: in tokens.
            window: count the layers with this window alone.
        """
        return sum(
            tensor_bytes(tensor.dtype, self.shape(tensor, min(capacity, most_kept(tensor.window) or capacity)))
            for tensor in self.tensors()
            if window is None or tensor.window == window
        )

    def capacity_for(self, tokens: int) -> int:
        """Capacity in tokens after growing for `tokens` of them: the next multiple of the layout's capacity step."""
        return self._kv.capacity_for(tokens)


def most_kept(window: int) -> int:
    """The most tokens that a layer with a window keeps between two runs; 0 without a window."""
    return window and window + SLACK + STEP


def states_bytes(model: ModelDims, kv: KvLayout) -> int:
    """Bytes of main memory that layers' states take, the most copies included."""
    return COPIES * kv.state_bytes(model.hidden_size)
