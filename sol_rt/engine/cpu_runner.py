"""Decode steps and batches on the CPU: one session for each graph file, bound once to the cache and the step buffers.

All sessions read the memory-mapped weights file. A decode step binds nothing and allocates nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import Variant
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.distribution import Distribution, SoftmaxSums
from sol_rt.engine.kv_cache import KvCache
from sol_rt.engine.providers import Provider
from sol_rt.engine.signature import CHANNEL_INPUTS, SPARSE_DIMS, check_signature, step_signature
from sol_rt.engine.states import States
from sol_rt.engine.step import StepBuffers, StepOutput
from sol_rt.errors import SolError, one_line

import onnxruntime as ort


class Choices(NamedTuple):
    """Counts that a graph takes as inputs: old tokens that attention reads, and active channels.

    Without a count it reads all of them.
    """

    tokens: bool
    channels: bool


class CpuRunners:
    """The runners of a bundle on the CPU: one for each graph file and `Choices`.

    Args:
        bundle: the bundle.
        provider: the CPU provider, with or without native operators.
        weights: the mapped weights file.
        buffers: inputs and results of decode steps.
        sums: computes the softmax sums of a row of logits.
    """

    device_weight_bytes = 0
    captured_graphs = 0

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        weights: SharedWeights,
        buffers: StepBuffers,
        sums: Callable[[np.ndarray], SoftmaxSums],
    ) -> None:
        model, kv = bundle.config.model, bundle.config.kv
        self.cache = KvCache(model, kv, whole=not provider.native)  # function bodies read all and mask
        self.states = States(model, kv) if kv.convolving else None
        self._bundle, self._provider, self._weights = bundle, provider, weights
        self._values, self._sums = _StepValues(buffers), sums
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._prepared: dict[str, tuple[ort.SessionOptions, bytes]] = {}  # options and graph of sessions to be made
        self._runners: dict[tuple[str, Choices], CpuRunner] = {}

    def runner(self, variant: Variant, channels: np.ndarray, kv_density: float) -> CpuRunner:
        """The runner of a variant: see `Runners.runner`."""
        # native operators read the counts at every step; function bodies compute less where they get none
        choices = Choices(True, True) if self._provider.native else Choices(kv_density < 1.0, bool(channels.any()))
        key = variant.file, choices
        runner = self._runners.get(key)
        if runner is None:
            session = self._session(variant)
            runner = CpuRunner(variant.file, session, self.cache, self.states, self._values, choices, self._sums)
            self._runners[key] = runner
        return runner

    def release(self) -> None:
        """Forgets the buffers of the KV cache in every runner, as they are about to be replaced."""
        for runner in self._runners.values():
            runner.release()

    def is_loaded(self, variant: Variant) -> bool:
        """True if the variant's graph has a session. All variants of one precision share a graph."""
        return variant.file in self._sessions

    def prepare(self, variant: Variant) -> None:
        """Checks the variant's graph and makes its session's options, so that ONNX Runtime's part alone is left, which
        runs without Python's lock.
        """
        if not self.is_loaded(variant):
            self._prepared[variant.file] = self._options_and_graph(variant)

    def _session(self, variant: Variant) -> ort.InferenceSession:
        session = self._sessions.get(variant.file)
        if session is None:
            session = self._sessions[variant.file] = self._open_session(variant)
            _return_freed_memory()
        return session

    def _open_session(self, variant: Variant) -> ort.InferenceSession:
        path, prepared = self._bundle.path / variant.file, self._prepared.pop(variant.file, None)
        options, graph = prepared or self._options_and_graph(variant)
        session = self._provider.session(path, options, graph)
        check_signature(path, session, step_signature(self._bundle.config, self.cache))
        return session

    def _options_and_graph(self, variant: Variant) -> tuple[ort.SessionOptions, bytes]:
        config, file = self._bundle.config, variant.file
        options = self._provider.options()
        graph = self._weights.attach(options, file, by_name=not self._provider.native)
        if self._provider.native:
            for name in SPARSE_DIMS:
                options.add_free_dimension_override_by_name(name, config.model.num_layers)
        elif variant.precision.widest == 8:  # quantizing activations to 8 bits would lose more than the weights do
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        return options, graph


