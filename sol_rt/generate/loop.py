"""The decode loop: prefill dense, then token by token pick an action, run it, charge it.

`Decoder` is one such run over an engine; generation and scoring both step it, so what is scored is what generates.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sol_rt.budget.controller import Controller
from sol_rt.budget.schedules import PolicyInput, Schedule
from sol_rt.bundle.actions import Action
from sol_rt.engine.engine import Engine
from sol_rt.engine.step import StepOutput
from sol_rt.errors import ContextError, UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.sampling import Sampler
from sol_rt.generate.trace import Trace, TraceRecord, TraceWriter
from sol_rt.text.stop_strings import StopStrings
from sol_rt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        token: its id.
        text: the text that became certain with it; pieces joined are the whole text.
        action: what computed the distribution it was drawn from; dense for the first token, which the prefill gives.
        logprob: nats, under the raw distribution.
        cost: of that decode step, policy included, in the cost model's unit; 0 for the first token.
        relative_cost: the same in dense steps.
        achieved_budget: cost of all decode steps so far over their dense cost.
        ms: milliseconds from the token before; for the first one, from the call.
        finish_reason: None, or on the last step `stop` (end token, stop string) or `length`.
    """

    token: int
    text: str
    action: Action
    logprob: float
    cost: float
    relative_cost: float
    achieved_budget: float
    ms: float
    finish_reason: str | None


@dataclass(frozen=True)
class Generation:
    """A finished, or closed, generation.

    Attributes:
        text: the generated text, without end token and stop string.
        tokens: generated tokens, the end token included.
        schedule: name of the schedule.
        requested_budget: the budget asked for; where an action, means of axes or a rate was asked for, what it came to.
        achieved_budget: cost of all decode steps over their dense cost; 1.0 where there was none.
        cost_model: `calibrated` (milliseconds) or `bytes`.
        prompt_tokens_per_second: tokens prefilled for this call over the time they took; 0 where all were cached.
        tokens_per_second: decode steps over their time; 0 where there was none.
        time_to_first_token_ms: from the call.
        actions: decode steps of every action tag.
        peak_rss_mb: largest resident size of the process so far, 10^6 bytes.
        finish_reason: `stop`, `length`, or `closed` where the caller ended it.
        floored: whether the budget lay below the cheapest action, which then served it.
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that the cache still held from the generation before.
        first_difference: in a replay, the first step whose token is not the trace's; None where all agree.
    """

    text: str
    tokens: list[int]
    schedule: str
    requested_budget: float
    achieved_budget: float
    cost_model: str
    prompt_tokens_per_second: float
    tokens_per_second: float
    time_to_first_token_ms: float
    actions: dict[str, int]
    peak_rss_mb: float
    finish_reason: str
    floored: bool
    prompt_tokens: int
    cached_tokens: int
    first_difference: int | None = None


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of given tokens.

    Attributes:
        logprobs: float64 [tokens - context], nats, of every token after the context.
        achieved_budget: cost of all decode steps over their dense cost.
        actions: decode steps of every action tag.
    """

    logprobs: np.ndarray
    achieved_budget: float
    actions: dict[str, int]


class StepRecord(NamedTuple):
    """What a decode step did: `cost` and `relative` include the policy; `context` is the length before it."""

    action: Action
    context: int
    cost: float
    relative: float


class Decoder:
    """One run of decode steps: the schedule picks, the engine runs, the controller charges.

    Args:
        engine: taken over by `prefill`, until another run does so.
        controller, schedule: made for each other, fresh.
    """

    def __init__(self, engine: Engine, controller: Controller, schedule: Schedule) -> None:
        self.engine, self.controller, self.schedule = engine, controller, schedule
        self.actions: Counter[str] = Counter()
        self.output: StepOutput
        self._steps = 0

    def prefill(self, tokens: Sequence[int], *, reuse: bool = False) -> int:
        """Runs the prompt dense; returns how many tokens were run.

        With `reuse`, what the cache shares with it stays.
        """
        cached = _common_prefix(self.engine.tokens, tokens) if reuse else 0
        # the last token runs in any case: its logits are needed
        cached = min(cached, len(tokens) - 1)
        self.engine.owner = self
        self.engine.truncate(cached)
        self.output = self.engine.forward(tokens[cached:], self.controller.dense)
        return len(tokens) - cached

    def rewind(self, length: int, output: StepOutput) -> None:
        """Goes on behind the first `length` tokens in the cache, whoever ran them; `output` is what the last gave.

        The account goes on, too: what was spent before counts towards the budget. The schedule counts its steps anew.
        """
        self.engine.owner = self
        self.engine.truncate(length)
        self.output = output
        self._steps = 0

    def step(self, token: int) -> StepRecord:
        """Processes one token; `output` then holds the distribution of the next."""
        engine, controller = self.engine, self.controller
        if engine.owner is not self:
            raise UsageError(
                "this generation was interrupted by another one on the same model; finish or close one first"
            )
        context = engine.length
        seen = PolicyInput(context, token, self.output.hidden, self.output.distribution, self._steps)
        action = self.schedule.choose(seen)
        self.output = engine.forward((token,), action)
        spend = controller.record(action, context)
        self.actions[action.tag] += 1
        self._steps += 1
        return StepRecord(action, context, spend.cost, spend.relative)


def generate_steps(
    decoder: Decoder,
    prompt: Sequence[int],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    outcome: Outcome,
    *,
    reuse: bool = False,
    trace: TraceWriter | None = None,
) -> Generator[Step, None, None]:
    """The loop. It may be closed after any step: cache, trace and `outcome` hold what was done so far."""
    engine, controller = decoder.engine, decoder.controller
    if len(prompt) > engine.max_context:
        expected = f"expected at most {engine.max_context}, the model's context"
        raise ContextError(f"prompt: got {len(prompt)} tokens, {expected}; shorten it")
    # the last token is returned without being processed, so it needs no room
    limit = min(config.max_new_tokens, engine.max_context - len(prompt) + 1)
    sampler = Sampler(config, engine.bundle.config.model.vocab_size)
    history = list(prompt)
    writer = _TextWriter(tokenizer, prompt, config)
    clock = time.perf_counter()
    outcome.prefilled = decoder.prefill(prompt, reuse=reuse)
    outcome.prefill_seconds = time.perf_counter() - clock
    taken = StepRecord(controller.dense, engine.length, 0.0, 0.0)
    finish_reason = None
    while finish_reason is None:
        token, logprob = sampler.sample(decoder.output.distribution, history)
        history.append(token)
        text, finish_reason = writer.add(token)
        if finish_reason is None and len(history) - len(prompt) == limit:
            text, finish_reason = text + writer.flush(), "length"
        now = time.perf_counter()
        ms, clock = (now - clock) * 1e3, now
        step = Step(
            token, text, taken.action, logprob, taken.cost, taken.relative, controller.achieved, ms, finish_reason
        )
        outcome.add(step)
        if trace is not None:
            trace.write(_record(step, taken, len(outcome.tokens) - 1))
        yield step
        if finish_reason is None:
            clock = time.perf_counter()  # time that the caller took is not ours
            taken = decoder.step(token)


class Outcome:
    """What a generation has come to so far."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.finish_reason = "closed"
        self.prefilled = 0
        self.prefill_seconds = 0.0
        self.first_token_ms = 0.0
        self.decode_ms = 0.0

    def add(self, step: Step) -> None:
        if self.tokens:
            self.decode_ms += step.ms
        else:
            self.first_token_ms = step.ms
        self.tokens.append(step.token)
        self.pieces.append(step.text)
        self.finish_reason = step.finish_reason or self.finish_reason


