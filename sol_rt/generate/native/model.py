"""`NativeModel`: a bundle in the native core, with the calls of `SolModel` that generate."""

from __future__ import annotations

import math
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int32, c_size_t, c_void_p, create_string_buffer, sizeof
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sol_rt.budget.controller.base import check_request
from sol_rt.budget.cost.bytes_model import BytesCost, CostModel
from sol_rt.budget.cost.cost_table import (
    IN_BYTES,
    CostTable,
    MeasuredCost,
    cost_table_path,
    device_string,
    keep_quick,
    load_cost_model,
)
from sol_rt.budget.dial import Dial, MakeSchedule, below_sensible, budget_of_loss, untried_states
from sol_rt.budget.hull import Hull
from sol_rt.budget.schedules import NAMES, measured_hull, schedule_actions
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.file_state import FileState
from sol_rt.engine.hardware import check_threads, processor_name, usable_cores
from sol_rt.errors import BundleError, QualityWarning, UsageError, brief, one_line
from sol_rt.generate.arguments import as_switch, opened_bundle
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.native import structs
from sol_rt.generate.native.callbacks import raising_of
from sol_rt.generate.native.decoder import NativeDecoder
from sol_rt.generate.native.host_engine import CacheEngine
from sol_rt.generate.native.library import core, default_options, model_info, runtime
from sol_rt.generate.native.own_schedule import CoreController, OwnSchedule
from sol_rt.generate.native.session import NativeSession
from sol_rt.generate.native.stream import NativeStream, SessionTurns
from sol_rt.generate.prompt import Prompt, check_length, given_tokens, is_chat, prompt_tokens, token_ids
from sol_rt.generate.results import Scores
from sol_rt.generate.trace import check_trace_path
from sol_rt.store.verified import check_weights
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer

_ADD_SPECIAL, _PARSE_SPECIAL = 1, 2
_LARGEST = 2**31 - 1
_LARGEST_SEED = 2**63 - 1
_ROLES = ("system", "user", "assistant")
_DIAL = ("budget", "kv_density", "channel_density", "bits", "tokens_per_second", "max_loss")
_COUNTS = ("max_new_tokens", "top_k", "top_logprobs")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class NativeModel:
    """A model in the native core. It runs one generation at a time, on the CPU.

    Every method may be called from any thread. `stream` waits for a token in progress; it then ends the older stream,
    which raises BusyError at its next token. A `NativeStream` gives its next token to any thread, and any thread may
    close it; both wait for the token in progress. Setting its budget or rate does not wait. To generate in several
    threads at once, open the bundle once for each.

    Attributes:
        bundle: the opened bundle.
        cost: the cost model, as the core has it.
        cost_note: a line about the costs for the user; empty where there is nothing to say.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: c_void_p,
        session: NativeSession,
        prefill: Action,
        cost: CostModel,
        cost_note: str,
    ) -> None:
        self.bundle, self.cost, self.cost_note = bundle, cost, cost_note
        self._model, self._session, self._prefill = model, session, prefill
        self._info = model_info(model)
        self._newest: weakref.ref[NativeStream] | None = None
        self._turns = SessionTurns()
        self._warned = self._warned_of_states = False
        self._release = weakref.finalize(self, core().sol_model_release, model)

    def __repr__(self) -> str:
        config = self.bundle.config
        return f"<NativeModel {config.model.name}: {len(config.variants)} variants, costs {self.cost.name}>"

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str | Bundle,
        *,
        threads: int | None = None,
        native_ops: bool = True,
        max_context: int | None = None,
        prefill: str | None = None,
        measure_costs: bool = True,
        verify: bool = True,
    ) -> NativeModel:
        """Opens a bundle; arguments as in `SolModel.from_pretrained`.

        Raises BundleError, ProviderError, UsageError.
        """
        library = core()
        check_threads(threads)
        native_ops, measure_costs = as_switch("native_ops", native_ops), as_switch("measure_costs", measure_costs)
        bundle, _ = check_weights(opened_bundle(path, verify))
        context = bundle.config.model.context_limit(max_context)
        count = threads or usable_cores()
        machine = ("cpu", count, native_ops, "")
        cost = load_cost_model(bundle, *machine, quick=measure_costs)
        options, model = structs.ModelOptions(), c_void_p()
        library.sol_model_options_init(byref(options), sizeof(options))
        options.verify = int(bundle.verify)  # small files are compared once more, for the core reads them itself
        options.max_context = context
        action = bundle.config.prefill_action(prefill)
        if prefill is not None:
            options.prefill = action.variant.encode()
        if isinstance(cost, MeasuredCost) and cost.path is not None:
            options.cost_table = _path(cost.path)
        library.sol_model_load(runtime(count, native_ops), _path(bundle.path), byref(options), byref(model))
        note = cost.note
        try:
            _require_same(bundle, model)
            # a step needs a token before it
            if measure_costs and cost.name == "bytes" and bundle.config.losses_measured and context > 1:
                cost, line = _measured_costs(bundle, model, machine)
                note = "; ".join(filter(None, (note.removesuffix(IN_BYTES), line)))
            session = NativeSession(model, bundle)
        except BaseException:
            library.sol_model_release(model)
            raise
        return cls(bundle, model, session, action, cost, note)

    @cached_property
    def _template(self) -> ChatTemplate:
        """Renders conversations that the core cannot."""
        return self.bundle.chat_template()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, in Python. The core has its own."""
        return self.bundle.tokenizer()

    @cached_property
    def hull(self) -> Hull | None:
        """The lower hull of the bundle's actions on this device; None if the export measured no losses."""
        return measured_hull(self.bundle.config, self.cost)

    @property
    def native(self) -> bool:
        """True if native operators run, False if the function bodies in the graphs do."""
        return bool(self._info.native)

    @property
    def private_bytes(self) -> int:
        """Bytes of KV cache and buffers."""
        return int(core().sol_session_private_bytes(self._session.handle))

    @property
    def where(self) -> dict[str, str]:
        """The keys by which every command's JSON says where the model computes."""
        return {"provider": "cpu", "device": processor_name()}

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Tokens of a text, with what the model wants around it. Raises UsageError, SolError."""
        try:
            content = text.encode("utf-8") if isinstance(text, str) else None
        except UnicodeEncodeError:
            raise UsageError("prompt: not valid Unicode, it has lone surrogates; convert it") from None
        if content is None:
            raise UsageError(f"prompt: got {brief(text)}, expected a text")
        flags = _ADD_SPECIAL | (_PARSE_SPECIAL if parse_special else 0)
        count, capacity = c_size_t(), len(content) + 8
        while True:
            tokens = (c_int32 * capacity)()
            core().sol_model_encode(self._model, content, len(content), flags, tokens, capacity, byref(count))
            if count.value <= capacity:
                return tokens[: count.value]
            capacity = count.value

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens. Raises UsageError, SolError."""
        tokens = token_ids("decode", tokens, self.bundle.config.model.vocab_size)
        ids, length, capacity = (c_int32 * len(tokens))(*tokens), c_size_t(), 64 + 16 * len(tokens)
        while True:
            text = create_string_buffer(capacity)
            core().sol_model_decode(
                self._model, ids, len(tokens), int(skip_special_tokens), text, capacity, byref(length)
            )
            if length.value <= capacity:
                return text.raw[: length.value].decode("utf-8", "replace")
            capacity = length.value

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        trace: Path | str | None = None,
        replay: Path | str | None = None,
        reuse_cache: bool | None = None,
        parse_special: bool = False,
        schedule: str | MakeSchedule | None = None,
        **settings: Any,
    ) -> NativeStream:
        """Starts a generation and yields its tokens.

        Arguments are those of `SolModel.stream`, except that `replay` is the trace's file. A schedule of the caller's
        gets a `CoreController`.
        Warns with QualityWarning, once for each model, of a budget below the sensible ones, and of cheap steps where
        layers have a state.
        Raises UsageError, ContextError, SolError before the first step; NumericError, SolError while it runs.
        """
        options, library = default_options(), core()
        dial = Dial(schedule=schedule, **{name: settings.pop(name, None) for name in _DIAL})
        own = self._set_dial(options, dial)
        given = {name: value for name, value in settings.items() if value is not None}
        kept = _set_generation(options, given, self.bundle.config.model.vocab_size)
        if trace is not None:
            check_trace_path(self.bundle, trace)
            options.trace = _given_path("trace", trace, "choose another file")
        if replay is not None:
            if not isinstance(replay, (str, Path)):
                raise UsageError(f"replay: got {brief(replay)}, expected a file that `--trace` wrote")
            options.replay = _given_path("trace", replay, "give a file that `--trace` wrote")
        if reuse_cache is None:
            reuse_cache = prompt is not None and is_chat(prompt)
        options.reuse_cache = int(as_switch("reuse_cache", reuse_cache))
        parse_special = as_switch("parse_special", parse_special)
        tokens = self._tokens(prompt, parse_special) if prompt is not None or replay is None else []
        ids = (c_int32 * len(tokens))(*tokens)
        if replay is None:
            self._warn_below_sensible(dial, len(tokens))  # a filter may raise it, so before anything begins
        if replay is None and not self._warned_of_states and (line := untried_states(self.bundle.config, dial)):
            self._warned_of_states = True
            warnings.warn(line, QualityWarning, stacklevel=2)
        with self._turns.token, self._turns.owner:
            if self._newest is not None and (older := self._newest()) is not None:
                older.interrupt()  # also if the start is refused: the core may have ended it by then
            library.sol_session_start(self._session.handle, ids, len(tokens), byref(options))
            del kept  # read during the call only
            stream = NativeStream(self, self._session, self._turns, own)
            self._newest = stream.reference
        return stream

    def score(
        self,
        tokens: Sequence[int],
        *,
        context: int = 1,
        budget: float | None = None,
        schedule: str | MakeSchedule | None = None,
        kv_density: float | None = None,
        channel_density: float | None = None,
        bits: float | None = None,
        tokens_per_second: float | None = None,
        max_loss: float | None = None,
        seed: int | None = None,
    ) -> Scores:
        """Log-probabilities of given tokens; arguments and errors as in `SolModel.score`."""
        ids = token_ids("score", tokens, self.bundle.config.model.vocab_size)
        if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context < len(ids):
            raise UsageError(
                f"score: got {len(ids)} tokens and a context of {brief(context)}, expected 1 to fewer than all"
            )
        options = default_options()
        own = self._set_dial(
            options, Dial(budget, schedule, kv_density, channel_density, bits, tokens_per_second, seed, max_loss)
        )
        with self._turns.token:
            if self._newest is not None and (older := self._newest()) is not None:
                older.interrupt()
            with raising_of(own):
                scored = self._session.score(ids, context, options)
        return Scores(scored.logprobs, scored.achieved_budget, dict(Counter(scored.actions)))

    def session(self, engine: CacheEngine | None = None) -> NativeSession:
        """A KV cache of its own on this model, for runs and scores of given tokens.

        Args:
            engine: runs the graphs and holds the cache in place of the core; None for the core. Nobody else uses it
                while the session does.
        """
        return NativeSession(self._model, self.bundle, engine)

    def decoder(self, dial: Dial, session: NativeSession) -> NativeDecoder:
        """A fresh run of decode steps under `dial` on a session of this model; errors as in `SolModel.decoder`."""
        options = default_options()
        own = self._set_dial(options, dial)
        return NativeDecoder(session, options, self._prefill, own)

    def set_costs(self, table: CostTable | None) -> None:
        """Takes costs from a table of the caller's, or bytes for None, from the next generation on.

        Raises SolError for a table of another bundle, or one that lacks a variant.
        """
        core().sol_model_set_costs(self._model, None if table is None else table.to_json().encode())
        self.cost = BytesCost(self.bundle.config) if table is None else MeasuredCost(self.bundle.config, table)
        self.__dict__.pop("hull", None)

    def _set_dial(self, options: structs.GenerateOptions, dial: Dial) -> OwnSchedule | None:
        """Fills the options of a dial. Returns the schedule of the caller's, which has to outlive their use.

        Raises UsageError.
        """
        for name in _DIAL:
            if (value := getattr(dial, name)) is not None:
                if math.isnan(value):  # to the core this is an option that was left out
                    raise UsageError(f"--{name.replace('_', '-')}: got nan, expected a number")
                setattr(options, name, value)
        if dial.seed is not None:
            if dial.seed > _LARGEST_SEED:
                raise UsageError(f"--seed: got {brief(dial.seed)}, expected a whole number from 0 to {_LARGEST_SEED}")
            options.seed = int(dial.seed)
        if dial.schedule is None:
            return None
        if isinstance(dial.schedule, str):
            if "\0" in dial.schedule:
                raise UsageError(f"--schedule: got {brief(dial.schedule)}, expected one of {', '.join(NAMES)}")
            options.schedule = dial.schedule.encode("utf-8", "replace")
            return None
        config = self.bundle.config
        actions = schedule_actions(config, "own", dial.axis_targets)
        if not dial.axis_targets.any():
            actions = tuple(dict.fromkeys(actions))
        own = OwnSchedule(dial.schedule, CoreController(actions, config.dense))
        options.schedule, options.choose = own.name.encode("utf-8", "replace"), own.callback
        return own

    def _warn_below_sensible(self, dial: Dial, context: int) -> None:
        """Warns, once, if what is asked for is below the budget at which text suffers visibly.

        Raises UsageError for requests that are out of range or contradict.
        """
        asked = 1.0 if dial.budget is None else dial.budget
        check_request(asked, dial.axis_targets, dial.tokens_per_second, dial.max_loss)
        if self._warned or self.hull is None:
            return
        if dial.max_loss is not None:
            asked = budget_of_loss(dial.max_loss, self.hull, context)
        rate = dial.tokens_per_second
        if rate is not None and rate > 0 and isinstance(self.cost, MeasuredCost):
            asked = 1e3 / rate / self.cost.dense(context)
        if line := below_sensible(asked, self.hull, context):
            self._warned = True
            warnings.warn(line, QualityWarning, stacklevel=3)

    def _tokens(self, prompt: Prompt | None, parse_special: bool) -> list[int]:
        if prompt is None:
            raise UsageError("prompt: got none, expected text, token ids or messages")
        most, vocab_size = int(self._info.max_context), self.bundle.config.model.vocab_size
        if isinstance(prompt, str):
            check_length(prompt, lambda part: self.encode(part, parse_special=parse_special), most)
            return self.encode(prompt, parse_special=parse_special)
        if is_chat(prompt) and self._info.has_chat and all(_is_plain(message) for message in prompt):
            return self._encode_chat(prompt, most)
        if is_chat(prompt):
            return prompt_tokens(prompt, self.tokenizer, self._template, vocab_size, max_context=most)
        return given_tokens(prompt, vocab_size)

    def _encode_chat(self, messages: Sequence[Any], most: int) -> list[int]:
        for message in messages:
            check_length(message["content"], self.encode, most)
        plain = [structs.Message(message["role"].encode(), message["content"].encode()) for message in messages]
        given = (structs.Message * len(plain))(*plain)
        count, capacity = c_size_t(), 64 + sum(len(message["content"].encode()) + 64 for message in messages)
        while True:
            tokens = (c_int32 * capacity)()
            core().sol_model_encode_chat(self._model, given, len(plain), tokens, capacity, byref(count))
            if count.value <= capacity:
                return tokens[: count.value]
            capacity = count.value