class CpuRunner:
    """One graph on the CPU, with two bindings: a fixed one for steps, and one for batches, whose inputs are bound anew.

    Args:
        file: name of the graph file, for messages.
        session: the graph's session.
        cache: the KV cache.
        states: the states of layers that have one, or None.
        values: the step buffers as ONNX Runtime values.
        choices: which of the counts in the step buffers the graph gets.
        sums: computes the softmax sums of a row of logits.
    """

    def __init__(
        self,
        file: str,
        session: ort.InferenceSession,
        cache: KvCache,
        states: States | None,
        values: _StepValues,
        choices: Choices,
        sums: Callable[[np.ndarray], SoftmaxSums],
    ) -> None:
        self.file = file
        self._session, self._cache, self._states, self._values, self._sums = session, cache, states, values, sums
        self._counts = values.counts(choices)
        self._logits, self._hidden = values.buffers.logits, values.buffers.hidden
        self._logits_row: np.ndarray = self._logits[0]
        self._step_binding: ort.IOBinding | None = None
        self._batch_binding: ort.IOBinding | None = None

    def open(self) -> None:
        """Does nothing: a runner on the CPU is made with its session."""

    def release(self) -> None:
        """Forgets the buffers of the KV cache, which are about to be replaced."""
        self._step_binding = self._batch_binding = None

    def step(self) -> StepOutput:
        """Runs the token in the step buffers: see `Runner.step`."""
        if self._step_binding is None:
            self._step_binding = self._bind_step()
        self._run(self._step_binding)
        return StepOutput(self._logits, self._hidden, Distribution(self._logits_row, self._sums))

    def batch(self, ids: np.ndarray, logits: np.ndarray, hidden: np.ndarray) -> None:
        """Runs tokens int64 [S] and fills logits [n, vocab] and hidden [n, hidden]: see `Runner.batch`."""
        binding = self._batch_binding
        if binding is None:
            binding = self._batch_binding = self._bind_cache()
        wrap = ort.OrtValue.ortvalue_from_numpy
        count = np.array([len(logits)], np.int64)
        _bind_inputs(binding, {"input_ids": wrap(ids[None]), "num_logits": wrap(count)})
        binding.bind_ortvalue_output("logits", wrap(logits))
        binding.bind_ortvalue_output("hidden_states", wrap(hidden))
        self._run(binding)

    def _bind_step(self) -> ort.IOBinding:
        binding = self._bind_cache()
        _bind_inputs(binding, self._values.token)
        for name, value in self._values.results.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def _bind_cache(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        for past, present, value in self._cache.bindings():
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        for past, present, read, written in self._states.bindings() if self._states is not None else ():
            binding.bind_ortvalue_input(past, read)
            binding.bind_ortvalue_output(present, written)
        _bind_inputs(binding, self._counts)
        return binding

    def _run(self, binding: ort.IOBinding) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no useful base
            raise SolError(f"{self.file}: ONNX Runtime failed: {one_line(error)}") from None


class _StepValues:
    """The step buffers as ONNX Runtime values that share their memory, by names of graph inputs and outputs.

    Attributes:
        buffers: the step buffers.
        token: inputs that only a decode step has: `input_ids` and `num_logits`.
        results: outputs of a decode step.
    """

    def __init__(self, buffers: StepBuffers) -> None:
        wrap = ort.OrtValue.ortvalue_from_numpy
        self.buffers = buffers
        self._inputs = {name: wrap(array) for name, array in buffers.inputs.items()}
        self._none = wrap(np.zeros(0, np.int64))
        self.token = {name: self._inputs[name] for name in ("input_ids", "num_logits")}
        self.results = {name: wrap(array) for name, array in buffers.results.items()}

    def counts(self, choices: Choices) -> dict[str, ort.OrtValue]:
        """Inputs that steps and batches share: lengths, pages and active channels. A count left out is empty."""
        inputs = self._inputs
        channels = {name: inputs[name] if choices.channels else self._none for name in CHANNEL_INPUTS}
        return {
            "past_length": inputs["past_length"],
            "total_length": inputs["total_length"],
            "kv_pages": inputs["kv_pages"] if choices.tokens else self._none,
            **channels,
        }


def _bind_inputs(binding: ort.IOBinding, values: Mapping[str, ort.OrtValue]) -> None:
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)


def _return_freed_memory() -> None:
    """Returns to the system what making a session used and freed: the C library otherwise keeps it resident."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:  # a C library without this function
            return
