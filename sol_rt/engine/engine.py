"""Sessions, the KV cache and one step.

No sampling, no policy: tokens and an action in, logits and hidden states out.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import onnxruntime as ort

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import ModelDims, SolConfig, Variant
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine import providers
from sol_rt.engine.distribution import Distribution, native_sums, numpy_sums
from sol_rt.engine.kv_cache import KvCache
from sol_rt.engine.providers import Provider
from sol_rt.engine.signature import CHANNEL_INPUTS, SPARSE_DIMS, check_signature, step_signature
from sol_rt.errors import ContextError, DeviceError, NumericError, ProviderError, SolError, UsageError, one_line
from sol_rt.ops import library_path

if TYPE_CHECKING:
    from sol_rt.engine.gpu.device_runner import DeviceGraphs, DeviceRunner, Kind

_CHUNK = 512
_CPU_BODY_CHUNK = 128  # function bodies on the CPU hold the attention matrix of a whole chunk
_ALL_PAGES = 1 << 30


class StepOutput(NamedTuple):
    """What a step gives: a decode step views that the next one overwrites, a batch arrays of its own.

    Attributes:
        host_logits: the logits in main memory, None where they stay on a GPU.
        hidden: float32 [num_logits, hidden], the final norm's output.
        distribution: that of the last row of logits; holds while they do.
    """

    host_logits: np.ndarray | None
    hidden: np.ndarray
    distribution: Distribution

    @property
    def logits(self) -> np.ndarray:
        """float32 [num_logits, vocab], fetched where they lie on a GPU."""
        return self.distribution.logits[None] if self.host_logits is None else self.host_logits


class Engine:
    """Runs a bundle's variants on one KV cache. Not for use by several threads at once.

    Args:
        bundle: an opened bundle.
        provider: `auto`, `cpu`, `cuda` or `webgpu`.
        threads: size of the process-wide pool; all usable processors by default.
        native_ops: register the native operators that are built for the provider; without them the graphs' function
            bodies run.
        device: number of the GPU.
        max_context: a cap in tokens below the model's own.

    Attributes:
        native_ops: whether native operators may run, for the policy too, which is on the CPU.

    Raises BundleError, ProviderError, UsageError.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str = "auto",
        threads: int | None = None,
        native_ops: bool = True,
        device: int = 0,
        max_context: int | None = None,
    ) -> None:
        if max_context is not None and max_context < 1:
            raise UsageError(f"context size: got {max_context}, expected 1 or more tokens")
        self.bundle, self.native_ops = bundle, native_ops
        model = bundle.config.model
        self.max_context = min(model.max_context, max_context or model.max_context)
        self.weights = SharedWeights(bundle)
        self._inputs = _StepInputs(bundle.config)
        self._runners: dict[tuple[str, _Choices], _Runner] = {}
        self._device_runners: dict[Kind, DeviceRunner] = {}
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._loaded: set[str] = set()  # keys of variants
        self._changed: dict[str, Variant] = {}
        self._start(provider, threads=threads, native_ops=native_ops, device=device)
        self._plans: dict[Action, _Plan] = {}
        self._plan: _Plan | None = None
        self._page_size = bundle.config.kv.page_size
        self._tokens: list[int] = []
        self.owner: object = None  # whoever last filled the cache for itself
        self._sums = native_sums() if native_ops and library_path() else numpy_sums
        on_cpu = not self.native and self.provider.name == "cpu"
        self._chunk = self.provider.most_tokens or (_CPU_BODY_CHUNK if on_cpu else _CHUNK)

    def _start(self, name: str, **how: Any) -> None:
        """Chooses the provider and takes the memory there that every run needs.

        Where that memory is short, `auto` goes on to the next provider.
        """
        unfit = _unfit_providers(self.bundle)
        while True:
            self.provider = providers.choose(name, unfit=unfit, **how)
            try:
                self._start_on(self.provider)
                return
            except (ProviderError, DeviceError) as error:
                if name != "auto" or self.provider.gpu is None:
                    raise
                unfit[self.provider.name] = str(error).removeprefix(f"provider {self.provider.name}: ")
                self._device_runners.clear()  # they hold what was placed on that GPU
                vars(self).pop("_device_inputs", None)
                self._loaded.clear()

    def _start_on(self, provider: Provider) -> None:
        config = self.bundle.config
        self._graphs: DeviceGraphs | None = None
        if provider.gpu is None:
            self._cache = KvCache(config.model, config.kv)
            return
        memory = provider.memory()
        from sol_rt.engine.gpu import (
            device_runner,
            logit_summary,  # with onnx, which only the extras of GPUs bring
        )

        self._cache = KvCache(config.model, config.kv, memory)
        shape = logit_summary.cut(config.model.vocab_size)
        summary = None if shape is None else logit_summary.LogitSummary(*shape)
        self._device_inputs = device_runner.DeviceInputs(memory, self._inputs.arrays, self._inputs.results, summary)
        signature = step_signature(config, self._cache)
        self._graphs = device_runner.DeviceGraphs(self.bundle, provider, memory, self.weights, signature, shape)
        self.load([config.dense.variant])

    @property
    def device_weight_bytes(self) -> int:
        """Size of the weights on the GPU; 0 on the CPU."""
        return 0 if self._graphs is None else self._graphs.weights.size_bytes

    @property
    def captured_graphs(self) -> int:
        """Graphs whose commands the GPU repeats as they were recorded; 0 on the CPU."""
        return 0 if self._graphs is None else self._graphs.captured

    @property
    def provider_name(self) -> str:
        return self.provider.name

    @property
    def native(self) -> bool:
        """Whether native operators run, rather than the graphs' function bodies."""
        return self.provider.native

    @property
    def threads(self) -> int:
        return self.provider.threads

    @property
    def machine(self) -> tuple[str, int, bool, str]:
        """What costs depend on: provider, threads, native operators or not, and the GPU, empty on the CPU: its name,
        and the type of floats where that is float32."""
        gpu, floats = self.provider.gpu, self.provider.floats
        name = "" if gpu is None else gpu.name if floats == "float16" else f"{gpu.name}, {floats}"
        return self.provider.name, self.threads, self.native, name

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens in the cache; not to be changed."""
        return self._tokens

    @property
    def capacity(self) -> int:
        """Tokens that the cache's buffers hold now."""
        return self._cache.capacity

    @property
    def loaded(self) -> tuple[str, ...]:
        """Keys of the variants whose graph has a session."""
        files = {file for file, _ in self._runners}  # on the CPU all variants of the same bits share one
        variants = self.bundle.config.variants.items()
        return tuple(key for key, variant in variants if variant.file in files or key in self._loaded)

    def load(self, variant_keys: Iterable[str]) -> None:
        """Makes the sessions of these variants now; others are made when first used.

        Raises BundleError, ProviderError.
        """
        for key in variant_keys:
            variant = self._variant(key)
            counts = _channels(variant, self.bundle.config.model)
            self._runner(variant, counts).open()

    def set_active_channels(self, variant_key: str, counts_by_name: Mapping[str, Sequence[int]]) -> None:
        """From now on the variant has these active channels, one count a layer; the bundle's where a name is left out.

        For the search of density levels. Args: counts by `active_up`, `active_down`, `active_qkv`, `active_o`.
        Raises UsageError where a count is out of range or one is missing.
        """
        model = self.bundle.config.model
        for name, counts in counts_by_name.items():
            channels = model.channels[name]
            if len(counts) != model.num_layers or not all(1 <= count <= channels for count in counts):
                said = f"{len(counts)} counts from {min(counts, default=0)} to {max(counts, default=0)}"
                raise UsageError(f"{name}: got {said}, expected {model.num_layers} counts from 1 to {channels}")
        given: dict[str, Any] = {name: tuple(counts) for name, counts in counts_by_name.items()}
        self._changed[variant_key] = replace(self._own_variant(variant_key), **given)
        self._plans = {action: plan for action, plan in self._plans.items() if action.variant != variant_key}

    def reset(self) -> None:
        """Forgets all tokens; buffers stay."""
        self.truncate(0)

    def truncate(self, length: int) -> None:
        """Rewinds to the first `length` tokens. Raises UsageError where there are fewer."""
        if not 0 <= length <= self.length:
            raise UsageError(f"truncate: got {length}, expected 0 to {self.length}, the tokens in the cache")
        del self._tokens[length:]

    def forward(self, tokens: Sequence[int] | np.ndarray, action: Action, *, num_logits: int = 1) -> StepOutput:
        """Appends tokens to the cache and returns the output of the last `num_logits` of them.

        One token is a decode step under `action`; more run in chunks through the action's variant with dense
        attention. A call that fails or is interrupted leaves a prefix of the tokens in the cache, and `length` says
        how many.

        Raises ContextError beyond `max_context`, UsageError for tokens outside the vocabulary, NumericError for results
        that are not finite.
        """
        vocabulary = self.bundle.config.model.vocab_size
        if len(tokens) == 1 and num_logits == 1:
            token = int(tokens[0])
            if not 0 <= token < vocabulary:
                raise UsageError(f"token {token}: expected 0 to {vocabulary - 1}")
            self._make_room(self.length + 1)
            return self._step(token, action)
        ids = np.asarray(tokens, np.int64)
        if ids.ndim != 1 or not 1 <= num_logits <= ids.size:
            raise UsageError(
                f"forward: got {ids.size} tokens and {num_logits} logits wanted, expected 1 to as many as tokens"
            )
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise UsageError(f"token {ids.min() if ids.min() < 0 else ids.max()}: expected 0 to {vocabulary - 1}")
        self._make_room(self.length + ids.size)
        return self._batch(ids, action, num_logits)

    def _step(self, token: int, action: Action) -> StepOutput:
        inputs, length = self._inputs, len(self._tokens)
        inputs.token[0, 0] = token
        inputs.past_length[0], inputs.total_length[0] = length, length + 1
        inputs.kv_pages[inputs.sparse_layers] = action.pages(length, self._page_size)
        self._prepare(action).step().step()
        if self._graphs is None or self._device_inputs.summary is None:
            output = StepOutput(inputs.logits, inputs.hidden, Distribution(inputs.logits[0], self._sums))
        else:
            output = StepOutput(None, inputs.hidden, self._device_inputs.distribution())
        # the same function for both: the step has driven all code out of the caches, and a second one would be fetched
        if not output.distribution.finite or self._sums(inputs.hidden[0]).top is None:
            self._refuse(action, 1)
        self._tokens.append(token)
        return output

    def _batch(self, ids: np.ndarray, action: Action, num_logits: int) -> StepOutput:
        runner, model = self._prepare(action).batch(), self.bundle.config.model
        logits = np.empty((num_logits, model.vocab_size), np.float32)
        hidden = np.empty((num_logits, model.hidden_size), np.float32)
        first_wanted = ids.size - num_logits
        self._inputs.kv_pages[:] = _ALL_PAGES  # kernels read it where the last chunk is one token
        for start in range(0, ids.size, self._chunk):
            chunk = ids[start : start + self._chunk]
            rows = slice(max(start - first_wanted, 0), start + chunk.size - first_wanted)
            self._inputs.past_length[0], self._inputs.total_length[0] = self.length, self.length + chunk.size
            if rows.stop <= rows.start:  # a graph always computes one row; a later chunk writes over this one
                rows = slice(1)
            into = logits[rows], hidden[rows]
            runner.batch(chunk, *into)
            if not all(map(_finite, into)):
                self._refuse(action, chunk.size)
            self._tokens += chunk.tolist()
        return StepOutput(logits, hidden, Distribution(logits[-1], self._sums))

    def _make_room(self, tokens: int) -> None:
        if tokens > self.max_context:
            size = f"{self._cache.bytes_at(self.capacity) / 1e6:.0f} MB of KV cache in use"
            limit = f"expected at most {self.max_context}"
            raise ContextError(f"context: got {tokens} tokens, {limit} ({size}); shorten the prompt or the answer")
        if tokens <= self.capacity:
            return
        capacity = self._cache.capacity_for(tokens)
        for runner in self._runners.values():
            runner.release()
        for device_runner in self._device_runners.values():
            device_runner.release()
        try:
            self._cache.resize(capacity, self.length)
        except (MemoryError, ProviderError):  # some buffers have grown, some have not
            self._cache.free()
            self.reset()
            needed = self._cache.bytes_at(capacity) / 1e6
            where = "" if self.provider.gpu is None else f" on {self.provider.device_name}"
            what = f"context: a KV cache of {tokens} tokens needs {needed:.0f} MB"
            raise ContextError(f"{what}, more than is free{where}; shorten the prompt") from None
        except DeviceError:
            self._cache.free()
            self.reset()
            raise

    def _refuse(self, action: Action, appended: int) -> NoReturn:
        """Raises NumericError; of the tokens that were run nothing stays in the cache."""
        self._cache.wipe(self.length, self.length + appended)
        what = f"{self.bundle.path}: variant {action.variant} gave non-finite numbers at token {self.length}"
        raise NumericError(f"{what}; check the bundle with `sol-rt verify`")

    def _prepare(self, action: Action) -> _Plan:
        """Tells the graph how many channels are active; returns what runs it."""
        plan = self._plans.get(action)
        if plan is None:
            plan = self._plans[action] = self._planned(action, self._variant(action.variant))
        if plan is not self._plan:
            self._inputs.channels[:] = plan.channels
            self._plan = plan
        return plan

    def _planned(self, action: Action, variant: Variant) -> _Plan:
        channels = _channels(variant, self.bundle.config.model)
        runner = self._runner
        return _Plan(lambda: runner(variant, channels, action.kv_density), lambda: runner(variant, channels), channels)

    def _variant(self, key: str) -> Variant:
        """As it is now."""
        return self._changed.get(key) or self._own_variant(key)

    def _own_variant(self, key: str) -> Variant:
        """As the bundle has it."""
        variants = self.bundle.config.variants
        if key not in variants:
            raise UsageError(f"variant {key}: not in this bundle, expected one of {', '.join(variants)}")
        return variants[key]

    def _runner(self, variant: Variant, channels: np.ndarray, kv_density: float = 1.0) -> _Runner | DeviceRunner:
        """What runs a variant with these active channels, as `_channels`, and attends this share of old tokens."""
        if self._graphs is not None:
            self._loaded.add(variant.key)
            return self._device_runner(self._graphs, variant, channels, kv_density)
        # kernels choose where they are told to, at no cost where they are not
        choices = _Choices(True, True) if self.native else _Choices(kv_density < 1.0, bool(channels.any()))
        key = variant.file, choices
        runner = self._runners.get(key)
        if runner is None:
            session = self._session(variant)
            runner = self._runners[key] = _Runner(variant.file, session, self._cache, self._inputs, choices)
            _return_freed_memory()
        return runner

    def _device_runner(
        self, graphs: DeviceGraphs, variant: Variant, channels: np.ndarray, kv_density: float
    ) -> DeviceRunner:
        """One for every choice: function bodies leave out what others need, and know the counts beforehand,
        for which they would have to ask the GPU and wait."""
        from sol_rt.engine.gpu.device_runner import DeviceRunner, Kind

        counts, chosen, every = (b"", None, None) if self.native else (channels.tobytes(), kv_density, 1.0)
        step = Kind(variant.file, variant.precision.widest, counts, chosen, one_token=True)
        runner = self._device_runners.get(step)
        if runner is None:
            where = f"provider {self.provider.name}: {self.provider.device_name}"
            batch = Kind(variant.file, variant.precision.widest, counts, every, one_token=False)
            runner = DeviceRunner(graphs, step, batch, self._cache, self._device_inputs, where)
            self._device_runners[step] = runner
        return runner

    def _session(self, variant: Variant) -> ort.InferenceSession:
        """One a graph file, on the CPU."""
        config, file = self.bundle.config, variant.file
        session = self._sessions.get(file)
        if session is not None:
            return session
        options = self.provider.options()
        if self.native:
            self.weights.attach(options, file)
            for name in SPARSE_DIMS:
                options.add_free_dimension_override_by_name(name, config.model.num_layers)
        else:
            self.weights.check(file)
            if variant.precision.widest == 8:  # 8 bits of activations would cost it more than its weights do
                options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        path = self.bundle.file(file)
        session = self._sessions[file] = self.provider.session(path, options)
        check_signature(path, session, step_signature(config, self._cache))
        return session


