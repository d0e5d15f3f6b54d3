"""The engine: runs tokens under an action on one KV cache and returns logits and hidden states.

It loads the graphs of a bundle's variants, keeps the cache large enough, and checks that results are finite. It does
not sample and knows no schedule. The runs themselves are in `cpu_runner.py` and `gpu/`; `step.py` is the contract
between them.

One token takes this way: `forward` checks it and makes room in the cache. `_step` writes it into the step buffers.
`_prepare` finds the action's runner, which runs the graph. `_step` checks the output and counts the token as cached.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import ModelDims, Variant
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine import providers
from sol_rt.engine.cpu_runner import CpuRunners
from sol_rt.engine.distribution import Distribution, native_sums, numpy_sums
from sol_rt.engine.hardware import free_memory_bytes, tuning
from sol_rt.engine.providers import Provider
from sol_rt.engine.step import ALL_PAGES, Runner, Runners, StepBuffers, StepOutput
from sol_rt.engine.turns import Turns
from sol_rt.errors import ContextError, DeviceError, NumericError, ProviderError, SolError, UsageError, brief
from sol_rt.ops import library_path

_CHUNK = 512
_COPY_EVERY = 64  # decode steps between two copies of states
_CPU_BODY_CHUNK = 128  # function bodies on the CPU hold the attention matrix of a whole chunk


class Engine:
    """Runs a bundle's variants on one KV cache. If two threads run it at once, the second one gets a BusyError.

    Args:
        bundle: an opened bundle.
        provider: `auto`, `cpu`, `cuda` or `webgpu`.
        threads: size of the process-wide thread pool; all usable processors by default.
        native_ops: register the native operators that are built for the provider; without them the graphs' function
            bodies run.
        device: number of the GPU.
        max_context: a cap in tokens below the model's own.
        prefill: key of the variant that runs prompts, as `s100-q4`; None for the dense one.

    Attributes:
        bundle: the bundle.
        prefill: the action that runs prompts, of that variant.
        native_ops: whether native operators may run. This also holds for the policy, which runs on the CPU.
        max_context: tokens that the cache may hold at most.
        weights: the mapped weights file.
        provider: the provider that was chosen.
        turns: decides which thread's generation runs.
        owner: the object that last filled the cache for itself, or None. A `Decoder` checks that it still is the owner.
        changes: how often tokens were run or dropped, or active channels changed. A `Decoder` checks that nobody else
            did so between its steps.
        on_chunk: None, or a function that is called before every chunk of a run of several tokens and at the end, with
            the number of tokens done and of all. It changes nothing in how they are run.

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
        prefill: str | None = None,
    ) -> None:
        self.bundle, self.native_ops = bundle, native_ops
        self.prefill = bundle.config.prefill_action(prefill)
        self.max_context = bundle.config.model.context_limit(max_context)
        self.weights = SharedWeights(bundle)
        self.owner: object = None
        self.changes = 0
        self.on_chunk: Callable[[int, int], None] | None = None
        self._buffers = StepBuffers(bundle.config)
        self._sums = native_sums() if native_ops and library_path() else numpy_sums
        self._changed: dict[str, Variant] = {}  # variants whose active channels are not the bundle's
        self._plans: dict[Action, _Plan] = {}
        self._last_plan: _Plan | None = None  # the plan whose channels are in the step buffers
        self._tokens: list[int] = []
        self._page_size = bundle.config.kv.page_size
        self.turns = Turns()
        self.provider, self._runners = self._choose(provider, threads=threads, native_ops=native_ops, device=device)
        self._cache, self._states = self._runners.cache, self._runners.states
        self._opening: threading.Thread | None = None
        self._faulting: threading.Thread | None = None
        on_cpu = not self.native and self.provider.name == "cpu"
        self._chunk = self.provider.most_tokens or (_CPU_BODY_CHUNK if on_cpu else _CHUNK)

    def _choose(self, name: str, **options: Any) -> tuple[Provider, Runners]:
        """Chooses the provider and allocates the memory there that every run needs.

        If a GPU has too little of it, `auto` goes on to the next provider.
        """
        unfit = _unfit_providers(self.bundle)
        while True:
            provider = providers.choose(name, unfit=unfit, **options)
            try:
                return provider, self._runners_on(provider)
            except (ProviderError, DeviceError) as error:
                if name != "auto" or provider.gpu is None:
                    raise
                unfit[provider.name] = str(error).removeprefix(f"provider {provider.name}: ")

    def _runners_on(self, provider: Provider) -> Runners:
        if provider.gpu is None:
            if (library := provider.library) is not None and library == library_path():
                config, key = self.bundle.config, tuning.machine_key(provider.threads, library)
                tuned, gain = tuning.stored(key), tuning.gains_of_copies(key).get(config.model.name, 1.0)
                copies = gain > 1 and tuning.room_for_copies(config.tensors)
                settings = tuning.current(library) if tuned is None else tuned.tuning
                tuning.apply(library, replace(settings, copies=copies))
            return CpuRunners(self.bundle, provider, self.weights, self._buffers, self._sums)
        from sol_rt.engine.gpu.device_runner import DeviceRunners  # needs onnx, which only the GPU extras install

        runners = DeviceRunners(self.bundle, provider, self.weights, self._buffers, self._sums)
        dense = self.bundle.config.dense.variant
        runners.runner(self._variant(dense), _channels(self._variant(dense), self.bundle.config.model), 1.0).open()
        return runners

    @property
    def device_weight_bytes(self) -> int:
        """Bytes of weights in the GPU's memory; 0 on the CPU."""
        return self._runners.device_weight_bytes

    @property
    def captured_graphs(self) -> int:
        """Number of graphs whose commands the GPU recorded and repeats; 0 on the CPU."""
        return self._runners.captured_graphs

    @property
    def provider_name(self) -> str:
        """`cpu`, `cuda` or `webgpu`."""
        return self.provider.name

    @property
    def native(self) -> bool:
        """True if native operators run, False if the function bodies in the graphs do."""
        return self.provider.native

    @property
    def threads(self) -> int:
        """Size of the process-wide thread pool."""
        return self.provider.threads

    @property
    def machine(self) -> tuple[str, int, bool, str]:
        """Facts that costs depend on: provider, threads, True if native operators run, and the GPU's name.

        The GPU is named, with `float32` added where it computes in that type instead of float16; on the CPU the name
        is empty.
        """
        gpu, floats = self.provider.gpu, self.provider.floats
        name = "" if gpu is None else gpu.name if floats == "float16" else f"{gpu.name}, {floats}"
        return self.provider.name, self.threads, self.native, name

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens in the cache. The caller must not change the list."""
        return self._tokens

    @property
    def capacity(self) -> int:
        """Tokens that the cache has room for before it grows."""
        return self._cache.capacity

    @property
    def loaded(self) -> tuple[str, ...]:
        """Keys of the variants whose graph has a session."""
        variants = self.bundle.config.variants.items()
        return tuple(key for key, variant in variants if self._runners.is_loaded(variant))

    def open_ahead(self, action: Action) -> None:
        """Begins to open the session that `action` needs, and to read the weights from the disk, in threads of their
        own. An error is raised by the first call that needs the session. On a GPU it does nothing.
        """
        runners = self._runners
        if isinstance(runners, CpuRunners):
            # a daemon: a program that ends does not wait for the disk
            faulting = threading.Thread(target=self.weights.fault_in, args=(free_memory_bytes() or 0,), daemon=True)
            faulting.start()
            self._faulting = faulting
            variant = self._variant(action.variant)
            with suppress(SolError):
                # in this thread: reading a tokenizer, which follows, holds Python's lock, and the other would stand
                runners.prepare(variant)
                self._opening = threading.Thread(target=self._open, args=(variant,))
                self._opening.start()

    def _open(self, variant: Variant) -> None:
        """Makes the variant's session. Whoever needs it tries again where that fails, and gets the error."""
        with suppress(Exception):
            self._runners.runner(variant, _channels(variant, self.bundle.config.model), 1.0).open()

    def finish_ahead(self) -> None:
        """Waits for all that `open_ahead` began, so that nothing else runs beside what is timed next."""
        self._finish_opening()
        if self._faulting is not None:
            self._faulting.join()

    def _finish_opening(self) -> None:
        """Waits for the session that is being opened. If that failed, whoever needs the session gets the error."""
        if self._opening is not None:
            self._opening.join()
            self._opening = None

    def load(self, variant_keys: Iterable[str]) -> None:
        """Makes the sessions of these variants now; others are made when first used.

        Raises BundleError, ProviderError, and UsageError for a variant that the bundle does not have.
        """
        with self.exclusive():
            self._finish_opening()
            for key in variant_keys:
                variant = self._variant(key)
                self._runners.runner(variant, _channels(variant, self.bundle.config.model), 1.0).open()

    def set_active_channels(self, variant_key: str, counts_by_name: Mapping[str, Sequence[int]]) -> None:
        """Changes a variant's active channels for this engine. Export searches for density levels with it.

        Args:
            variant_key: key of the variant.
            counts_by_name: active channels of every layer, by `active_up`, `active_down`, `active_qkv` and `active_o`;
                a name that is left out gets the bundle's own counts.

        Raises UsageError for counts that are out of range or too few.
        """
        model = self.bundle.config.model
        if not isinstance(counts_by_name, Mapping):
            raise UsageError(f"active channels: got {brief(counts_by_name)}, expected counts by name")
        for name, counts in counts_by_name.items():
            if name not in model.channels:
                raise UsageError(f"active channels: got {brief(name)}, expected one of {', '.join(model.channels)}")
            channels = model.channels[name]
            if not isinstance(counts, (Sequence, np.ndarray)) or not all(map(_is_whole, counts)):
                raise UsageError(f"{name}: got {brief(counts)}, expected {model.num_layers} whole numbers, one a layer")
            if len(counts) != model.num_layers or not all(1 <= count <= channels for count in counts):
                said = f"{len(counts)} counts from {min(counts, default=0)} to {max(counts, default=0)}"
                raise UsageError(f"{name}: got {said}, expected {model.num_layers} counts from 1 to {channels}")
        given: dict[str, Any] = {name: tuple(counts) for name, counts in counts_by_name.items()}
        with self.exclusive():
            self._changed[variant_key] = replace(self._bundle_variant(variant_key), **given)
            self.changes += 1
            self._plans = {action: plan for action, plan in self._plans.items() if action.variant != variant_key}

    def exclusive(self) -> AbstractContextManager[None]:
        """Keeps other threads out while several calls have to see the same cache. Raises BusyError if one is in."""
        return self.turns.exclusive()

    def reset(self) -> None:
        """Forgets all tokens. The cache keeps its capacity."""
        self.truncate(0)

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens of the cache. Raises UsageError if there are fewer.

        If layers have states, the next call of `forward` restores the last copy made at or below `length`. It runs the
        tokens from there on once more, dense. If layers have windows, and the tokens that they read there left the
        cache, `forward` runs all tokens once more. Rewinds by up to SLACK tokens (`kv_cache.py`) still find these
        tokens.
        """
        with self.exclusive():
            if not _is_whole(length) or not 0 <= length <= self.length:
                raise UsageError(f"truncate: got {brief(length)}, expected 0 to {self.length}, the tokens in the cache")
            if length < self.length:
                self.changes += 1
            del self._tokens[length:]
            if self._states is not None:
                self._states.forget(length)

    def follow_up(self) -> None:
        """Runs the tokens that `forward` would run first after a rewind (`truncate`).

        A benchmark calls it before it times `forward`.
        """
        with self.exclusive():
            self._follow_up()

    def states(self) -> np.ndarray:
        """The states after the tokens in the cache, float32 [layers with a state, hidden, conv_size - 1], a copy.

        After a rewind, tokens may run again for it, as in `forward`.
        """
        with self.exclusive():
            if self._states is None:
                return np.zeros((0, self.bundle.config.model.hidden_size, 0), np.float32)
            self._follow_up()
            return self._states.content()

    def reusable_prefix(self, length: int) -> int:
        """Number of the first `length` tokens that need no re-run after `truncate(length)`: `length` or 0.

        0 if layers with a window no longer hold all that the next token reads.
        """
        return length if self._cache.holds(length) else 0

    def forward(self, tokens: Sequence[int] | np.ndarray, action: Action, *, num_logits: int = 1) -> StepOutput:
        """Appends tokens to the cache and returns the output of the last `num_logits` of them.

        One token is a decode step under `action`. Several tokens run in chunks through the action's variant with
        attention to all tokens. A call that fails or is interrupted leaves a prefix of the tokens in the cache, and
        `length` says how many.

        Args:
            tokens: token ids, [S].
            action: the action to run; its variant is in the bundle.
            num_logits: how many of the last tokens to return results for, 1 to S.

        Raises ContextError beyond `max_context`, UsageError for tokens outside the vocabulary, NumericError for results
        that are not finite, BusyError while another thread is running the engine.
        """
        with self.exclusive():
            return self._forward(tokens, action, num_logits)

    def _forward(self, tokens: Sequence[int] | np.ndarray, action: Action, num_logits: int) -> StepOutput:
        if not isinstance(action, Action):
            raise UsageError(f"forward: got {brief(action)}, expected an Action; Action.parse reads a tag")
        if self._opening is not None:
            self._finish_opening()
        if self._states is not None or not self._cache.holds(len(self._tokens)):
            self._follow_up()
        vocabulary = self.bundle.config.model.vocab_size
        try:
            single = len(tokens) == 1 and num_logits == 1
        except TypeError:  # a number, a generator
            single = False
        if single:
            token = tokens[0]
            if not isinstance(token, (int, np.integer)) or not 0 <= token < vocabulary:
                raise UsageError(f"token {brief(token)}: expected a whole number from 0 to {vocabulary - 1}")
            self._ensure_capacity(self.length + 1)
            return self._step(int(token), action)
        given = np.asarray(tokens)
        if given.dtype.kind not in "iu" and given.size:
            raise UsageError(f"forward: tokens: got {brief(tokens)}, expected whole numbers from 0 to {vocabulary - 1}")
        ids = given.astype(np.int64)
        if ids.ndim != 1 or not _is_whole(num_logits) or not 1 <= num_logits <= ids.size:
            raise UsageError(
                f"forward: num_logits: got {brief(num_logits)} for {ids.size} tokens, expected 1 to {ids.size}"
            )
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise UsageError(f"token {ids.min() if ids.min() < 0 else ids.max()}: expected 0 to {vocabulary - 1}")
        self._ensure_capacity(self.length + ids.size)
        return self._batch(ids, action, num_logits)

    def _step(self, token: int, action: Action) -> StepOutput:
        """Runs one token. The cache has room for it."""
        self.changes += 1  # also if the step fails: the buffers of the last output are written to
        length = len(self._tokens)
        runner = self._prepare(action).step_runner
        self._buffers.set_step(token, length, action.pages(length, self._page_size))
        output = runner.step()
        self.weights.require_unchanged()  # afterwards, so that no token comes of weights that were just written to
        # sums have no `top` where a number is not finite. Logits and hidden state go through this one function: the
        # step has evicted the instruction cache, and another function would be fetched anew
        if not output.distribution.finite or self._sums(output.hidden[0]).top is None:
            self._refuse(action, 1)
        if self._states is not None:
            self._states.commit(length + 1)
        self._tokens.append(token)
        if length + 1 >= self._cache.due:  # layers with a window have tokens that no later step reads
            self._cache.discard(length + 1)
        if self._states is not None and (length + 1) % _COPY_EVERY == 0:
            self._states.keep()
        return output

    def _prepare(self, action: Action) -> _Plan:
        """The action's plan, made when first asked for. Its active channels are then in the step buffers."""
        plan = self._plans.get(action)
        if plan is None:
            plan = self._plans[action] = self._make_plan(action)
        if plan is not self._last_plan:
            self._buffers.channels[:] = plan.channels
            self._last_plan = plan
        return plan

    def _make_plan(self, action: Action) -> _Plan:
        variant, runners = self._variant(action.variant), self._runners
        channels = _channels(variant, self.bundle.config.model)
        return _Plan(
            runners.runner(variant, channels, action.kv_density), runners.runner(variant, channels, 1.0), channels
        )

    def _batch(self, ids: np.ndarray, action: Action, num_logits: int) -> StepOutput:
        """Runs tokens int64 [S] in chunks. The cache has room for them."""
        self.changes += 1
        self.weights.require_unchanged()
        runner, model = self._prepare(action).batch_runner, self.bundle.config.model
        logits = np.empty((num_logits, model.vocab_size), np.float32)
        hidden = np.empty((num_logits, model.hidden_size), np.float32)
        first_wanted = ids.size - num_logits
        self._buffers.kv_pages[:] = ALL_PAGES  # kernels read it if the last chunk is one token
        if self._states is not None:
            self._states.keep()  # steps may have ended here, where the next prompt branches off
        for start, stop in self._chunks(ids.size, num_logits):
            if self.on_chunk is not None:
                self.on_chunk(start, ids.size)
            chunk = ids[start:stop]
            rows = slice(max(start - first_wanted, 0), start + chunk.size - first_wanted)
            self._buffers.set_lengths(self.length, chunk.size)
            if rows.stop <= rows.start:  # a graph always computes one row; a later chunk writes over this one
                rows = slice(1)
            runner.batch(chunk, logits[rows], hidden[rows])
            if not (_finite(logits[rows]) and _finite(hidden[rows])):
                self._refuse(action, chunk.size)
            if self._states is not None:
                self._states.commit(self.length + chunk.size)
            self._tokens += chunk.tolist()
            if self.length >= self._cache.due:
                self._cache.discard(self.length)
            if self._states is not None:
                self._states.keep()
        self.weights.require_unchanged()
        if self.on_chunk is not None:
            self.on_chunk(ids.size, ids.size)
        return StepOutput(logits, hidden, Distribution(logits[-1], self._sums))

    def _chunks(self, tokens: int, num_logits: int) -> list[tuple[int, int]]:
        """Chunks in which `tokens` tokens run: (start, stop) of each.

        With states the last token of a prompt is a chunk of its own. The copy before it serves the same prompt again,
        whose last token always runs anew.
        """
        ends = {*range(self._chunk, tokens, self._chunk), tokens}
        if self._states is not None and num_logits == 1 < tokens:
            ends.add(tokens - 1)
        stops = sorted(ends)
        return list(zip([0, *stops], stops, strict=False))

    def _follow_up(self) -> None:
        """Brings cache and states to the end of `_tokens`, where a rewind or a failed call left them elsewhere.

        Restores the last copy of the states and runs the tokens after it dense, which also writes their keys and
        values anew. If the cache no longer holds what the first of them reads, all tokens run, as a prompt does.
        """
        self._ensure_capacity(self.length)  # where a growth was interrupted
        states, start = self._states, self.length
        if states is not None and states.length != start:
            states.restore(start)
            start = states.length
        dense, model = self.bundle.config.dense, self.bundle.config.model
        if not self._cache.holds(start):
            tokens, self._tokens = self._tokens, []
            self._cache.forget()
            if states is not None:
                states.restore(0)
            if tokens:
                self._batch(np.array(tokens, np.int64), dense, 1)
            return
        logits, hidden = np.empty((1, model.vocab_size), np.float32), np.empty((1, model.hidden_size), np.float32)
        while states is not None and states.length < self.length:
            runner = self._prepare(dense).batch_runner
            start = states.length
            chunk = np.asarray(self._tokens[start : start + self._chunk], np.int64)
            self._buffers.kv_pages[:] = ALL_PAGES
            self._buffers.set_lengths(start, chunk.size)
            runner.batch(chunk, logits, hidden)
            if not (_finite(logits) and _finite(hidden)):
                del self._tokens[start:]
                self._refuse(dense, chunk.size)
            states.commit(start + chunk.size)
            states.keep()

    def _ensure_capacity(self, tokens: int) -> None:
        """Makes the cache large enough for `tokens` tokens. Raises ContextError where that is too many."""
        if tokens > self.max_context:
            size = f"{self._cache.bytes_at(self.capacity) / 1e6:.0f} MB of KV cache in use"
            limit = f"expected at most {self.max_context}"
            raise ContextError(f"context: got {tokens} tokens, {limit} ({size}); shorten the prompt or the answer")
        if tokens <= self.capacity:
            return
        capacity = self._cache.capacity_for(tokens)
        self._runners.release()
        try:
            self._cache.resize(capacity, self.length)
        except (MemoryError, ProviderError):  # some buffers have grown, some have not
            self._cache.free()
            self.reset()
            needed = self._cache.bytes_at(capacity) / 1e6
            where = "" if self.provider.gpu is None else f" on {self.provider.device_name}"
            what = f"context: a KV cache of {tokens} tokens needs {needed:.0f} MB"
            raise ContextError(f"{what}, more than is free{where}; shorten the prompt") from None
        except BaseException as error:
            # an interrupt between two buffers: on the CPU the next growth brings them all to one capacity
            if isinstance(error, DeviceError) or self.provider.gpu is not None:
                self._cache.free()
                self.reset()
            raise

    def _refuse(self, action: Action, appended: int) -> NoReturn:
        """Raises NumericError, after clearing the `appended` tokens of the failed run from the cache."""
        self._cache.wipe(self.length, self.length + appended)
        what = f"{self.bundle.path}: variant {action.variant} gave non-finite numbers at token {self.length}"
        raise NumericError(f"{what}; check the bundle with `sol-rt verify`")

    def _variant(self, key: str) -> Variant:
        """A variant, with the active channels that `set_active_channels` gave it."""
        return self._changed.get(key) or self._bundle_variant(key)

    def _bundle_variant(self, key: str) -> Variant:
        variants = self.bundle.config.variants
        if key not in variants:
            raise UsageError(f"variant {key}: not in this bundle, expected one of {', '.join(variants)}")
        return variants[key]


