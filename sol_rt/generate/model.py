"""`SolModel`: a bundle ready to generate and to score, with the budget as an argument of every call.

Opening one makes ONNX Runtime's process-wide thread pool. A program's other sessions then have to be on it, too:
`SessionOptions.use_per_session_threads = False`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sol_rt.budget.controller import AxisTargets, Controller
from sol_rt.budget.cost import CostModel, FunctionBodyBytes, load_cost_model
from sol_rt.budget.dominated import ineffective, replacements, without_dominated
from sol_rt.budget.policy import PolicySession
from sol_rt.budget.schedules import Schedule, default_schedule, is_constant, make_schedule, schedule_actions
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.errors import UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.loop import (
    Decoder,
    Generation,
    Outcome,
    ReplaySchedule,
    Scores,
    Stream,
    generate_steps,
    peak_rss_mb,
    score_steps,
)
from sol_rt.generate.trace import Trace, TraceHeader, TraceWriter, first_difference
from sol_rt.store.home import find_bundle
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Text, token ids, or chat messages with `role` and `content`."""

MakeSchedule = Callable[[Controller], Schedule]
"""Makes a schedule for one run. The controller has the actions and tells which of them keep the budget."""


@dataclass(frozen=True)
class Dial:
    """How decode steps are to be run: at most one of `budget` below 1, axis means, and a rate.

    Attributes:
        budget: share of the dense cost.
        schedule: `sol`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`; None for the bundle's default. Or a
            function that takes the controller of the run and returns a schedule of your own.
        kv_density, channel_density: mean share of old cached tokens, of base-plane weights.
        bits: mean weight bits.
        tokens_per_second: decode rate to hold.
        seed: of the schedule `random`.
    """

    budget: float = 1.0
    schedule: str | MakeSchedule | None = None
    kv_density: float | None = None
    channel_density: float | None = None
    bits: float | None = None
    tokens_per_second: float | None = None
    seed: int | None = None


