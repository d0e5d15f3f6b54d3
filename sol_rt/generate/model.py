"""`SolModel`: a bundle ready to generate and to score. The budget is an argument of every call.

Opening a model makes ONNX Runtime's process-wide thread pool. Other sessions of the same program then have to use that
pool, too: `SessionOptions.use_per_session_threads = False`.
"""

from __future__ import annotations

import contextlib
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sol_rt.budget.controller.base import AxisTargets, BaseController
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.budget.cost.cost_table import (
    IN_BYTES,
    CostTable,
    MeasuredCost,
    cost_table_path,
    keep_quick,
    load_cost_model,
)
from sol_rt.budget.dial import (
    DEFAULT_MAX_LOSS,
    KEEP_LOSS,
    Dial,
    MakeSchedule,
    below_sensible,
    make_controller,
    untried_states,
)
from sol_rt.budget.dominated import cost_of_gpu, ineffective, replacements, without_dominated
from sol_rt.budget.hull import Hull
from sol_rt.budget.losses import ActionLosses
from sol_rt.budget.policy import DeferredPolicy, PolicySession
from sol_rt.budget.schedules import Policy, Schedule, default_schedule, is_constant, make_schedule, schedule_actions
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.engine.hardware import tuning
from sol_rt.errors import QualityWarning, UsageError, WriteError, brief
from sol_rt.generate.arguments import as_switch, opened_bundle
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.loop import Decoder, check_room, score_steps
from sol_rt.generate.own_schedule import made_schedule
from sol_rt.generate.prompt import Prompt, is_chat, prompt_tokens, token_ids
from sol_rt.generate.replay import replay_decoder
from sol_rt.generate.results import Generation, Scores
from sol_rt.generate.stream import Stream
from sol_rt.generate.trace import Trace, TraceHeader, TraceWriter, check_trace_path
from sol_rt.progress import silent
from sol_rt.store.verified import check_weights
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer

_TUNE_SECONDS = 1.5


def _measured_quickly(engine: Engine, otherwise: CostModel) -> CostModel:
    """Times the actions of the engine's bundle. Keeps the table for the next time if the home folder allows it, and no
    better table is there.

    Returns `otherwise` if the export measured no losses: what its budgets buy is then unknown in any unit.
    """
    bundle = engine.bundle
    if not bundle.config.losses_measured:
        return otherwise
    from sol_rt.budget.cost.profile import measure_quickly

    table = measure_quickly(engine, bundle)
    told = (otherwise.note.removesuffix(IN_BYTES), keep_quick(table, cost_table_path(bundle, *engine.machine)))
    return MeasuredCost(bundle.config, table, "; ".join(filter(None, told)))


def _asked(controller: BaseController, context: int) -> float | None:
    """The budget that a run asks for before its first step: what a rate or a loss comes to there. None under axis
    targets.
    """
    if controller.budget is None and isinstance(controller, Controller):
        return min(controller.allowance(context), 1.0)  # a slow rate allows the policy's cost beside a dense step's
    return controller.requested


def _quick_table(cost: CostModel) -> CostTable | None:
    """The table that the costs are of, if it was measured quickly."""
    table = cost.cost_table if isinstance(cost, MeasuredCost) else None
    return table if table is not None and table.quick else None


def _settings_are_due(engine: Engine, cost: CostModel) -> bool:
    """True if settings of the operators should be tried before quickly measured costs are used.

    The native core, which keeps no settings, may have measured the costs; or the settings were tried over an hour ago
    and the times scattered.
    """
    library = engine.provider.library
    if library is None or _quick_table(cost) is None:
        return False
    return tuning.stored(tuning.machine_key(engine.threads, library)) is None


def _fits_the_settings(engine: Engine, cost: CostModel) -> bool:
    """True if costs were measured under the settings that the operators run with. A full profile always counts."""
    library, table = engine.provider.library, _quick_table(cost)
    return library is None or table is None or table.tuning in (None, tuning.current(library))


def _tune_quickly(engine: Engine) -> None:
    """Tries settings of the operators, once for a processor and a build, and copies once for each model. Keeps the best
    settings.

    A home folder that cannot be written is no error: the settings serve this process.
    """
    library = engine.provider.library
    if library is None or not engine.bundle.config.losses_measured:  # then nothing is measured, and all steps are dense
        return
    key = tuning.machine_key(engine.threads, library)
    if tuning.stored(key) is None:
        from sol_rt.budget.cost.tune import tune

        tuned = tune(engine, library, silent, seconds=_TUNE_SECONDS, quick=True)
        with contextlib.suppress(WriteError):
            tuning.save(key, tuned)
    if (name := engine.bundle.config.model.name) not in tuning.gains_of_copies(key):
        from sol_rt.budget.cost.tune import tune_copies

        gain = tune_copies(engine, library, seconds=_TUNE_SECONDS / 3)
        with contextlib.suppress(WriteError):
            if gain is not None:
                tuning.save_gain_of_copies(key, name, gain)


