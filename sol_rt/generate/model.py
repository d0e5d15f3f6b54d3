"""`SolModel`: a bundle ready to generate and to score. The budget is an argument of every call.

The native core runs everything; this is its binding. Opening a model makes a process-wide thread pool, in the core's
ONNX Runtime. Other sessions of the same program then have to use a pool of that kind, too:
`SessionOptions.use_per_session_threads = False`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sol_rt.budget.cost.cost_table import MeasuredCost
from sol_rt.budget.cost.model import BytesCost, CostModel
from sol_rt.budget.dial import (
    KEEP_LOSS,
    AxisTargets,
    Dial,
    MakeSchedule,
    below_sensible,
    budget_of_loss,
    untried_states,
)
from sol_rt.budget.dominated import cost_of_gpu, ineffective, replacements, without_dominated
from sol_rt.budget.hull import Hull
from sol_rt.budget.schedules import is_constant
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import QualityWarning, UsageError, brief
from sol_rt.generate.arguments import as_switch, opened_bundle
from sol_rt.generate.grammar import Grammar, Matchers
from sol_rt.generate.native import text
from sol_rt.generate.native.callbacks import raising_of
from sol_rt.generate.native.decoder import Decoder
from sol_rt.generate.native.engine import Engine
from sol_rt.generate.native.host_engine import CacheEngine
from sol_rt.generate.native.options import Options
from sol_rt.generate.native.session import Session
from sol_rt.generate.prompt import (
    Prompt,
    Tools,
    at_least_one,
    check_length,
    check_tools,
    given_tokens,
    is_chat,
    prompt_tokens,
    token_ids,
)
from sol_rt.generate.request import Checks, Request
from sol_rt.generate.results import Generation, Scores
from sol_rt.generate.stream import Stream
from sol_rt.generate.trace import Trace, check_trace_path
from sol_rt.native import structs
from sol_rt.native.library import core
from sol_rt.store.verified import check_weights
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer


class SolModel:
    """A model whose compute budget is a dial. It runs one generation at a time.

    Every method may be called from any thread. `generate` and `score` wait while another thread is in one of them. A
    `Stream` is open from its first token until it ends, is closed or is dropped. Meanwhile other threads get a
    BusyError from all three, so text is never mixed. Within one thread the newest generation wins, and an older stream
    raises BusyError at its next token. So does a stream between whose tokens anyone runs or drops tokens on `engine`.
    `engine` is for one thread at a time; another one gets a BusyError. To generate in several threads at once, open the
    bundle once for each: they share the weights' memory.

    Attributes:
        bundle: the opened bundle.
        provider: where the graphs run.
        prefill: the action that runs prompts.
        engine: the KV cache, with runs of given tokens.
        native: True if native operators run, False if the function bodies in the graphs do.
        device: names what measured costs depend on: processor, threads and libraries, or the GPU with its own.
    """

    def __init__(self, engine: Engine) -> None:
        """`from_pretrained` calls it."""
        self.bundle, self.provider, self.prefill = engine.bundle, engine.provider, engine.prefill
        self.device, self.native = engine.device, engine.native
        self._model, self._info = engine.model, engine.info
        self._opened = engine  # keeps the `sol_model`
        self.engine: Session = engine
        self._turns = self.engine.turns
        self._checks = Checks(self.engine, self.session)
        self._cost = engine.cost
        self._warned = self._warned_of_states = False

    def __repr__(self) -> str:
        config, provider = self.bundle.config, self.provider
        where = f"{provider.name}, {provider.threads} threads" if provider.gpu is None else provider.name
        return (
            f"<SolModel {config.model.name}: {len(config.variants)} variants, {len(config.actions)} actions, "
            f"costs {self.cost.name}, provider {where}, context {self.engine.max_context} tokens>"
        )

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str | Bundle,
        *,
        provider: str = "auto",
        threads: int | None = None,
        native_ops: bool = True,
        device: int = 0,
        max_context: int | None = None,
        prefill: str | None = None,
        cost: CostModel | None = None,
        measure_costs: bool = True,
        verify: bool = True,
    ) -> SolModel:
        """Opens a bundle.

        Args:
            path: a bundle folder, the name of one under the home folder, or an opened bundle.
            provider: `auto`, `cpu`, `cuda` or `webgpu`.
            threads: size of the process-wide thread pool; all usable processors by default.
            native_ops: use the native operators where they are built.
            device: number of the GPU.
            max_context: a cap in tokens below the model's own.
            prefill: key of the variant that runs prompts, as `s100-q4`. None: the dial chooses.
            cost: costs of bytes or of a table of your own; by default the measured ones if this device was measured,
                else as `measure_costs` says.
            measure_costs: whether to time the actions, once for a bundle and device, if the device was not measured:
                2 to 6 s, in which settings of the operators are tried, too. Ctrl-C waits for its end. It needs the CPU
                and measured losses. If not, costs are bytes. `SOL_RT_COSTS` in the environment may say so, too.
            verify: whether to compare the files' hashes with the config: of the weights at their first load, which
                takes about a second a gigabyte, and when they have changed since. An opened bundle has its own.

        Raises BundleError, ProviderError, UsageError.
        """
        if cost is not None:
            _check_cost(cost)
        native_ops, measure_costs = as_switch("native_ops", native_ops), as_switch("measure_costs", measure_costs)
        bundle, _ = check_weights(opened_bundle(path, verify))
        source = structs.COSTS_DEFAULT if measure_costs else structs.COSTS_PROFILED
        engine = Engine(
            bundle,
            provider=provider,
            threads=threads,
            native_ops=native_ops,
            device=device,
            max_context=max_context,
            prefill=prefill,
            costs=source if cost is None else structs.COSTS_BYTES,
        )
        opened = cls(engine)
        if cost is not None:
            opened.cost = cost
        return opened

    @property
    def cost(self) -> CostModel:
        """The cost model, in whose unit budgets are counted.

        Setting it holds from the next generation on. Raises UsageError for costs of another kind.
        """
        return self._cost

    @cost.setter
    def cost(self, cost: CostModel) -> None:
        _check_cost(cost)
        table = None
        if isinstance(cost, MeasuredCost):
            table = replace(cost.cost_table, bundle=self.bundle.identity).to_json().encode()
        core().sol_model_set_costs(self._model, table)
        self._cost = cost
        for name in ("hull", "_gpu_cost", "dominated"):
            self.__dict__.pop(name, None)

    @property
    def where(self) -> dict[str, str]:
        """The keys by which every command's JSON says where the model computes."""
        return self.provider.as_json()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer. Raises BundleError if it does not fit the model."""
        return self.bundle.tokenizer()

    @cached_property
    def _template(self) -> ChatTemplate:
        """Renders conversations that the core cannot."""
        return self.bundle.chat_template()

    @cached_property
    def _matchers(self) -> Matchers:
        model = self.bundle.config.model
        return Matchers(self.tokenizer, model.vocab_size, model.eos_token_ids)

    @cached_property
    def chat_template_source(self) -> str:
        """The chat template's text; empty if the model has none. Raises BundleError if it is unreadable."""
        return self.bundle.chat_template_source()

    @cached_property
    def hull(self) -> Hull | None:
        """The lower hull of the bundle's actions on this device; None if the export measured no losses."""
        if not self.bundle.config.losses_measured:
            return None
        actions = without_dominated(self.cost.schedule_actions("hull"), self.dominated)
        return Hull(tuple(dict.fromkeys(actions)), self.cost)

    @cached_property
    def _gpu_cost(self) -> CostModel | None:
        return cost_of_gpu(self.provider, self.cost, self.bundle.config)

    @cached_property
    def dominated(self) -> dict[Action, Action]:
        """Actions that save nothing on this GPU, each with the action that is better at the same cost.

        Empty on the CPU: the export has dropped its dominated actions already.
        """
        return {} if self._gpu_cost is None else replacements(self.bundle.config, self._gpu_cost)

    def ineffective(
        self, schedule: str | None, kv_density: float | None, channel_density: float | None, bits: float | None
    ) -> str:
        """One line about settings of a `Dial` that do not pay on this device, though they are followed.

        Empty where there is nothing to say. Raises UsageError for a malformed tag.
        """
        lines = [self.cost.schedule_note(schedule or "")]
        if self._gpu_cost is not None:
            targets = {"kv_density": kv_density, "channel_density": channel_density, "bits": bits}
            lines.append(ineffective(self.bundle.config, self._gpu_cost, schedule, targets, self.provider.name))
        return "; ".join(filter(None, lines))

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        budget: float | None = None,
        schedule: str | MakeSchedule | None = None,
        kv_density: float | None = None,
        channel_density: float | None = None,
        bits: float | None = None,
        tokens_per_second: float | None = None,
        max_loss: float | None = None,
        trace: Path | str | None = None,
        replay: Trace | None = None,
        reuse_cache: bool | None = None,
        parse_special: bool = False,
        progress: Callable[[int, int], object] | None = None,
        grammar: Grammar | None = None,
        lossless: bool = False,
        lookup: bool = False,
        **generation: Any,
    ) -> Stream:
        """Starts a generation and yields its tokens.

        Args:
            prompt: text, token ids, or chat messages; in a replay, the trace's own by default.
            budget, schedule, kv_density, channel_density, bits, tokens_per_second, max_loss: as in `Dial`.
            trace: file to write every step to.
            replay: a trace whose actions run again, with its settings of `generation` unless others are given.
                `Generation.first_difference` then reports where the tokens differ.
            reuse_cache: whether to keep the tokens of the prompt that the cache begins with, under whatever budget they
                were written. By default only for chat messages, so that text and tokens give the same result in every
                call.
            parse_special: whether special tokens that are written in a text become those tokens. In chat messages they
                never do.
            progress: called with the tokens of the prompt that are done and all that are to run, after each part of
                up to 512 tokens. An exception of it ends the generation and is raised.
            grammar: what the text has to be. Log-probabilities stay those of all tokens. A trace does not hold it: give
                it again in a replay.
            lossless: whether to take dense steps and draft tokens: the text of `budget=1.0`, sooner where it repeats
                itself or the prompt. The dial has to ask for nothing else.
            lookup: whether to draft tokens under whatever the dial asks for. Where one action runs every step, the text
                is that of single steps; in a mix of `hull` one action runs all tokens of a run.
            generation: settings of `GenerationConfig`, under Hugging Face's names.

        Warns with QualityWarning, once for each model, of a budget below the sensible ones, and of cheap steps where
        layers have a state.
        Raises UsageError, ContextError, BundleError before the first step; NumericError, SolError while it runs.
        """
        if replay is not None and not isinstance(replay, Trace):
            raise UsageError(f"replay: got {brief(replay)}, expected a Trace; read_trace reads one from a file")
        if progress is not None and not callable(progress):
            raise UsageError(f"progress: got {brief(progress)}, expected a function of tokens done and tokens in all")
        if grammar is not None and not isinstance(grammar, Grammar):
            raise UsageError(f"grammar: got {brief(grammar)}, expected a Grammar, as of Grammar.json_schema")
        dial = Dial(
            budget, schedule, kv_density, channel_density, bits, tokens_per_second, generation.get("seed"), max_loss
        )
        options = Options(self.cost, dial if replay is None else Dial())
        options.set_generation({name: value for name, value in generation.items() if value is not None})
        if grammar is not None:
            options.set_mask(self._matchers.mask(grammar))
        if trace is not None:
            check_trace_path(self.bundle, trace)
            options.set_trace(trace)
        if reuse_cache is None:
            reuse_cache = prompt is not None and is_chat(prompt)
        options.struct.reuse_cache = int(as_switch("reuse_cache", reuse_cache))
        options.struct.lossless = int(as_switch("lossless", lossless))
        options.struct.lookup = int(as_switch("lookup", lookup))
        parse_special = as_switch("parse_special", parse_special)
        tokens = self._tokens(prompt, parse_special) if prompt is not None or replay is None else []
        written = None
        if not self._info.has_tokenizer:
            written = self.tokenizer.stream(tokens or (() if replay is None else replay.header.prompt_tokens))
        if replay is not None:
            return Stream(self.engine, self._checks, Request(tokens, options, replay, text=written, progress=progress))
        held = None if lossless else self._held_budget(dial)
        request = Request(tokens, options, None, held, dial.tokens_per_second, written, progress)
        stream = Stream(self.engine, self._checks, request)
        self._warn_below_sensible(dial, len(tokens))
        if not self._warned_of_states and (line := untried_states(self.bundle.config, dial)):
            self._warned_of_states = True
            warnings.warn(line, QualityWarning, stacklevel=2)
        return stream

    def generate(self, prompt: Prompt | None = None, **arguments: Any) -> Generation:
        """Runs a generation to its end; arguments and errors as in `stream`."""
        with self._turns.generation():
            stream = self.stream(prompt, **arguments)
            for _ in stream:
                pass
        result = stream.result
        assert result is not None  # a generation that ends without an error has a token
        return result

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
        """Log-probabilities of given tokens, computed by the same decode steps that generation takes.

        Args:
            tokens: token ids.
            context: number of tokens at the start that are prefilled and not scored. Each later token is
                scored, then processed as one decode step; the last one is only scored.
            budget: as in `Dial`; 1 by default, unless something is asked for in its place.
            schedule, kv_density, channel_density, bits, tokens_per_second, max_loss, seed: as in `Dial`.

        Raises UsageError if nothing is left to score, and what `stream` raises.
        """
        ids = token_ids("score", tokens, self.bundle.config.model.vocab_size)
        if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context < len(ids):
            raise UsageError(
                f"score: got {len(ids)} tokens and a context of {brief(context)}, expected 1 to fewer than all"
            )
        dial = Dial(budget, schedule, kv_density, channel_density, bits, tokens_per_second, seed, max_loss)
        options = Options(self.cost, dial)
        with self._turns.generation(), raising_of(options.own, self._turns):
            self._turns.end_stream()
            self.engine.owner = None
            scored = self.engine.score(ids, context, options.struct)
        return Scores(scored.logprobs, scored.achieved_budget, dict(Counter(scored.actions)))

    def encode(self, prompt: Prompt, *, tools: Tools = ()) -> list[int]:
        """The token ids of a prompt, as `stream` runs it.

        Args:
            prompt: text, token ids, or chat messages.
            tools: functions that the model may call, in OpenAI's form. They need chat messages, and a chat template
                that writes them.

        Raises UsageError, ContextError, BundleError.
        """
        check_tools(prompt, tools)
        return self._tokens(prompt, False, tools)

    def decoder(self, dial: Dial, session: Session | None = None) -> Decoder:
        """A run of decode steps of given tokens under `dial`, on a session of this model; by default on `engine`.

        Raises UsageError for contradictory or unreachable requests, BundleError for a policy that does not fit.
        """
        if not isinstance(dial, Dial):
            raise UsageError(f"decoder: got {brief(dial)}, expected a Dial, as in Dial(budget=0.7)")
        return Decoder(session or self.engine, Options(self.cost, dial), self.prefill)

    def check(self, dial: Dial) -> None:
        """Raises UsageError for a dial that contradicts itself, or that this bundle or device cannot hold."""
        self._checks.check(Request([0], Options(self.cost, dial)))

    def session(self, engine: CacheEngine | None = None) -> Session:
        """A KV cache of its own on this model, for runs and scores of given tokens.

        Args:
            engine: runs the graphs and holds the cache in place of the core; None for the core, on the CPU. Nobody
                else uses it while the session does.
        """
        return Session(self._model, self.bundle, engine)

    def default_schedule(self, axis_targets: AxisTargets | None = None) -> str:
        """The schedule of a run that names none: `CostModel.default_schedule`."""
        return self.cost.default_schedule(axis_targets=axis_targets is not None and axis_targets.any())

    def _held_budget(self, dial: Dial) -> float | None:
        """The budget that a run holds from its start; None where it holds something else, or the action is fixed."""
        if dial.asks_for_no_budget or (isinstance(dial.schedule, str) and is_constant(dial.schedule)):
            return None
        if dial.budget is not None:
            return dial.budget
        name = self.default_schedule() if dial.schedule is None else dial.schedule
        return None if self.bundle.config.losses_measured and name in KEEP_LOSS else 1.0

    def _warn_below_sensible(self, dial: Dial, context: int) -> None:
        """Warns, once, if what is asked for is below the budget at which text suffers visibly."""
        if self._warned or self.hull is None or dial.axis_targets.any():
            return
        asked = 1.0 if dial.budget is None else dial.budget
        if dial.max_loss is not None:
            asked = budget_of_loss(dial.max_loss, self.hull, context)
        elif dial.tokens_per_second is not None:
            asked = 1e3 / dial.tokens_per_second / self.cost.dense(context)
        if line := below_sensible(asked, self.hull, context):
            self._warned = True
            warnings.warn(line, QualityWarning, stacklevel=3)

    def _tokens(self, prompt: Prompt | None, parse_special: bool, tools: Tools = ()) -> list[int]:
        if prompt is None:
            raise UsageError("prompt: got none, expected text, token ids or messages")
        most, vocab_size = self.engine.max_context, self.bundle.config.model.vocab_size
        if not self._info.has_tokenizer and (isinstance(prompt, str) or is_chat(prompt)):
            template = self._template if is_chat(prompt) else None
            return prompt_tokens(
                prompt,
                self.tokenizer,
                template,
                vocab_size,
                parse_special=parse_special,
                max_context=most,
                tools=tools,
            )
        if isinstance(prompt, str):

            def encode(part: str) -> list[int]:
                return text.encode(self._model, part, parse_special=parse_special)

            check_length(prompt, encode, most)
            return at_least_one(encode(prompt) if prompt else [])
        if is_chat(prompt) and not tools and self._info.has_chat and all(map(text.is_plain, prompt)):
            return text.encode_chat(self._model, prompt, most)
        if is_chat(prompt):
            return prompt_tokens(prompt, self.tokenizer, self._template, vocab_size, max_context=most, tools=tools)
        return given_tokens(prompt, vocab_size)


def _check_cost(cost: object) -> None:
    if type(cost) not in (BytesCost, MeasuredCost):  # the core computes the costs: a subclass would not be asked
        got = f"cost: got {brief(cost)}, expected BytesCost or MeasuredCost themselves"
        raise UsageError(f"{got}; leave it out for this device's own")