class _Choices(NamedTuple):
    """What a session can do: choose old tokens to attend to, and channels to multiply."""

    tokens: bool
    channels: bool


def _channels(variant: Variant, model: ModelDims) -> np.ndarray:
    """int64 [4, layers]: active channels as the graph takes them, 0 for all of them, which spares sorting."""
    return np.array([np.array(getattr(variant, name)) % most for name, most in model.channels.items()])


def _unfit_providers(bundle: Bundle) -> dict[str, str]:
    """Providers that cannot run the bundle, and why."""
    if bundle.config.kv.dtype != "int8":
        return {}
    why = f"has no operators on int8, the type of the KV cache of {bundle.path}"
    return {"webgpu": f"{why}; use --provider cpu, or export with --kv float16"}


class _StepInputs:
    """The small inputs and the outputs of a decode step, allocated once and shared by all variants.

    `sparse_layers` indexes the layers in `kv_pages` that may skip pages.
    """

    def __init__(self, config: SolConfig) -> None:
        model, dense = config.model, config.kv.dense_layers
        layers = model.num_layers
        self.token = np.zeros((1, 1), np.int64)
        self.past_length = np.zeros(1, np.int64)
        self.total_length = np.zeros(1, np.int32)
        self.kv_pages = np.full(layers, _ALL_PAGES, np.int64)
        self.channels = np.zeros((len(CHANNEL_INPUTS), layers), np.int64)
        self.sparse_layers = np.delete(np.arange(layers), dense) if dense else slice(None)
        self.num_logits = np.ones(1, np.int64)
        self.logits = np.zeros((1, model.vocab_size), np.float32)
        self.hidden = np.zeros((1, model.hidden_size), np.float32)
        self.arrays: dict[str, np.ndarray] = {
            "input_ids": self.token,
            "past_length": self.past_length,
            "kv_pages": self.kv_pages,
            **dict(zip(CHANNEL_INPUTS, self.channels, strict=True)),
            "num_logits": self.num_logits,
            "total_length": self.total_length,
        }
        self.results = {"logits": self.logits, "hidden_states": self.hidden}
        wrap = ort.OrtValue.ortvalue_from_numpy
        self._lengths = {"past_length": wrap(self.past_length), "total_length": wrap(self.total_length)}
        self._kv_pages, self._channel_values = wrap(self.kv_pages), [wrap(counts) for counts in self.channels]
        self._nothing = wrap(np.zeros(0, np.int64))
        self.step_inputs = {"input_ids": wrap(self.token), "num_logits": wrap(self.num_logits)}
        self.step_outputs = {"logits": wrap(self.logits), "hidden_states": wrap(self.hidden)}

    def scalars(self, choices: _Choices) -> dict[str, ort.OrtValue]:
        """What changes from step to step but the token; counts are empty where nothing is chosen by them."""
        kv_pages = self._kv_pages if choices.tokens else self._nothing
        channels = self._channel_values if choices.channels else [self._nothing] * len(CHANNEL_INPUTS)
        return {**self._lengths, "kv_pages": kv_pages, **dict(zip(CHANNEL_INPUTS, channels, strict=True))}


