"""Steps and batches on a GPU: sessions that read one copy of the weights and one cache, and the small tensors between.

Small inputs and the results lie on the GPU at fixed addresses, so that a captured graph finds them there. They are
written before a step where they changed. After it the hidden state and a summary of the logits are read, and the logits
themselves where something asks for them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnxruntime as ort

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import Variant
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.distribution import Distribution, SoftmaxSums
from sol_rt.engine.gpu import logit_summary
from sol_rt.engine.gpu.device_graph import Value, device_graph
from sol_rt.engine.gpu.device_memory import DeviceMemory
from sol_rt.engine.gpu.device_weights import DeviceWeights
from sol_rt.engine.gpu.logit_summary import LogitSummary, SummarisedDistribution
from sol_rt.engine.kv_cache import KvCache
from sol_rt.engine.signature import CHANNEL_INPUTS, SPARSE_DIMS, Signature, check_signature, step_signature
from sol_rt.engine.step import StepBuffers, StepOutput
from sol_rt.errors import ProviderError, device_errors

if TYPE_CHECKING:
    from sol_rt.engine.providers import Provider

_CAPTURE_ERROR = 1e-5
"""Of the largest number: by how much a captured run may differ from a plain one."""


def _graph_options(number: int) -> ort.RunOptions:
    """Options of a run that is captured as graph `number`, or repeats it; of -1 neither."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


