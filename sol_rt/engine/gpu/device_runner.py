"""Decode steps and batches on a GPU: the runners of a bundle, with the weights, the KV cache and the buffers there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import Variant
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.distribution import SoftmaxSums
from sol_rt.engine.gpu import logit_summary
from sol_rt.engine.gpu.device_inputs import DeviceInputs
from sol_rt.engine.gpu.device_sessions import DeviceGraphs, Kind, OpenGraph
from sol_rt.engine.gpu.logit_summary import LogitSummary
from sol_rt.engine.kv_cache import KvCache
from sol_rt.engine.signature import step_signature
from sol_rt.engine.states import States
from sol_rt.engine.step import StepBuffers, StepOutput
from sol_rt.errors import device_errors

import onnxruntime as ort

if TYPE_CHECKING:
    from sol_rt.engine.providers import Provider


class DeviceRunners:
    """The runners of a bundle on one GPU, with the weights, the KV cache and the step buffers there.

    Function bodies need a runner for each combination of active channels and KV density. Their graphs get the counts as
    constants, because reading counts from the GPU would make the host wait. Native operators read the counts
    themselves.

    Args:
        bundle: the bundle.
        provider: the GPU's provider.
        weights: the mapped weights file.
        buffers: inputs and results of decode steps in main memory.
        sums: computes the softmax sums of a row of logits.

    Attributes:
        cache: the KV cache, on the GPU.
        graphs: the sessions.
        inputs: the step buffers on the GPU.

    Raises ProviderError where the GPU has too little memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        weights: SharedWeights,
        buffers: StepBuffers,
        sums: Callable[[np.ndarray], SoftmaxSums],
    ) -> None:
        config, memory = bundle.config, provider.memory()
        self.cache = KvCache(config.model, config.kv, memory, codes=provider.native)
        self.states: States | None = None  # the engine chooses no GPU for a bundle with states
        shape = logit_summary.summary_shape(config.model.vocab_size)
        summary = None if shape is None else LogitSummary(*shape)
        self.inputs = DeviceInputs(memory, buffers, summary, sums)
        self.graphs = DeviceGraphs(bundle, provider, memory, weights, step_signature(config, self.cache), shape)
        self._native = provider.native
        self._where = f"provider {provider.name}: {provider.device_name}"
        self._runners: dict[Kind, DeviceRunner] = {}
        self._loaded: set[str] = set()  # keys of variants

    @property
    def device_weight_bytes(self) -> int:
        """Bytes of weights in the GPU's memory."""
        return self.graphs.weights.size_bytes

    @property
    def captured_graphs(self) -> int:
        """Number of sessions whose commands the GPU recorded and repeats."""
        return self.graphs.captured

    def runner(self, variant: Variant, channels: np.ndarray, kv_density: float) -> DeviceRunner:
        """The runner of a variant: see `Runners.runner`."""
        self._loaded.add(variant.key)
        counts, chosen, every = (b"", None, None) if self._native else (channels.tobytes(), kv_density, 1.0)
        step = Kind(variant.file, variant.precision.widest, counts, chosen, one_token=True)
        runner = self._runners.get(step)
        if runner is None:
            batch = Kind(variant.file, variant.precision.widest, counts, every, one_token=False)
            runner = DeviceRunner(self.graphs, step, batch, self.cache, self.inputs, self._where)
            self._runners[step] = runner
        return runner

    def release(self) -> None:
        """Forgets the buffers of the KV cache in every runner, as they are about to be replaced."""
        for runner in self._runners.values():
            runner.release()

    def is_loaded(self, variant: Variant) -> bool:
        """True if the variant has a runner, and so a session from its first run on."""
        return variant.key in self._loaded


class DeviceRunner:
    """One action's two graphs on the GPU: a graph for steps, captured if the provider can do that, and one for batches.

    Args:
        graphs: the sessions.
        step, batch: which sessions to use for steps and for batches.
        cache: the KV cache on the GPU.
        inputs: the step buffers on the GPU.
        where: the provider and the GPU, for messages.
    """

    def __init__(
        self, graphs: DeviceGraphs, step: Kind, batch: Kind, cache: KvCache, inputs: DeviceInputs, where: str
    ) -> None:
        self._graphs, self._kinds = graphs, (step, batch)
        self._cache, self._inputs, self._where = cache, inputs, where
        self._step: tuple[OpenGraph, ort.IOBinding] | None = None
        self._batch: tuple[OpenGraph, ort.IOBinding] | None = None

    def open(self) -> None:
        """Makes the session for decode steps now. Raises BundleError, ProviderError."""
        self._graphs.open(self._kinds[0])

    def release(self) -> None:
        """Forgets the buffers of the KV cache, which are about to be replaced."""
        if self._step is not None:
            self._step[0].release_capture()
        self._step = self._batch = None

    def step(self) -> StepOutput:
        """Runs the token in the step buffers and waits for the results: see `Runner.step`."""
        if self._step is None:
            self._step = self._open_step()
        graph, binding = self._step
        with self._errors(graph):
            self._inputs.send()
            graph.run(binding)
            self._inputs.receive()
        return self._inputs.output()

    def _open_step(self) -> tuple[OpenGraph, ort.IOBinding]:
        graph = self._graphs.open(self._kinds[0])
        if self._graphs.captures or graph.captured:  # what is captured is tried again with a longer cache
            with self._errors(graph), self._inputs.kept():
                graph.try_capture(self._cache, self._inputs)
        if graph.refused or (
            graph.may_capture and not self._graphs.captures and not graph.captured
        ):  # a session that captures keeps more memory, captured or not
            graph = self._graphs.open_plain(self._kinds[0])
        with self._errors(graph):
            binding = graph.bound(self._cache.bindings(), self._inputs)
            self._inputs.bind_results(binding)
        return graph, binding

    def batch(self, ids: np.ndarray, logits: np.ndarray, hidden: np.ndarray) -> None:
        """Runs tokens int64 [S] and fills logits [n, vocab] and hidden [n, hidden]: see `Runner.batch`."""
        if self._batch is None:
            graph = self._graphs.open(self._kinds[1])
            with self._errors(graph):
                self._batch = graph, graph.bound(self._cache.bindings(), self._inputs)
        graph, binding = self._batch
        wrap = ort.OrtValue.ortvalue_from_numpy
        with self._errors(graph):
            binding.bind_ortvalue_input("input_ids", wrap(ids[None]))  # copies it to the GPU
            binding.bind_ortvalue_input("num_logits", wrap(np.array([len(logits)], np.int64)))
            binding.bind_ortvalue_output("logits", wrap(logits))
            binding.bind_ortvalue_output("hidden_states", wrap(hidden))
            self._inputs.send()
            graph.run(binding)

    def _errors(self, graph: OpenGraph) -> AbstractContextManager[None]:
        return device_errors(self._where, graph.file)