def _require_same(bundle: Bundle, model: c_void_p) -> None:
    """Raises BundleError if the core has just loaded other files than those of `bundle`.

    Renaming a file changes its state. So this finds other weights also if the right ones are back by now.
    """
    hint, path = "the bundle was replaced meanwhile: load it again", bundle.file(bundle.config.weights_file)
    if model_info(model).identity.decode() != bundle.identity:
        raise BundleError(bundle.path, CONFIG_NAME, "another file", "the file that was read before", hint)
    try:
        state = FileState.of(path)
    except OSError as error:
        raise BundleError(path, "", one_line(error), "the file whose hash was compared", hint) from None
    bundle.require_weights(state)


def _path(path: Path | str) -> bytes:
    return str(path).encode("utf-8", "surrogateescape")


def _given_path(what: str, path: Path | str, hint: str) -> bytes:
    """The path as the core takes it. Raises UsageError for a name that no file can have, where C's string would end."""
    try:
        name = _path(path)
    except UnicodeEncodeError:
        raise UsageError(f"{what} {brief(str(path))}: half of a surrogate pair; {hint}") from None
    if b"\0" in name:
        raise UsageError(f"{what} {brief(str(path))}: a NUL in the name; {hint}")
    return name


def _is_plain(message: Any) -> bool:
    """True if the core takes this message: a role that it knows and a text, and nothing else."""
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and all(isinstance(part, str) and _is_plain_text(part) for part in message.values())
        and message["role"] in _ROLES
    )


