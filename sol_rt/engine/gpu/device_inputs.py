"""The small inputs and the results of a step on a GPU: at fixed addresses, where a captured graph finds them.

Inputs are written before a run where they changed, and results are read after a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sol_rt.bundle.config import SolConfig
from sol_rt.engine.gpu.device_memory import DeviceMemory
from sol_rt.engine.signature import CHANNEL_INPUTS

import onnxruntime as ort

_ALL_PAGES = 1 << 30  # of `kv_pages`: covers every context


class DeviceInputs:
    """Inputs and results in main memory, and their copies on the GPU. L is the number of layers.

    Args:
        memory: the GPU's memory.
        config: of the bundle.

    Attributes:
        channels: int64 [4, L], active channels, a row for each of CHANNEL_INPUTS; 0 stands for all of them.
        logits: float32 [1, vocab], of the last step.
        hidden: float32 [1, hidden], of the last step.
        inputs: the inputs on the GPU, by the names of the graph's inputs.
        host_inputs: the same in main memory.
    """

    def __init__(self, memory: DeviceMemory, config: SolConfig) -> None:
        model, dense_layers = config.model, config.kv.dense_layers
        layers = model.num_layers
        self._token, self._kv_pages = np.zeros((1, 1), np.int64), np.full(layers, _ALL_PAGES, np.int64)
        self._past_length, self._total_length = np.zeros(1, np.int64), np.zeros(1, np.int32)
        self.channels = np.zeros((len(CHANNEL_INPUTS), layers), np.int64)
        self.logits = np.zeros((1, model.vocab_size), np.float32)
        self.hidden = np.zeros((1, model.hidden_size), np.float32)
        self._sparse_layers = np.delete(np.arange(layers), dense_layers)  # others always read all pages
        inputs: dict[str, np.ndarray] = {
            "input_ids": self._token,
            "past_length": self._past_length,
            "kv_pages": self._kv_pages,
            **dict(zip(CHANNEL_INPUTS, self.channels, strict=True)),
            "num_logits": np.ones(1, np.int64),
            "total_length": self._total_length,
        }
        self._inputs = memory.mirror(inputs)
        self.inputs = self._inputs.values
        self.host_inputs = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        self._results = memory.mirror({"logits": self.logits, "hidden_states": self.hidden}, apart=["logits"])

    def set_step(self, token: int, past_length: int, pages: int) -> None:
        """Sets the inputs of a decode step that reads `pages` old KV pages in every layer that may skip pages."""
        self._token[0, 0] = token
        self._kv_pages[self._sparse_layers] = pages
        self._set_lengths(past_length, 1)

    def set_batch(self, past_length: int, new_tokens: int) -> None:
        """Sets the inputs of a run of tokens that attend to all before them."""
        self._kv_pages[:] = _ALL_PAGES
        self._set_lengths(past_length, new_tokens)

    def _set_lengths(self, past_length: int, new_tokens: int) -> None:
        self._past_length[0], self._total_length[0] = past_length, past_length + new_tokens

    def send(self) -> None:
        """Writes what changed in main memory since the last time."""
        self._inputs.send()

    def receive(self) -> None:
        """Reads the results of the step that ran last into `logits` and `hidden`, and waits for them."""
        self._results.receive(list(self._results.values))

    def bind_results(self, binding: ort.IOBinding) -> None:
        """Binds the results to a graph's outputs."""
        for name, value in self._results.values.items():
            binding.bind_ortvalue_output(name, value)

    def pretend(self, length: int) -> None:
        """Sets the lengths as if the cache held `length` tokens, for a trial run."""
        self._set_lengths(length, 1)
        self.send()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A context that restores the inputs at its end, for trial runs."""
        before = {name: array.copy() for name, array in self._inputs.arrays.items()}
        try:
            yield
        finally:
            for name, array in self._inputs.arrays.items():
                array[:] = before[name]

    def all_results(self) -> dict[str, np.ndarray]:
        """Copies of all results of the step that ran last."""
        self.receive()
        return {name: array.copy() for name, array in self._results.arrays.items()}
