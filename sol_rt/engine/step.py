"""Interface between the engine and its runners: buffers of a decode step, its output, and the `Runner` protocol.

The engine writes a step's inputs into `StepBuffers` and calls a runner. There is one implementation for the CPU
(`cpu_runner.py`) and one for GPUs (`gpu/device_runner.py`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from sol_rt.bundle.config import SolConfig, Variant
from sol_rt.engine.distribution import Distribution
from sol_rt.engine.kv_cache import KvCache
from sol_rt.engine.signature import CHANNEL_INPUTS
from sol_rt.engine.states import States

ALL_PAGES = 1 << 30
"""A value of the graph input `kv_pages` that covers every context: attention reads all tokens."""


class StepOutput(NamedTuple):
    """The result of `Engine.forward`. After one token: views that the next step overwrites; after more: own arrays.

    Attributes:
        host_logits: float32 [num_logits, vocab] in main memory, or None while the logits lie on a GPU.
        hidden: float32 [num_logits, hidden], the output of the final norm.
        distribution: the probabilities of the next token, from the last row of logits; valid as long as that row is.
    """

    host_logits: np.ndarray | None
    hidden: np.ndarray
    distribution: Distribution

    @property
    def logits(self) -> np.ndarray:
        """float32 [num_logits, vocab]; fetched from the GPU if they lie there."""
        return self.distribution.logits[None] if self.host_logits is None else self.host_logits


class StepBuffers:
    """The small inputs and the results of one decode step, in main memory, allocated once and shared by all runners.

    L is the number of layers.

    Attributes:
        token: int64 [1, 1], graph input `input_ids`.
        past_length: int64 [1], tokens in the cache before the step.
        total_length: int32 [1], tokens in the cache after it.
        kv_pages: int64 [L], old KV pages that attention reads in each layer.
        channels: int64 [4, L], active channels, a row for each of CHANNEL_INPUTS; 0 stands for all of them.
        num_logits: int64 [1], always 1.
        logits: float32 [1, vocab], graph output `logits`.
        hidden: float32 [1, hidden], graph output `hidden_states`.
        inputs: the input arrays by the names of the graph's inputs.
        results: the output arrays by the names of the graph's outputs.
    """

    def __init__(self, config: SolConfig) -> None:
        model, dense_layers = config.model, config.kv.dense_layers
        layers = model.num_layers
        self.token = np.zeros((1, 1), np.int64)
        self.past_length = np.zeros(1, np.int64)
        self.total_length = np.zeros(1, np.int32)
        self.kv_pages = np.full(layers, ALL_PAGES, np.int64)
        self.channels = np.zeros((len(CHANNEL_INPUTS), layers), np.int64)
        self.num_logits = np.ones(1, np.int64)
        self.logits = np.zeros((1, model.vocab_size), np.float32)
        self.hidden = np.zeros((1, model.hidden_size), np.float32)
        self.inputs: dict[str, np.ndarray] = {
            "input_ids": self.token,
            "past_length": self.past_length,
            "kv_pages": self.kv_pages,
            **dict(zip(CHANNEL_INPUTS, self.channels, strict=True)),
            "num_logits": self.num_logits,
            "total_length": self.total_length,
        }
        self.results = {"logits": self.logits, "hidden_states": self.hidden}
        # other layers always read all pages; a plain slice where there are none is faster than an index array
        self._sparse_kv_layers = np.delete(np.arange(layers), dense_layers) if dense_layers else slice(None)

    def set_step(self, token: int, past_length: int, pages: int) -> None:
        """Sets the inputs of a decode step that reads `pages` old KV pages in every layer that may skip pages."""
        self.token[0, 0] = token
        self.set_lengths(past_length, 1)
        self.kv_pages[self._sparse_kv_layers] = pages

    def set_lengths(self, past_length: int, new_tokens: int) -> None:
        """Sets the number of tokens in the cache before a run, and after a run of `new_tokens` more."""
        self.past_length[0], self.total_length[0] = past_length, past_length + new_tokens


class Runner(Protocol):
    """Runs the graph of one action on the engine's KV cache. The caller has set the lengths in `StepBuffers` and made
    room in the cache.
    """

    def open(self) -> None:
        """Makes the session for decode steps now instead of at the first step.

        Raises BundleError, ProviderError.
        """

    def release(self) -> None:
        """Forgets the buffers of the KV cache, which are about to be replaced."""

    def step(self) -> StepOutput:
        """Runs the token in `StepBuffers`. Its keys and values are appended to the cache; states are not committed.

        Returns views of buffers that the next step overwrites: logits [1, vocab], hidden [1, hidden].
        Raises SolError where ONNX Runtime fails.
        """

    def batch(self, ids: np.ndarray, logits: np.ndarray, hidden: np.ndarray) -> None:
        """Runs tokens `ids`, int64 [S], with dense attention, and appends their keys and values to the cache.

        Fills `logits`, float32 [n, vocab], and `hidden`, float32 [n, hidden], with the results of the last n tokens.
        Raises SolError where ONNX Runtime fails.
        """


class Runners(Protocol):
    """All runners of a bundle on one device, with the KV cache that they share.

    Attributes:
        cache: the KV cache, in the device's memory.
        states: the states of layers that have one; None where no layer has.
    """

    cache: KvCache
    states: States | None

    @property
    def device_weight_bytes(self) -> int:
        """Bytes of weights in the GPU's memory; 0 on the CPU, which reads the mapped weights file."""

    @property
    def captured_graphs(self) -> int:
        """Number of sessions whose commands the GPU recorded and repeats; 0 on the CPU."""

    def runner(self, variant: Variant, channels: np.ndarray, kv_density: float) -> Runner:
        """The runner of a variant; made when first asked for.

        Args:
            variant: the variant.
            channels: int64 [4, L], its active channels as in `StepBuffers.channels`.
            kv_density: share of the old tokens that its decode steps read.

        Raises BundleError, ProviderError.
        """

    def release(self) -> None:
        """Forgets the buffers of the KV cache in every runner, as they are about to be replaced."""

    def is_loaded(self, variant: Variant) -> bool:
        """True if the variant's graph has a session."""