class SolModel:
    """A model whose compute budget is a dial. It runs one generation at a time.

    Every method may be called from any thread. `generate` and `score` wait while another thread is in one of them. A
    `Stream` is open from its first token until it ends, is closed or is dropped. Meanwhile other threads get a
    BusyError from all three, so text is never mixed. Within one thread the newest generation wins, and an older stream
    raises BusyError at its next token. So does a stream between whose tokens anyone runs or drops tokens on `engine`.
    `decoder` and `engine` are for one thread at a time; another one gets a BusyError. To generate in several threads at
    once, open the bundle once for each: they share the weights' memory.

    Attributes:
        bundle: the opened bundle.
        engine: the sessions and the KV cache.
        cost: the cost model, in whose unit budgets are counted.
    """

    def __init__(self, engine: Engine, cost: CostModel) -> None:
        self.bundle: Bundle = engine.bundle
        self.engine = engine
        self.cost = cost
        self._turns = engine.turns
        self._warned = self._warned_of_states = False

    def __repr__(self) -> str:
        config, provider = self.bundle.config, self.engine.provider
        where = f"{provider.name}, {self.engine.threads} threads" if provider.gpu is None else provider.name
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
            prefill: key of the variant that runs prompts, as `s100-q4`: a faster first token at some loss, which
                `Generation.expected_loss` does not count. None for the dense one.
            cost: a cost model; by default the measured one if this device was measured, else as `measure_costs`
                says.
            measure_costs: whether to time the actions, once for a bundle and device, if the device was not measured:
                about two seconds. Before that, once for a processor, settings of its operators are tried, for another
                one or two, and once for a bundle copies of its matrices. It needs the CPU and measured losses. If
                not, costs are bytes.
            verify: whether to compare the files' hashes with the config: of the weights at their first load, which
                takes about a second a gigabyte, and when they have changed since. An opened bundle has its own.

        Raises BundleError, ProviderError, UsageError.
        """
        if cost is not None and not all(hasattr(cost, name) for name in ("name", "unit", "dense_action", "table")):
            raise UsageError(f"cost: got {brief(cost)}, expected a cost model; leave it out for this device's own")
        native_ops, measure_costs = as_switch("native_ops", native_ops), as_switch("measure_costs", measure_costs)
        bundle, _ = check_weights(opened_bundle(path, verify))
        engine = Engine(
            bundle,
            provider=provider,
            threads=threads,
            native_ops=native_ops,
            device=device,
            max_context=max_context,
            prefill=prefill,
        )
        engine.open_ahead(engine.prefill)
        given, cost = cost, cost or load_cost_model(bundle, *engine.machine, quick=measure_costs)
        # a step needs a token before it
        if measure_costs and given is None and engine.provider.gpu is None and engine.max_context > 1:
            if bundle.config.losses_measured and (cost.name == "bytes" or _settings_are_due(engine, cost)):
                engine.finish_ahead()
                _tune_quickly(engine)
            if cost.name == "bytes" or not _fits_the_settings(engine, cost):
                cost = _measured_quickly(engine, cost)
        return cls(engine, cost)

    @property
    def where(self) -> dict[str, str]:
        """The keys by which every command's JSON says where the model computes."""
        return self.engine.provider.as_json()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer. Raises BundleError if it does not fit the model."""
        return self.bundle.tokenizer()

    @cached_property
    def _template(self) -> ChatTemplate:
        return self.bundle.chat_template()

    @cached_property
    def _policy(self) -> PolicySession:
        return PolicySession(self.bundle, native_ops=self.engine.native_ops, weights=self.engine.weights)

    @cached_property
    def losses(self) -> ActionLosses:
        """Expected loss of each action, as the export measured it."""
        return ActionLosses(self.bundle.config)

    @cached_property
    def hull(self) -> Hull | None:
        """The lower hull of the bundle's actions on this device; None if the export measured no losses."""
        if not self.bundle.config.losses_measured:
            return None
        actions = without_dominated(schedule_actions(self.bundle.config, "hull"), self.dominated)
        return Hull(tuple(dict.fromkeys(actions)), self.cost, self.losses.table)

    @cached_property
    def _gpu_cost(self) -> CostModel | None:
        return cost_of_gpu(self.engine.provider, self.cost, self.bundle.config)

    @cached_property
    def dominated(self) -> dict[Action, Action]:
        """Actions that save nothing on this GPU, each with the action that is used instead.

        Empty on the CPU: the export has dropped its dominated actions already.
        """
        return {} if self._gpu_cost is None else replacements(self.bundle.config, self._gpu_cost)

    def ineffective(
        self, schedule: str | None, kv_density: float | None, channel_density: float | None, bits: float | None
    ) -> str:
        """One line about settings of a `Dial` that save nothing on this GPU, though they are followed.

        Empty where there is nothing to say. Raises UsageError for a malformed tag.
        """
        if self._gpu_cost is None:
            return ""
        targets = {"kv_density": kv_density, "channel_density": channel_density, "bits": bits}
        return ineffective(self.bundle.config, self._gpu_cost, schedule, targets, self.engine.provider_name)

    @cached_property
    def _defaults(self) -> GenerationConfig:
        return GenerationConfig.from_bundle(self.bundle)

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
            generation: settings of `GenerationConfig`, under Hugging Face's names.

        Warns with QualityWarning, once for each model, of a budget below the sensible ones, and of cheap steps where
        layers have a state.
        Raises UsageError, ContextError, BundleError before the first step; NumericError, SolError while it runs.
        """
        if replay is not None and not isinstance(replay, Trace):
            raise UsageError(f"replay: got {brief(replay)}, expected a Trace; read_trace reads one from a file")
        if trace is not None:
            check_trace_path(self.bundle, trace)
        if reuse_cache is None:
            reuse_cache = prompt is not None and is_chat(prompt)
        reuse_cache = as_switch("reuse_cache", reuse_cache)
        parse_special = as_switch("parse_special", parse_special)
        config = self._generation_config(generation, replay)
        tokens = self._tokens(prompt, replay, parse_special)
        if replay is None:
            seed = generation.get("seed")
            dial = Dial(budget, schedule, kv_density, channel_density, bits, tokens_per_second, seed, max_loss)
            name, decoder = self.decoder(dial)
            self._warn_below_sensible(decoder.controller, len(tokens))
            if not self._warned_of_states and (line := untried_states(self.bundle.config, dial)):
                self._warned_of_states = True
                warnings.warn(line, QualityWarning, stacklevel=2)
        else:
            name, decoder = replay.header.schedule, replay_decoder(self.engine, self.cost, replay)
        writer = None
        if trace is not None:
            check_room(self.engine, tokens)  # before the file is replaced
            writer = TraceWriter(trace, self._header(prompt, tokens, name, decoder, config))
        return Stream(
            name,
            decoder,
            tokens,
            config,
            self.tokenizer,
            turns=self._turns,
            losses=self.losses,
            reuse=reuse_cache,
            trace=writer,
            replay=replay,
        )

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
        with self._turns.generation():
            _, decoder = self.decoder(replace(dial, budget=1.0) if dial.is_empty else dial)
            self._turns.end_stream()
            logprobs = score_steps(decoder, ids, context)
        return Scores(logprobs, decoder.controller.achieved, dict(decoder.actions))

    def decoder(self, dial: Dial) -> tuple[str, Decoder]:
        """A fresh run of decode steps under `dial`, and the name of its schedule.

        Raises UsageError for contradictory or unreachable requests, BundleError for a policy that does not fit.
        """
        if not isinstance(dial, Dial):
            raise UsageError(f"decoder: got {brief(dial)}, expected a Dial, as in Dial(budget=0.7)")
        if callable(dial.schedule):
            controller = self._controller("own", dial)
            schedule = made_schedule(dial.schedule, controller)
            return schedule.name, Decoder(self.engine, controller, schedule)
        name = dial.schedule or self.default_schedule(dial.budget, dial.axis_targets)
        controller = self._controller(name, dial)
        return name, Decoder(self.engine, controller, self._schedule(name, controller, dial.seed))

    def default_schedule(self, budget: float | None = None, axis_targets: AxisTargets | None = None) -> str:
        """The schedule of a run that names none: `default_schedule` of sol_rt.budget.schedules on this device."""
        # by the clock, what Python does around the policy may take what the policy gains (docs/results/policy.md); and
        # the gain was measured with all actions
        gain_counts = self.cost.name == "bytes" and not self.dominated
        return default_schedule(self.bundle.config, self.cost, budget, axis_targets, gain_counts)

    def _controller(self, name: str, dial: Dial) -> BaseController:
        axes = dial.axis_targets
        if is_constant(name) and dial.is_set:
            raise UsageError(
                f"schedule {name}: fixes the action; leave out budget, kv_density, channel_density, bits, rate and loss"
            )
        if dial.is_empty:
            known = self.bundle.config.losses_measured and name in KEEP_LOSS
            dial = replace(dial, max_loss=DEFAULT_MAX_LOSS) if known else replace(dial, budget=1.0)
        if dial.max_loss is not None and dial.schedule and name not in KEEP_LOSS:
            raise UsageError(f"--max-loss: the schedule {name} keeps no loss; leave out --schedule, or give --budget")
        actions = schedule_actions(self.bundle.config, name, axes)
        if not axes.any():  # a mean setting may need dominated actions, too
            actions = without_dominated(actions, self.dominated)
            if name != "sol":  # the policy has a logit for each place, so its actions may come twice
                actions = tuple(dict.fromkeys(actions))
        return make_controller(
            actions,
            self.cost,
            1.0 if dial.budget is None else dial.budget,
            axis_targets=axes,
            tokens_per_second=dial.tokens_per_second,
            max_loss=dial.max_loss,
            hull=self.hull if dial.max_loss is not None else None,
            policy_cost=name == "sol",
        )

    def _schedule(self, name: str, controller: BaseController, seed: int | None) -> Schedule:
        policy: Policy | None = None
        if name == "sol" and (spec := self.bundle.config.policy) is not None:
            # at a budget of 1 the policy is not asked, until the budget changes
            policy = DeferredPolicy(spec, lambda: self._policy) if controller.dense_only else self._policy
        variants = tuple(self.bundle.config.variants)
        return make_schedule(name, controller, seed=seed, policy=policy, hull=self.hull, variants=variants)

    def _warn_below_sensible(self, controller: BaseController, context: int) -> None:
        """Warns, once, if what is asked for is below the budget at which text suffers visibly."""
        if self._warned or self.hull is None or not isinstance(controller, Controller):
            return
        if line := below_sensible(controller.allowance(context), self.hull, context):
            self._warned = True
            warnings.warn(line, QualityWarning, stacklevel=3)

    def _tokens(self, prompt: Prompt | None, replay: Trace | None, parse_special: bool) -> list[int]:
        """Tokens of the prompt; in a replay the trace's, with which a given prompt has to agree."""
        if prompt is None:
            if replay is None:
                raise UsageError("prompt: got none, expected text, token ids or messages")
            return token_ids("replay: prompt", replay.header.prompt_tokens, self.bundle.config.model.vocab_size)
        template = self._template if is_chat(prompt) else None
        tokens = prompt_tokens(
            prompt,
            self.tokenizer,
            template,
            self.bundle.config.model.vocab_size,
            parse_special=parse_special,
            max_context=self.engine.max_context,
        )
        if replay is not None and tuple(tokens) != replay.header.prompt_tokens:
            raise UsageError("replay: the prompt is not the trace's; leave it out, or record the run again")
        return tokens

    def _generation_config(self, given: dict[str, Any], replay: Trace | None) -> GenerationConfig:
        """The model's own settings, changed by the trace's in a replay, then by the caller's."""
        recorded = {} if replay is None else replay.header.generation
        config = self._defaults.updated(**{**recorded, **{k: v for k, v in given.items() if v is not None}})
        if config.seed is None and not config.greedy:
            config = config.updated(seed=secrets.randbits(32))  # a number that a trace can hold
        if replay is not None:
            config = config.updated(max_new_tokens=max(len(replay.records), 1))
        config.check_vocabulary(self.bundle.config.model.vocab_size)
        return config

    def _header(
        self, prompt: Prompt | None, tokens: list[int], name: str, decoder: Decoder, config: GenerationConfig
    ) -> TraceHeader:
        generation = asdict(config)
        del generation["max_new_tokens"]  # a replay ends where the trace does
        del generation["top_logprobs"]  # no token depends on it
        return TraceHeader(
            bundle=self.bundle.config.model.name,
            config_sha256=self.bundle.identity,
            prompt_tokens=tuple(tokens),
            prompt=prompt if isinstance(prompt, str) else self.tokenizer.decode(tokens, skip_special_tokens=False),
            schedule=name,
            budget=_asked(decoder.controller, len(tokens)),
            cost_model=self.cost.name,
            generation=generation,
            prefill=None if decoder.prompt_action == self.bundle.config.dense else decoder.prompt_action.variant,
        )