def _is_plain_text(text: str) -> bool:
    """True if C's strings can hold a text: neither a NUL nor half of a surrogate pair is in it."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _set_generation(options: structs.GenerateOptions, given: dict[str, Any], vocab_size: int) -> list[Any]:
    """Fills the options that `GenerationConfig` has. Returns what they point to. Raises UsageError."""
    config = GenerationConfig().updated(**given)
    for name in given.keys() & set(_NUMBERS):
        setattr(options, name, getattr(config, name))
    for name in given.keys() & set(_COUNTS):
        setattr(options, name, min(getattr(config, name), _LARGEST))
    if config.seed is not None:
        options.seed = config.seed
    if "do_sample" in given:
        options.do_sample = int(config.do_sample)
    kept: list[Any] = []
    if "logit_bias" in given:
        config.check_vocabulary(vocab_size)
        biases = (structs.LogitBias * max(len(config.logit_bias), 1))(
            *(structs.LogitBias(token, bias) for token, bias in config.logit_bias.items())
        )
        options.logit_bias, options.num_logit_bias = biases, len(config.logit_bias)
        kept.append(biases)
    if "stop_strings" in given:
        if cut := [text for text in config.stop_strings if "\0" in text]:
            raise UsageError(
                f"generation setting stop_strings: got {brief(cut[0])}, expected no NUL; use the Python engine for it"
            )
        strings = (c_char_p * len(config.stop_strings))(
            *(text.encode("utf-8", "replace") for text in config.stop_strings)
        )
        options.stop_strings, options.num_stop_strings = strings, len(strings)
        kept.append(strings)
    if "eos_token_id" in given:
        ids = [token for token in config.eos_token_id if token <= _LARGEST]
        ends = (c_int32 * max(len(ids), 1))(*ids)  # one that is empty has no address
        options.end_tokens, options.num_end_tokens = ends, len(ids)
        kept.append(ends)
    return kept


def _measured_costs(bundle: Bundle, model: c_void_p, machine: tuple[str, int, bool, str]) -> tuple[CostModel, str]:
    """Times the actions and keeps the table for both engines. Returns the costs and a line for the user."""
    path = cost_table_path(bundle, *machine)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        core().sol_model_measure_costs(model, _path(file))
        table = CostTable.from_json(file.read_text(encoding="utf-8"))
    return MeasuredCost(bundle.config, table), keep_quick(replace(table, device=device_string(*machine)), path)