class DeviceInputs:
    """The step buffers on the GPU, and how they are copied between there and main memory.

    Args:
        memory: the GPU's memory.
        buffers: inputs and results of decode steps in main memory. A step takes what the inputs hold when it starts
            and fills the results, but for the logits if there is a summary of them.
        summary: the summary of logits that graphs compute, or None if they compute none.
        sums: computes the softmax sums of a row of logits.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        buffers: StepBuffers,
        summary: LogitSummary | None,
        sums: Callable[[np.ndarray], SoftmaxSums],
    ) -> None:
        self._memory, self._buffers, self.summary, self._sums = memory, buffers, summary, sums
        self._inputs = memory.mirror(buffers.inputs)
        self.inputs = self._inputs.values
        self.host_inputs = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in buffers.inputs.items()}
        results = buffers.results if summary is None else {**buffers.results, **summary.arrays}
        self._results = memory.mirror(results, apart=["logits"])
        self._logits_are_here = self._logits_were_asked_for = False

    def send(self) -> None:
        """Writes what changed in main memory since the last time."""
        self._inputs.send()

    def receive(self) -> None:
        """Reads the results of the step before, and waits for them: the logits where there is no summary, or where
        those of the step before that were asked for, as these will be then.
        """
        self._logits_are_here = self.summary is None or self._logits_were_asked_for
        self._logits_were_asked_for = False
        self._results.receive([name for name in self._results.values if name != "logits" or self._logits_are_here])

    def output(self) -> StepOutput:
        """Output of the step whose results were received: its logits stay on the GPU where there is a summary."""
        if self.summary is not None:
            return StepOutput(None, self._buffers.hidden, SummarisedDistribution(self.summary, self.logits))
        logits = self._buffers.logits
        return StepOutput(logits, self._buffers.hidden, Distribution(logits[0], self._sums))

    def logits(self) -> np.ndarray:
        """Logits of the step before, float32 [vocab]. Raises DeviceError where they cannot be fetched."""
        self._logits_were_asked_for = True
        if not self._logits_are_here:
            self._memory.fetch(self._results, ["logits"])
            self._logits_are_here = True
        return np.asarray(self._results.arrays["logits"][0])

    def bind_results(self, binding: ort.IOBinding) -> None:
        """Binds the results to a graph's outputs."""
        for name, value in self._results.values.items():
            binding.bind_ortvalue_output(name, value)

    def pretend(self, length: int) -> None:
        """Makes the next step one behind `length` tokens."""
        arrays = self._inputs.arrays
        arrays["past_length"][0], arrays["total_length"][0] = length, length + 1
        self.send()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Puts the inputs back to what they were, afterwards."""
        before = {name: array.copy() for name, array in self._inputs.arrays.items()}
        try:
            yield
        finally:
            for name, array in self._inputs.arrays.items():
                array[:] = before[name]

    def all_results(self) -> dict[str, np.ndarray]:
        """Copies of all results of the step before."""
        self._results.receive(list(self._results.values))
        return {name: array.copy() for name, array in self._results.arrays.items()}


class Kind(NamedTuple):
    """What a session is made for.

    Attributes:
        file: the graph file.
        bits: most bits of its layers' matrices.
        channels: int64 [4, L] as bytes, counts of active channels; empty where it reads them at every step.
        kv_density: share of the old tokens that its steps attend; None where it reads how many at every step.
        one_token: whether it takes one token and gives one row of logits.
    """

    file: str
    bits: int
    channels: bytes
    kv_density: float | None
    one_token: bool


class DeviceGraphs:
    """The sessions of a bundle on one GPU, made when first used.

    Args:
        bundle: the bundle.
        provider: the GPU's provider.
        memory: its memory.
        stored: the weights file.
        signature: what a graph's inputs and outputs are.
        summary: rows and width of a summary of the logits that graphs of steps are to give.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        memory: DeviceMemory,
        stored: SharedWeights,
        signature: Signature,
        summary: tuple[int, int] | None = None,
    ) -> None:
        self._bundle, self._provider, self._stored = bundle, provider, stored
        self._signature, self._summary = signature, summary
        self.weights = DeviceWeights(stored, memory)
        self._memory = memory
        self.captures = provider.can_capture
        self._opened: dict[Kind, OpenGraph] = {}

    @property
    def captured(self) -> int:
        """Sessions whose runs are captured."""
        return sum(graph.captured for graph in self._opened.values())

    def open(self, kind: Kind) -> OpenGraph:
        """Raises BundleError, ProviderError."""
        if kind not in self._opened:
            self._opened[kind] = self._make(kind)
        return self._opened[kind]

    def open_plain(self, kind: Kind) -> OpenGraph:
        """Replaces a session by one that captures nothing, which no later one shall then either."""
        self.captures = False
        del self._opened[kind]
        return self.open(kind)

    def _make(self, kind: Kind) -> OpenGraph:
        self._stored.check(kind.file)
        path = self._bundle.file(kind.file)
        constants: dict[str, np.ndarray] = {}
        if kind.channels:
            counts = np.frombuffer(kind.channels, np.int64).reshape(len(CHANNEL_INPUTS), -1)
            for name, count in zip(CHANNEL_INPUTS, counts if counts.any() else counts[:, :0], strict=True):
                constants[name] = count
        if kind.kv_density == 1.0:
            constants["kv_pages"] = np.zeros(0, np.int64)
        if kind.one_token:
            constants["num_logits"] = np.ones(1, np.int64)
        layers = dict.fromkeys(SPARSE_DIMS, self._bundle.config.model.num_layers)
        graph = device_graph(
            path,
            inline=not self._provider.native,
            bits=kind.bits,
            kv=self._bundle.config.kv,
            constants=constants,
            dims=layers,
            one_token=kind.one_token,
            float32=self._provider.floats == "float32",
            summary=self._summary if kind.one_token else None,
            kv_density=1.0 if kind.kv_density is None else kind.kv_density,
        )
        self.weights.place(graph.values)
        capture = self.captures and kind.one_token
        try:
            session = self._session(kind, graph.model, capture)
        except ProviderError:
            if not capture:
                raise
            # what the provider does not capture, another graph of the bundle will not let it either
            capture = self.captures = False
            session = self._session(kind, graph.model, capture)
        ignored = {value.name for value in graph.values} | {logit_summary.PARTS, logit_summary.PLACES}
        inputs, outputs = self._signature
        inputs = {name: wanted for name, wanted in inputs.items() if name not in constants}
        check_signature(path, session, (inputs, outputs), ignored=ignored)
        opened = OpenGraph(kind.file, session, graph.values, self.weights, capture)
        if capture and self._provider.name == "cuda":
            weakref.finalize(opened, _let_go, session, self._memory)
        return opened

    def _session(self, kind: Kind, model: bytes, capture: bool) -> ort.InferenceSession:
        options = self._provider.options()
        return self._provider.session(self._bundle.file(kind.file), options, model, capture=capture)


def _let_go(session: ort.InferenceSession, memory: DeviceMemory) -> None:
    """Comes when a session that captures is used no more. On a GPU that is lost it is kept to the process' end, as
    letting go of a captured graph would end the process there and then.
    """
    if memory.lost():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