class SolModel:
    """A model whose compute budget is a dial. One generation at a time; not for use by several threads at once.

    Attributes:
        bundle: the opened bundle.
        engine: its sessions and cache.
        cost: what budgets are counted in.
    """

    def __init__(self, engine: Engine, cost: CostModel) -> None:
        self.bundle: Bundle = engine.bundle
        self.engine = engine
        self.cost = cost

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str,
        *,
        provider: str = "auto",
        threads: int | None = None,
        native_ops: bool = True,
        device: int = 0,
        max_context: int | None = None,
        cost: CostModel | None = None,
    ) -> SolModel:
        """Opens a bundle.

        Args:
            path: a bundle folder, or the name of one under the home folder.
            provider: `auto`, `cpu`, `cuda` or `webgpu`.
            threads: size of the process-wide thread pool; all usable processors by default.
            native_ops: use the native operators where they are built.
            device: number of the GPU.
            max_context: a cap in tokens below the model's own.
            cost: a cost model; by default milliseconds where this device was calibrated, else bytes.

        Raises BundleError, ProviderError, UsageError.
        """
        bundle = Bundle.open(find_bundle(str(path)))
        engine = Engine(
            bundle, provider=provider, threads=threads, native_ops=native_ops, device=device, max_context=max_context
        )
        return cls(engine, cost or load_cost_model(bundle, *engine.machine))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer. Raises BundleError where it doesn't fit the model."""
        return self.bundle.tokenizer()

    @cached_property
    def _template(self) -> ChatTemplate:
        return self.bundle.chat_template()

    @cached_property
    def _policy(self) -> PolicySession:
        return PolicySession(self.bundle, native_ops=self.engine.native_ops, weights=self.engine.weights)

    @cached_property
    def dominated(self) -> dict[Action, Action]:
        """Actions that a GPU saves nothing by, each with the one used instead; none on the CPU, for which the export
        has looked already."""
        return {} if self._costs_there is None else replacements(self.bundle.config, self._costs_there)

    @cached_property
    def _costs_there(self) -> CostModel | None:
        """What tells of a GPU which actions pay: its calibration, else where function bodies run the bytes that they
        read; None where nothing does."""
        provider = self.engine.provider
        if provider.gpu is None:
            return None
        if self.cost.name == "calibrated":
            return self.cost
        return None if provider.native else FunctionBodyBytes(self.bundle.config)

    def ineffective(
        self, schedule: str | None, kv_density: float | None, channel_density: float | None, bits: float | None
    ) -> str:
        """One line about settings of a `Dial` that save nothing on a GPU, though they are followed; empty where there
        is nothing to say. Raises UsageError for a malformed tag.
        """
        if self._costs_there is None:
            return ""
        targets = {"kv_density": kv_density, "channel_density": channel_density, "bits": bits}
        return ineffective(self.bundle.config, self._costs_there, schedule, targets, self.engine.provider_name)

    @cached_property
    def _defaults(self) -> GenerationConfig:
        return GenerationConfig.from_bundle(self.bundle)

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        budget: float = 1.0,
        schedule: str | MakeSchedule | None = None,
        kv_density: float | None = None,
        channel_density: float | None = None,
        bits: float | None = None,
        tokens_per_second: float | None = None,
        trace: Path | str | None = None,
        replay: Trace | None = None,
        reuse_cache: bool | None = None,
        **generation: Any,
    ) -> Stream:
        """Starts a generation and yields its steps.

        Args:
            prompt: text, token ids, or chat messages; in a replay, the trace's own by default.
            budget, schedule, kv_density, channel_density, bits, tokens_per_second: as in `Dial`.
            trace: file to write every step to.
            replay: a trace whose actions are run again, under its settings of `generation` where none are given;
                `Generation.first_difference` tells where tokens differ.
            reuse_cache: keep what the cache shares with the prompt, whatever budget wrote it; by default for chat
                messages only, so that text and tokens give the same result in every call.
            generation: settings of `GenerationConfig`, under Hugging Face's names.

        Raises UsageError, ContextError, BundleError before the first step; NumericError, SolError while it runs.
        """
        dial = Dial(budget, schedule, kv_density, channel_density, bits, tokens_per_second, generation.get("seed"))
        given = {name: value for name, value in generation.items() if value is not None}
        recorded = {} if replay is None else replay.header.generation
        config = self._defaults.updated(**{**recorded, **given})
        if config.seed is None and not config.greedy:
            config = config.updated(seed=secrets.randbits(32))  # a number that a trace can hold
        tokens = self._prompt(prompt, replay)
        if reuse_cache is None:
            reuse_cache = prompt is not None and _is_chat(prompt)
        if replay is None:
            name, decoder = self.decoder(dial)
        else:
            name, decoder = replay.header.schedule, self._replayer(replay)
            config = config.updated(max_new_tokens=max(len(replay.records), 1))
        writer = None
        if trace is not None:
            writer = TraceWriter(trace, self._header(prompt, tokens, name, decoder.controller, config))
        outcome = Outcome()
        steps = generate_steps(decoder, tokens, config, self.tokenizer, outcome, reuse=reuse_cache, trace=writer)

        def finish() -> Generation | None:
            if writer is not None:
                writer.close()
            return _summary(name, decoder, outcome, len(tokens), replay) if outcome.tokens else None

        return Stream(steps, finish)

    def generate(self, prompt: Prompt | None = None, **arguments: Any) -> Generation:
        """Runs a generation to its end; arguments and errors as in `stream`."""
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
        budget: float = 1.0,
        schedule: str | MakeSchedule | None = None,
        kv_density: float | None = None,
        channel_density: float | None = None,
        bits: float | None = None,
        tokens_per_second: float | None = None,
        seed: int | None = None,
    ) -> Scores:
        """Log-probabilities of given tokens, through the very steps that generation takes.

        Args:
            tokens: token ids.
            context: the first so many are prefilled dense and not scored. Each later token is scored, then processed as
                one decode step; the last is only scored.
            budget, schedule, kv_density, channel_density, bits, tokens_per_second, seed: as in `Dial`.

        Raises UsageError where nothing is left to score, and what `stream` raises.
        """
        if not 1 <= context < len(tokens):
            raise UsageError(
                f"score: got {len(tokens)} tokens and a context of {context}, expected 1 to fewer than all"
            )
        _, decoder = self.decoder(Dial(budget, schedule, kv_density, channel_density, bits, tokens_per_second, seed))
        logprobs = score_steps(decoder, [int(token) for token in tokens], context)
        return Scores(logprobs, decoder.controller.achieved, dict(decoder.actions))

    def decoder(self, dial: Dial) -> tuple[str, Decoder]:
        """A fresh run of decode steps under `dial`, and the name of its schedule.

        Raises UsageError for contradictory or unreachable requests, BundleError for a policy that doesn't fit.
        """
        config = self.bundle.config
        own = dial.schedule if callable(dial.schedule) else None
        name = "own" if callable(dial.schedule) else dial.schedule or default_schedule(config)
        axes = AxisTargets(dial.kv_density, dial.channel_density, dial.bits)
        if is_constant(name) and (dial.budget != 1.0 or axes.any() or dial.tokens_per_second is not None):
            raise UsageError(
                f"schedule {name}: fixes the action; leave out budget, kv_density, channel_density, bits and rate"
            )
        actions = schedule_actions(config, name, axes)
        if not axes.any():  # means of settings need all of them
            actions = without_dominated(actions, self.dominated)
            if name != "sol":  # a policy's actions have places
                actions = tuple(dict.fromkeys(actions))
        controller = Controller(
            actions,
            self.cost,
            dial.budget,
            axis_targets=axes,
            tokens_per_second=dial.tokens_per_second,
            policy_cost=name == "sol",
        )
        if own is not None:
            schedule = own(controller)
            return schedule.name, Decoder(self.engine, controller, schedule)
        return name, Decoder(self.engine, controller, self._schedule(name, controller, dial.seed))

    def _prompt(self, prompt: Prompt | None, replay: Trace | None) -> list[int]:
        if prompt is None:
            if replay is None:
                raise UsageError("prompt: got none, expected text, token ids or messages")
            return list(replay.header.prompt_tokens)
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt, add_special_tokens=True) if prompt else []
        elif _is_chat(prompt):
            rendered = self._template.render(prompt)  # type: ignore[arg-type]
            tokens = self.tokenizer.encode(rendered, add_special_tokens=False)
        else:
            tokens = [int(token) for token in prompt]  # type: ignore[arg-type]
        if not tokens:
            raise UsageError("prompt: got an empty one, expected at least one token")
        if replay is not None and tuple(tokens) != replay.header.prompt_tokens:
            raise UsageError("replay: the prompt is not the trace's; leave it out, or record the run again")
        return tokens

    def _schedule(self, name: str, controller: Controller, seed: int | None) -> Schedule:
        if name == "sol" and controller.dense_only and self.bundle.config.policy is not None:
            name = "dense"  # the policy would not be asked
        policy = self._policy if name == "sol" else None
        return make_schedule(name, controller, seed=seed, policy=policy, variants=tuple(self.bundle.config.variants))

    def _replayer(self, trace: Trace) -> Decoder:
        config, header = self.bundle.config, trace.header
        if header.config_sha256 != self.bundle.identity:
            raise UsageError(f"replay: the trace was made with another bundle ({header.bundle}); name that one")
        schedule = ReplaySchedule(trace)
        schedule.require(config.variants)
        actions = schedule_actions(config, "random")
        controller = Controller(
            actions, self.cost, 1.0 if header.budget is None else header.budget, policy_cost=header.schedule == "sol"
        )
        return Decoder(self.engine, controller, schedule)

    def _header(
        self, prompt: Prompt | None, tokens: list[int], name: str, controller: Controller, config: GenerationConfig
    ) -> TraceHeader:
        generation = asdict(config)
        del generation["max_new_tokens"]  # a replay ends where the trace does
        return TraceHeader(
            bundle=self.bundle.config.model.name,
            config_sha256=self.bundle.identity,
            prompt_tokens=tuple(tokens),
            prompt=prompt if isinstance(prompt, str) else "",
            schedule=name,
            budget=controller.requested,
            cost_model=self.cost.name,
            generation=generation,
        )


def _is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _summary(name: str, decoder: Decoder, outcome: Outcome, prompt_tokens: int, replay: Trace | None) -> Generation:
    controller = decoder.controller
    requested = None if name.startswith("fixed:") else controller.requested
    steps = len(outcome.tokens) - 1
    return Generation(
        text="".join(outcome.pieces),
        tokens=outcome.tokens,
        schedule=name,
        requested_budget=controller.achieved if requested is None else requested,
        achieved_budget=controller.achieved,
        cost_model=controller.cost.name,
        prompt_tokens_per_second=_rate(outcome.prefilled, outcome.prefill_seconds),
        tokens_per_second=_rate(steps, outcome.decode_ms / 1e3),
        time_to_first_token_ms=outcome.first_token_ms,
        actions=dict(decoder.actions),
        peak_rss_mb=peak_rss_mb(),
        finish_reason=outcome.finish_reason,
        floored=controller.floored,
        prompt_tokens=prompt_tokens,
        cached_tokens=prompt_tokens - outcome.prefilled,
        first_difference=None if replay is None else first_difference(replay, outcome.tokens),
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count and seconds > 0 else 0.0
