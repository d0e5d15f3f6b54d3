"""Sessions on a GPU, all of which read one copy of the weights, and the capture of their runs.

A provider that captures records the commands of a run once and sends them again in every later run.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.gpu.device_cache import DeviceCache
from sol_rt.engine.gpu.device_inputs import DeviceInputs
from sol_rt.engine.gpu.device_memory import DeviceMemory
from sol_rt.engine.gpu.device_weights import DeviceWeights
from sol_rt.engine.gpu.gpu_graphs import KERNELS, GpuGraphs, Value
from sol_rt.engine.signature import CHANNEL_INPUTS, Signature, check_signature
from sol_rt.errors import ProviderError

import onnxruntime as ort

if TYPE_CHECKING:
    from sol_rt.engine.providers import Provider

_MAY_BE_CONSTANT = {"kv_pages", "num_logits", *CHANNEL_INPUTS}
_CAPTURE_ERROR = 1e-5
"""Largest difference of a captured run from a plain one, relative to the largest number."""


def _graph_options(number: int) -> ort.RunOptions:
    """Options of a run that is captured as graph `number` or repeats that graph; -1 does neither."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


class Kind(NamedTuple):
    """A graph, as `gpu_graphs.member` names it.

    Attributes:
        run: `step` or `batch`.
        key: the graph file, the action's tag or the variant's key.
    """

    run: str
    key: str

    @property
    def one_token(self) -> bool:
        """True if it takes one token and gives one row of logits, as a decode step does."""
        return self.run == "step"


class DeviceGraphs:
    """The sessions of a bundle on one GPU, made when first used.

    Args:
        bundle: the bundle.
        provider: the GPU's provider.
        memory: the GPU's memory.
        stored: the mapped weights file.
        signature: the inputs and outputs that every graph has.

    Attributes:
        weights: the weights on the GPU.
        captures: whether sessions for steps are made so that their runs can be captured.

    Raises BundleError, and ProviderError where the bundle has no graphs for the GPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        memory: DeviceMemory,
        stored: SharedWeights,
        signature: Signature,
    ) -> None:
        self._provider, self._stored, self._signature = provider, stored, signature
        form = KERNELS if provider.native else provider.floats
        self._graphs = GpuGraphs(bundle, form, provider.name)
        self.weights = DeviceWeights(stored, memory)
        self._memory = memory
        self.captures = provider.can_capture
        self._opened: dict[Kind, OpenGraph] = {}

    @property
    def captured(self) -> int:
        """Number of sessions whose runs are captured."""
        return sum(graph.captured for graph in self._opened.values())

    def open(self, kind: Kind) -> OpenGraph:
        """The session of this kind, made when first asked for. Raises BundleError, ProviderError."""
        if kind not in self._opened:
            self._opened[kind] = self._make(kind)
        return self._opened[kind]

    def open_plain(self, kind: Kind) -> OpenGraph:
        """Replaces a session by one that captures nothing. Later sessions capture nothing either."""
        self.captures = False
        del self._opened[kind]
        return self.open(kind)

    def _make(self, kind: Kind) -> OpenGraph:
        model = self._graphs.read(*kind)
        capture = self.captures and kind.one_token
        try:
            session = self._session(kind, model, capture)
        except ProviderError:
            if not capture:
                raise
            # a provider that cannot capture this graph cannot capture another one of the bundle
            capture = self.captures = False
            session = self._session(kind, model, capture)
        names = [node.name for node in session.get_inputs()]
        values = self._graphs.values(names)
        inputs, outputs = self._signature
        inputs = {name: wanted for name, wanted in inputs.items() if name in names or name not in _MAY_BE_CONSTANT}
        check_signature(self._graphs.path, session, (inputs, outputs), ignored={value.name for value in values})
        self.weights.place(values)
        self._stored.require_unchanged()  # afterwards, so that no weights come of a file that was just written to
        opened = OpenGraph(kind.key, session, values, self.weights, capture)
        if capture and self._provider.name == "cuda":
            weakref.finalize(opened, _let_go, session, self._memory)
        return opened

    def _session(self, kind: Kind, model: bytes, capture: bool) -> ort.InferenceSession:
        options = self._provider.options()
        return self._provider.session(self._graphs.path / kind.key, options, model, capture=capture)


def _let_go(session: ort.InferenceSession, memory: DeviceMemory) -> None:
    """Called when a session that captures is no longer used.

    If the GPU is lost, the session is kept until the process ends: freeing a captured graph would end the process at
    once.
    """
    if memory.lost():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


class OpenGraph:
    """A session on the GPU and its weights.

    Attributes:
        file: the graph's key, for messages.
        session: the session.
        captured: whether later runs repeat a recorded one.
        refused: whether a trial of that gave other numbers.
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
        self._captured_options: ort.RunOptions | None = None  # graph 0 needs none, which saves time
        self._values, self._weights = values, weights
        mine = {value.name for value in values}
        self._small = {node.name for node in session.get_inputs()} - mine
        self._on_host = set()
        if not capture:
            places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
            self._on_host = {node.name for node, place in places if place.name.lower().startswith("cpu")}

    def bound(self, cache: Iterable[tuple[str, str, ort.OrtValue]], inputs: DeviceInputs) -> ort.IOBinding:
        """A binding of the weights, the cache and the small inputs.

        Kernels that want an input in main memory get it there.
        """
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
        """True if the session was made so that its runs can be captured."""
        return self._uncaptured is not None

    def run(self, binding: ort.IOBinding) -> None:
        """Runs once, by repeating the captured run if there is one."""
        plain = not self.captured and self._uncaptured is not None
        self.session.run_with_iobinding(binding, self._uncaptured if plain else self._captured_options)

    def try_capture(self, cache: DeviceCache, inputs: DeviceInputs) -> None:
        """Tries whether captured runs give the same numbers as plain runs. If so, later runs are captured.

        A provider may record less than its kernels do: WebGPU leaves out copies between buffers, and sizes that a
        kernel computes in main memory. So a warm-up, the run that is captured, and repetitions at other lengths are
        compared with plain runs. They use a cache in which all layers share one layer's buffers. What is right with a
        short cache need not be right with a long one, so the trial is repeated when the capacity has doubled. Where
        there is no memory for one, runs are plain until the cache is next replaced, and that one is tried anew.
        """
        if self._uncaptured is None or cache.capacity < 2 * self._tried_capacity:
            return
        self._tried_capacity = cache.capacity
        right: bool | None = None
        try:
            right = self._captures_right(cache, inputs)
        except ProviderError:
            self._tried_capacity = 0
        except Exception:  # ONNX Runtime's exceptions share no useful base; kernels that cannot be captured raise here
            right = False
        self.release_capture()
        self.captured, self.refused = right is True, right is False

    def _captures_right(self, cache: DeviceCache, inputs: DeviceInputs) -> bool:
        size = cache.capacity
        lengths = (size // 2, size // 2 + 1, size // 2 + 2, size // 4, size - 1)
        outcomes: list[dict[str, np.ndarray]] = []
        # all plain runs come first: a repetition must not find in the buffers what a plain run of the same length left
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
        """Frees the captured run, because its buffers are about to be freed."""
        if not self.captured:
            return
        if "WebGpuExecutionProvider" in self.session.get_providers():
            self.session.release_captured_graph(0)
        else:  # CUDA keeps what it captured, so the next one gets another number
            self._graph_number += 1
            self._captured_options = _graph_options(self._graph_number)
