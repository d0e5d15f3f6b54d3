"""`GpuEngine`: runs a bundle's graphs on one GPU, for a session of the native core.

The core chooses the action, counts the tokens and samples. It asks this engine for a run through the callbacks of
`generate/native/host_engine.py`, and takes logits and hidden states back to main memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.cache_layout import CacheLayout
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.distribution import Distribution
from sol_rt.engine.gpu.device_cache import DeviceCache
from sol_rt.engine.gpu.device_inputs import DeviceInputs
from sol_rt.engine.gpu.device_sessions import DeviceGraphs, Kind, OpenGraph
from sol_rt.engine.signature import step_signature
from sol_rt.engine.step import StepOutput
from sol_rt.errors import ContextError, NumericError, ProviderError, UsageError, device_errors

import onnxruntime as ort

if TYPE_CHECKING:
    from sol_rt.engine.providers import Provider

_CHUNK = 512  # tokens of a prompt that run at once


class _Plan(NamedTuple):
    """Graph and inputs by which an action runs.

    Attributes:
        step, batch: the sessions for one token, and for several.
        channels: int64 [4, L], active channels as the graph takes them: 0 for all of them, which saves sorting.
    """

    step: Kind
    batch: Kind
    channels: np.ndarray


class GpuEngine:
    """The weights, the KV cache and the sessions of a bundle on one GPU.

    Function bodies need a session for each combination of active channels and KV density. Their graphs have the counts
    as constants, because reading counts from the GPU would make the host wait. Native operators read the counts
    themselves. Each session for steps is captured if the provider can do that.

    Args:
        bundle: the bundle.
        provider: the GPU's provider.

    Attributes:
        cache: the KV cache.
        graphs: the sessions.
        length: tokens in the cache.

    Raises BundleError, and ProviderError where the GPU has too little memory for the dense variant.
    """

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        config, memory = bundle.config, provider.memory()
        self._bundle, self._provider = bundle, provider
        self.cache = DeviceCache(CacheLayout(config.model, config.kv, memory.floats), memory, codes=provider.native)
        self.graphs = DeviceGraphs(
            bundle, provider, memory, SharedWeights(bundle), step_signature(config, self.cache.layout)
        )
        self.length = 0
        self._inputs = DeviceInputs(memory, config)
        self._plans: dict[Action, _Plan] = {}
        self._bound: dict[Kind, tuple[OpenGraph, ort.IOBinding]] = {}
        self._where = f"provider {provider.name}: {provider.device_name}"
        self.open(config.dense)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in the GPU's memory."""
        return self.graphs.weights.size_bytes

    def open(self, action: Action) -> None:
        """Makes the session of an action's steps now instead of at the first. Raises BundleError, ProviderError."""
        self.graphs.open(self._plan(action).step)

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens of the cache. Raises UsageError if there are fewer."""
        if not 0 <= length <= self.length:
            what = f"the KV cache on {self._provider.device_name}: got {length} tokens to keep"
            raise UsageError(f"{what}, expected 0 to {self.length}, those that are left; begin anew with reset()")
        self.length = length

    def reusable_prefix(self, length: int) -> int:
        """Number of the first `length` tokens that need no re-run after `truncate(length)`: `length` or 0."""
        return length if length <= self.length else 0

    def forward(self, tokens: Sequence[int], action: Action, *, num_logits: int = 1) -> StepOutput:
        """Appends tokens to the cache and returns the output of the last `num_logits` of them.

        One token is a decode step under `action`. Several tokens run in chunks through the action's variant with
        attention to all tokens. A call that fails leaves a prefix of the tokens in the cache, and `length` says how
        many. The next call may overwrite the output.

        Args:
            tokens: token ids of the vocabulary, [S].
            action: the action to run; its variant is in the bundle.
            num_logits: how many of the last tokens to return results for, 1 to S.

        Raises BundleError, ProviderError, ContextError where the GPU has no memory for the cache, NumericError for
        results that are not finite, DeviceError where the GPU fails.
        """
        ids = np.asarray(tokens, np.int64)
        self._make_room(self.length + ids.size)
        if ids.size == 1:
            self._step(ids, action)
            logits, hidden = self._inputs.logits, self._inputs.hidden
        else:
            model = self._bundle.config.model
            logits = np.empty((num_logits, model.vocab_size), np.float32)
            hidden = np.empty((num_logits, model.hidden_size), np.float32)
            self._batch(ids, action, logits, hidden)
        return StepOutput(logits, hidden, Distribution(logits[-1]))

    def _step(self, ids: np.ndarray, action: Action) -> None:
        """Runs one token, int64 [1]; its results are in the inputs' buffers."""
        inputs, plan = self._inputs, self._plan(action)
        inputs.channels[:] = plan.channels
        inputs.set_step(int(ids[0]), self.length, action.pages(self.length, self._bundle.config.kv.page_size))
        graph, binding = self._step_binding(plan.step)
        with self._errors(graph):
            inputs.send()
            graph.run(binding)
            inputs.receive()
        if not (_finite(inputs.logits) and _finite(inputs.hidden)):
            self._refuse(action, 1)
        self.length += 1

    def _batch(self, ids: np.ndarray, action: Action, logits: np.ndarray, hidden: np.ndarray) -> None:
        """Runs tokens int64 [S] and fills logits [n, vocab] and hidden [n, hidden] with the results of the last n."""
        _, kind, channels = self._plan(action)
        if kind not in self._bound:
            graph = self.graphs.open(kind)
            with self._errors(graph):
                self._bound[kind] = graph, graph.bound(self.cache.bindings(), self._inputs)
        graph, binding = self._bound[kind]
        self._inputs.channels[:] = channels
        wrap, size = ort.OrtValue.ortvalue_from_numpy, self._provider.most_tokens or _CHUNK
        first_wanted = ids.size - len(logits)
        for start in range(0, ids.size, size):
            chunk = ids[start : start + size]
            rows = slice(max(start - first_wanted, 0), start + chunk.size - first_wanted)
            if rows.stop <= rows.start:  # a graph always computes one row; a later chunk writes over this one
                rows = slice(1)
            self._inputs.set_batch(self.length, chunk.size)
            with self._errors(graph):
                binding.bind_ortvalue_input("input_ids", wrap(chunk[None]))  # copies it to the GPU
                binding.bind_ortvalue_input("num_logits", wrap(np.array([len(logits[rows])], np.int64)))
                binding.bind_ortvalue_output("logits", wrap(logits[rows]))
                binding.bind_ortvalue_output("hidden_states", wrap(hidden[rows]))
                self._inputs.send()
                graph.run(binding)
            if not (_finite(logits[rows]) and _finite(hidden[rows])):
                self._refuse(action, chunk.size)
            self.length += chunk.size

    def _step_binding(self, kind: Kind) -> tuple[OpenGraph, ort.IOBinding]:
        """The session of a step and its binding, after it was tried whether the session's runs can be captured."""
        if kind in self._bound:
            return self._bound[kind]
        graph, inputs = self.graphs.open(kind), self._inputs
        if self.graphs.captures or graph.captured:  # what is captured is tried again with a longer cache
            with self._errors(graph), inputs.kept():
                graph.try_capture(self.cache, inputs)
        if graph.refused or (
            graph.may_capture and not self.graphs.captures and not graph.captured
        ):  # a session that captures keeps more memory, captured or not
            graph = self.graphs.open_plain(kind)
        with self._errors(graph):
            binding = graph.bound(self.cache.bindings(), inputs)
            inputs.bind_results(binding)
        self._bound[kind] = graph, binding
        return graph, binding

    def _plan(self, action: Action) -> _Plan:
        """Graph and inputs of an action; found when first asked for."""
        if action not in self._plans:
            variant, model = self._bundle.config.variants[action.variant], self._bundle.config.model
            channels = np.array(
                [np.array(getattr(variant, name)) % most for name, most in model.channels.items()], np.int64
            )
            keys = (variant.file, variant.file) if self._provider.native else (action.tag, variant.key)
            self._plans[action] = _Plan(Kind("step", keys[0]), Kind("batch", keys[1]), channels)
        return self._plans[action]

    def _make_room(self, tokens: int) -> None:
        """Makes the cache large enough for `tokens` tokens. Raises ContextError where the GPU has no memory for it."""
        if tokens <= self.cache.capacity:
            return
        capacity = self.cache.layout.capacity_for(tokens)
        for graph, _ in self._bound.values():
            graph.release_capture()
        self._bound.clear()
        try:
            self.cache.resize(capacity, self.length)
        except BaseException as error:  # some tensors have grown, some have not
            self.cache.free()
            self.length = 0
            if not isinstance(error, ProviderError):
                raise
            what = f"context: a KV cache of {tokens} tokens needs {self.cache.layout.bytes_at(capacity) / 1e6:.0f} MB"
            where = self._provider.device_name
            raise ContextError(f"{what}, more than is free on {where}; shorten the prompt") from None

    def _refuse(self, action: Action, appended: int) -> NoReturn:
        """Raises NumericError, after clearing the `appended` tokens of the failed run from the cache."""
        self.cache.wipe(self.length, self.length + appended)
        what = f"{self._bundle.path}: variant {action.variant} gave non-finite numbers at token {self.length}"
        raise NumericError(f"{what}; check the bundle with `sol-rt verify`")

    def _errors(self, graph: OpenGraph) -> AbstractContextManager[None]:
        return device_errors(self._where, graph.file)


def _finite(values: np.ndarray) -> bool:
    """True if all values are finite. Checks only the extremes: NaN makes both of them NaN."""
    return math.isfinite(np.maximum.reduce(values, None)) and math.isfinite(np.minimum.reduce(values, None))
