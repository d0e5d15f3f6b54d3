"""What layers with a short convolution keep of earlier tokens: a state of a fixed size, and copies of it to go back to.

A state can't be cut off as the KV cache can: after token 100 nothing in it is of token 90. So copies are kept at some
lengths. Going back restores the last copy at or below the length wanted; the engine runs the tokens behind it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort

from sol_rt.bundle.config import KvLayout, ModelDims
from sol_rt.engine.signature import state_names

MOST_COPIES = 32
"""When there are more, every second one of the older half is dropped."""


class States:
    """The states of all layers that have one, float32 [layers, 1, hidden, conv_size - 1] in main memory.

    Graphs read one buffer and write another, so a run that fails or is interrupted changes nothing. `commit` takes over
    what a run wrote.

    Args:
        model, layout: of a bundle that has such layers.

    Attributes:
        length: the number of tokens that the states are of; -1 while they are being replaced.
    """

    def __init__(self, model: ModelDims, layout: KvLayout) -> None:
        self._layers = layout.convolving
        shape = (len(self._layers), 1, model.hidden_size, layout.conv_size - 1)
        self._states, self._written = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._copies: dict[int, np.ndarray] = {}
        self.length = 0

    def bindings(self) -> Iterator[tuple[str, str, ort.OrtValue, ort.OrtValue]]:
        """Names of a graph input and output, and the buffer to bind to each. They stay valid."""
        wrap = ort.OrtValue.ortvalue_from_numpy
        for layer, read, written in zip(self._layers, self._states, self._written, strict=True):
            yield *state_names(layer), wrap(read), wrap(written)

    def commit(self, length: int) -> None:
        """Takes over what the last run wrote, the states after `length` tokens."""
        self._replace(self._written, length)

    def keep(self) -> None:
        """Keeps a copy of the states."""
        if self.length <= 0:
            return
        self._copies[self.length] = self._states.copy()
        if len(self._copies) > MOST_COPIES:
            for length in sorted(self._copies)[: MOST_COPIES // 2 : 2]:
                del self._copies[length]

    def forget(self, length: int) -> None:
        """Drops the copies of more than `length` tokens, which are about to be replaced by others."""
        for longer in [kept for kept in self._copies if kept > length]:
            del self._copies[longer]

    def restore(self, length: int) -> None:
        """Goes back to the last copy of at most `length` tokens, or to the start of a text."""
        last = max((kept for kept in self._copies if kept <= length), default=0)
        self._replace(self._copies.get(last, 0.0), last)

    def _replace(self, states: np.ndarray | float, length: int) -> None:
        self.length = -1
        self._states[:] = states
        self.length = length


def states_bytes(model: ModelDims, layout: KvLayout) -> int:
    """Bytes of main memory that states take, the most copies included."""
    return (2 + MOST_COPIES) * layout.state_bytes(model.hidden_size)