class _Plan(NamedTuple):
    """Runners and active channels of an action.

    Attributes:
        step_runner: runs one token.
        batch_runner: runs several tokens with attention to all of them.
        channels: int64 [4, L], the action's active channels, as in `StepBuffers.channels`.
    """

    step_runner: Runner
    batch_runner: Runner
    channels: np.ndarray


def _channels(variant: Variant, model: ModelDims) -> np.ndarray:
    """A variant's active channels as the graph takes them: int64 [4, L], 0 for all of them, which saves sorting."""
    return np.array([np.array(getattr(variant, name)) % most for name, most in model.channels.items()])


def _unfit_providers(bundle: Bundle) -> dict[str, str]:
    """Providers that cannot run the bundle, each with the reason."""
    if bundle.config.kv.convolving:
        why = f"has no operators for the short convolutions of {bundle.path}; use --provider cpu"
        return dict.fromkeys(("cuda", "webgpu"), why)
    if bundle.config.kv.dtype != "int8":
        return {}
    why = f"has no operators on int8, the type of the KV cache of {bundle.path}"
    return {"webgpu": f"{why}; use --provider cpu, or export with --kv float16"}


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _finite(values: np.ndarray) -> bool:
    """True if all values are finite. Checks only the extremes: NaN makes both of them NaN."""
    return math.isfinite(np.maximum.reduce(values, None)) and math.isfinite(np.minimum.reduce(values, None))
