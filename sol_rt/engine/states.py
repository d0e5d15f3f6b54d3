"""States of fixed size that short convolutions keep of earlier tokens, and copies of the states to go back to.

A state can't be cut off as the KV cache can: what it was at token 90 is not in that of token 100. So copies are kept:
of the last steps, and at some lengths before. Going back restores the last copy at or below the length wanted; the
engine runs the tokens after it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sol_rt.bundle.config import KvLayout, ModelDims
from sol_rt.engine.signature import state_names

import onnxruntime as ort

MOST_COPIES = 32
"""Copies kept at chosen lengths. When there are more, the one with the closest neighbours is dropped; the longer ago it
was made, the closer they seem."""
LAST = 16
"""Runs whose states are kept, too: steps back by fewer tokens run nothing again."""


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
        self._last = np.zeros((LAST, *shape), np.float32)  # the states after n tokens are at n modulo LAST
        self._last_lengths = [-1] * LAST
        self.length = 0

    def bindings(self) -> Iterator[tuple[str, str, ort.OrtValue, ort.OrtValue]]:
        """Names of a graph input and output, and the buffer to bind to each. They stay valid."""
        wrap = ort.OrtValue.ortvalue_from_numpy
        for layer, read, written in zip(self._layers, self._states, self._written, strict=True):
            yield *state_names(layer), wrap(read), wrap(written)

    def content(self) -> np.ndarray:
        """A copy of the states, float32 [layers, hidden, conv_size - 1]."""
        return self._states[:, 0].copy()

    def commit(self, length: int) -> None:
        """Takes over what the last run wrote, the states after `length` tokens."""
        at = length % LAST
        self._last_lengths[at] = -1
        self._last[at] = self._written
        self._replace(self._written, length)
        self._last_lengths[at] = length  # last: an interrupt before it leaves no copy that a rewind could take

    def keep(self) -> None:
        """Keeps a copy of the states."""
        if self.length <= 0:
            return
        self._copies[self.length] = self._states.copy()
        if len(self._copies) > MOST_COPIES:
            kept = sorted(self._copies)
            gaps = {
                at: (after - before) / (kept[-1] - at)
                for before, at, after in zip(kept, kept[1:], kept[2:], strict=False)
            }
            del self._copies[min(gaps, key=lambda at: gaps[at])]

    def forget(self, length: int) -> None:
        """Drops the copies of more than `length` tokens, which are about to be replaced by others."""
        for longer in [kept for kept in self._copies if kept > length]:
            del self._copies[longer]
        self._last_lengths = [kept if kept <= length else -1 for kept in self._last_lengths]

    def restore(self, length: int) -> None:
        """Goes back to the last copy of at most `length` tokens, or to the start of a text. Drops later copies."""
        self.forget(length)
        nearest = max(0, *self._copies, *self._last_lengths)
        if nearest in self._last_lengths:
            self._replace(self._last[nearest % LAST], nearest)
        else:
            self._replace(self._copies.get(nearest, 0.0), nearest)

    def _replace(self, states: np.ndarray | float, length: int) -> None:
        self.length = -1
        self._states[:] = states
        self.length = length


def states_bytes(model: ModelDims, layout: KvLayout) -> int:
    """Bytes of main memory that states take, the most copies included."""
    return (2 + LAST + MOST_COPIES) * layout.state_bytes(model.hidden_size)