class OpenGraph:
    """A session on the GPU and its weights.

    Attributes:
        captured: whether the provider repeats a recorded run.
        refused: whether that gave other numbers.
    """

    def __init__(
        self,
        file: str,
        session: ort.InferenceSession,
        values: tuple[Value, ...],
        weights: DeviceWeights,
        capture: bool,
    ) -> None:
        self.file, self.session = file, session
        self.captured = self.refused = False
        self._tried_capacity = 0
        self._uncaptured = _graph_options(-1) if capture else None
        self._graph_number = 0
        self._captured_options: ort.RunOptions | None = None  # graph 0 takes none, which spares time
        self._values, self._weights = values, weights
        mine = {value.name for value in values}
        self._small = {node.name for node in session.get_inputs()} - mine
        self._on_host = set()
        if not capture:
            places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
            self._on_host = {node.name for node, place in places if place.name.lower().startswith("cpu")}

    def bound(self, cache: Iterable[tuple[str, str, ort.OrtValue]], inputs: DeviceInputs) -> ort.IOBinding:
        """A binding of weights, cache and small inputs; those that the kernels want in main memory are bound there."""
        binding = self.session.io_binding()
        self._weights.bind(binding, self._values)
        for past, present, value in cache:
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        for name in self._small.intersection(inputs.inputs):
            source = inputs.host_inputs if name in self._on_host else inputs.inputs
            binding.bind_ortvalue_input(name, source[name])
        return binding

    @property
    def may_capture(self) -> bool:
        """Whether the session was made for captured runs."""
        return self._uncaptured is not None

    def run(self, binding: ort.IOBinding) -> None:
        """Runs once, captured where that was found to be right."""
        plain = not self.captured and self._uncaptured is not None
        self.session.run_with_iobinding(binding, self._uncaptured if plain else self._captured_options)

    def try_capture(self, cache: KvCache, inputs: DeviceInputs) -> None:
        """Finds out whether captured runs give what plain ones do, and has later runs captured if so.

        A provider may record less than its kernels do: WebGPU leaves out copies between buffers, and sizes that a
        kernel computes in main memory. So a warm-up, the run that is captured and repetitions with other lengths are
        compared with plain runs, in a cache of which all layers share the buffers of one. What is right with a short
        cache need not be with a long one: it is tried again where the capacity has doubled.
        """
        if self._uncaptured is None or cache.capacity < 2 * self._tried_capacity:
            return
        self._tried_capacity = cache.capacity
        try:
            right = self._captures_right(cache, inputs)
        except Exception:  # ONNX Runtime's exceptions share no useful base; kernels that cannot be captured raise here
            right = False
        self.release_capture()
        self.captured, self.refused = right, not right

    def _captures_right(self, cache: KvCache, inputs: DeviceInputs) -> bool:
        size = cache.capacity
        lengths = (size // 2, size // 2 + 1, size // 2 + 2, size // 4, size - 1)
        outcomes: list[dict[str, np.ndarray]] = []
        # one after the other: what a plain run leaves in buffers, a repetition must not find there
        for self.captured in (False, True):
            binding = self.bound(cache.scratch_bindings(), inputs)
            inputs.bind_results(binding)
            for length in lengths:
                inputs.pretend(length)
                self.run(binding)
                outcomes.append(inputs.all_results())
        for name in outcomes[0]:
            expected, got = np.split(np.array([outcome[name] for outcome in outcomes]), 2)
            if not np.allclose(got, expected, 0, _CAPTURE_ERROR * np.abs(expected).max(), equal_nan=True):
                return False
        return True

    def release_capture(self) -> None:
        """Forgets the captured run, whose buffers are about to go."""
        if not self.captured:
            return
        if "WebGpuExecutionProvider" in self.session.get_providers():
            self.session.release_captured_graph(0)
        else:  # CUDA keeps what it captured: the next one gets another number
            self._graph_number += 1
            self._captured_options = _graph_options(self._graph_number)


class DeviceRunners:
    """The runners of a bundle on one GPU, with the weights, the KV cache and the step buffers there.

    Function bodies need a runner for each combination of active channels and KV density: their graphs get the counts as
    constants, as reading counts from the GPU would make the host wait. Native operators read the counts themselves.

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
        self.cache = KvCache(config.model, config.kv, memory)
        shape = logit_summary.cut(config.model.vocab_size)
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
        """Whether the variant has a runner, and so a session from its first run on."""
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
        if self._graphs.captures:
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