class _Plan(NamedTuple):
    """How an action runs: what makes the runners of a step and of a batch, and the active channels, as `_channels`."""

    step: Callable[[], _Runner | DeviceRunner]
    batch: Callable[[], _Runner | DeviceRunner]
    channels: np.ndarray


class _Runner:
    """A graph's session and its two bindings: a fixed one for steps, one whose token buffers change for batches."""

    def __init__(
        self,
        file: str,
        session: ort.InferenceSession,
        cache: KvCache,
        inputs: _StepInputs,
        choices: _Choices,
    ) -> None:
        self.file = file
        self._scalars = inputs.scalars(choices)
        self._session, self._cache, self._inputs = session, cache, inputs
        self._step_binding: ort.IOBinding | None = None
        self._batch_binding: ort.IOBinding | None = None

    def open(self) -> None:
        """Its session is made already."""

    def release(self) -> None:
        """Lets go of the cache's buffers, before they are replaced."""
        self._step_binding = self._batch_binding = None

    def step(self) -> None:
        """Runs the one token that the shared inputs hold."""
        binding = self._step_binding
        if binding is None:
            binding = self._bind_cache()
            self._bind_inputs(binding, self._inputs.step_inputs)
            for name, value in self._inputs.step_outputs.items():
                binding.bind_ortvalue_output(name, value)
            self._step_binding = binding
        self._run(binding)

    def batch(self, ids: np.ndarray, logits: np.ndarray, hidden: np.ndarray) -> None:
        """Runs tokens int64 [S]; the last rows' results go into `logits` and `hidden`, as many as they have."""
        binding = self._batch_binding
        if binding is None:
            binding = self._batch_binding = self._bind_cache()
        wrap = ort.OrtValue.ortvalue_from_numpy
        count = np.array([len(logits)], np.int64)
        self._bind_inputs(binding, {"input_ids": wrap(ids[None]), "num_logits": wrap(count)})
        binding.bind_ortvalue_output("logits", wrap(logits))
        binding.bind_ortvalue_output("hidden_states", wrap(hidden))
        self._run(binding)

    def _bind_cache(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        for past, present, value in self._cache.bindings():
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        self._bind_inputs(binding, self._scalars)
        return binding

    @staticmethod
    def _bind_inputs(binding: ort.IOBinding, values: Mapping[str, ort.OrtValue]) -> None:
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)

    def _run(self, binding: ort.IOBinding) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no useful base
            raise SolError(f"{self.file}: ONNX Runtime failed: {one_line(error)}") from None


def _finite(values: np.ndarray) -> bool:
    """Whether all of them are finite: their extremes are, and NaN counts as one."""
    return math.isfinite(np.maximum.reduce(values, None)) and math.isfinite(np.minimum.reduce(values, None))


def _return_freed_memory() -> None:
    """Gives back what making sessions used and freed: the C library otherwise keeps it resident."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:  # a C library without it
            return