class _TextWriter:
    """Turns tokens into text pieces and says when end tokens or stop strings end the text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], config: GenerationConfig) -> None:
        self._stream = tokenizer.stream(prompt)
        self._stop = StopStrings(config.stop_strings)
        self._end_tokens = frozenset(config.eos_token_id)

    def add(self, token: int) -> tuple[str, str | None]:
        if token in self._end_tokens:
            return self.flush(), "stop"
        text, stopped = self._stop.feed(self._stream.add(token))
        return text, "stop" if stopped else None

    def flush(self) -> str:
        """What was held back: an incomplete character, the beginning of a stop string."""
        text, stopped = self._stop.feed(self._stream.flush())
        return text if stopped else text + self._stop.flush()


def score_steps(decoder: Decoder, tokens: Sequence[int], context: int) -> np.ndarray:
    """Log-probabilities, float64 [tokens - context], of every token after the first `context`.

    The context is prefilled dense. Each scored token but the last is then processed as a decode step, whose
    distribution scores the next one.
    """
    logprobs = np.empty(len(tokens) - context, np.float64)
    decoder.prefill(tokens[:context])
    for index, token in enumerate(tokens[context:]):
        logprobs[index] = decoder.output.distribution.log_probability(token)
        if index + 1 < len(logprobs):
            decoder.step(token)
    return logprobs


class Stream(Iterator[Step]):
    """The steps of a running generation. `close` ends it early; Ctrl-C inside it does so too."""

    def __init__(self, steps: Generator[Step, None, None], finish: Callable[[], Generation | None]) -> None:
        """`finish` is called once, when the generation has ended in whatever way; it gives the summary."""
        self._steps, self._finish = steps, finish
        self._result: Generation | None = None
        self._ended = False

    def __next__(self) -> Step:
        try:
            return next(self._steps)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Ends the generation: the trace is complete, the model ready for the next one."""
        self._steps.close()
        self._end()

    @property
    def result(self) -> Generation | None:
        """The summary once the generation has ended; None before, and where it ended without a token."""
        return self._result

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._result = self._finish()


class ReplaySchedule:
    """The recorded actions, step by step."""

    name = "replay"

    def __init__(self, trace: Trace) -> None:
        self._actions = [Action.parse(record.action) for record in trace.records if record.action is not None]

    def require(self, variants: Collection[str]) -> None:
        """Raises UsageError where the trace holds an action of none of these variants."""
        for action in self._actions:
            if action.variant not in variants:
                raise UsageError(f"replay: {action.tag} is in the trace, its variant is not in the bundle")

    def choose(self, step: PolicyInput) -> Action:
        return self._actions[step.step]


def _record(step: Step, taken: StepRecord, index: int) -> TraceRecord:
    return TraceRecord(
        step=index,
        token=step.token,
        text=step.text,
        action=step.action.tag if index else None,
        context=taken.context,
        cost=step.cost,
        relative_cost=step.relative_cost,
        logprob=step.logprob,
        ms=step.ms,
        achieved=step.achieved_budget,
    )


def _common_prefix(cached: Sequence[int], tokens: Sequence[int]) -> int:
    for index, (old, new) in enumerate(zip(cached, tokens, strict=False)):
        if old != new:
            return index
    return min(len(cached), len(tokens))


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, in 10^6 bytes; 0 where the system doesn't tell."""
    try:
        # of this program alone: getrusage also counts what ran in the process before it
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
