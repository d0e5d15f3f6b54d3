"""The decode loop: prefill the prompt; then, token by token, sample, pick an action, run it and charge it.

`Decoder` is one run of decode steps on an engine. Generation and scoring both use it, so what is scored is what
generates.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np

from sol_rt.budget.controller.base import BaseController
from sol_rt.budget.schedules import PolicyInput, Schedule
from sol_rt.bundle.actions import Action
from sol_rt.engine.engine import Engine
from sol_rt.engine.step import StepOutput
from sol_rt.errors import BusyError, ContextError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.results import GeneratedToken, Progress
from sol_rt.generate.sampling import Sampler
from sol_rt.generate.text_writer import TextWriter
from sol_rt.text.tokenizer import Tokenizer


class StepRecord(NamedTuple):
    """Record of a decode step.

    Attributes:
        action: the action that ran.
        context: tokens in the cache before the step.
        cost: what it cost, the policy's run included, in the cost model's unit.
        relative: the same in dense steps.
    """

    action: Action
    context: int
    cost: float
    relative: float


class Decoder:
    """One run of decode steps: the schedule picks the action, the engine runs it, the controller charges it.

    Args:
        engine: the engine. `prefill` makes this decoder its owner, until another decoder prefills or someone else runs
            tokens on the engine.
        controller: a fresh controller.
        schedule: a fresh schedule, made for that controller.
        prompt_action: the action that runs the prompt; None for the engine's.

    Attributes:
        engine, controller, schedule: as given.
        prompt_action: the action that runs the prompt.
        actions: decode steps by action tag.
        output: the last step's output; its distribution is that of the next token.
    """

    def __init__(
        self, engine: Engine, controller: BaseController, schedule: Schedule, prompt_action: Action | None = None
    ) -> None:
        self.engine, self.controller, self.schedule = engine, controller, schedule
        self.prompt_action = prompt_action or engine.prefill
        self.actions: Counter[str] = Counter()
        self.output: StepOutput
        self._changes = engine.changes  # the engine's count after this decoder's last call
        self._steps = 0

    def prefill(self, tokens: Sequence[int], *, reuse: bool = False) -> int:
        """Runs the prompt under `prompt_action` and returns how many tokens were run.

        The account continues, and the schedule's step count begins anew, as in `rewind`. With `reuse`, the tokens that
        the cache begins with are not run again. The last token always is: its logits are needed.
        """
        with self.engine.exclusive():
            cached = _common_prefix(self.engine.tokens, tokens) if reuse else 0
            cached = self.engine.reusable_prefix(min(cached, len(tokens) - 1))
            self.engine.owner = self
            self.engine.truncate(cached)
            self.output = self.engine.forward(tokens[cached:], self.prompt_action)
            self._changes = self.engine.changes
        self._steps = 0
        return len(tokens) - cached

    def rewind(self, length: int, output: StepOutput) -> None:
        """Continues after the first `length` tokens in the cache, whoever ran them.

        The account continues, too: what was spent before counts towards the budget. The schedule's step count begins
        anew.

        Args:
            length: tokens to keep.
            output: the output of the last of them.
        """
        with self.engine.exclusive():
            self.engine.owner = self
            self.engine.truncate(length)
            self._changes = self.engine.changes
        self.output = output
        self._steps = 0

    def step(self, token: int) -> StepRecord:
        """Processes one token. `output` then holds the distribution of the next token.

        Raises BusyError if another decoder has taken over the engine, or anyone has run or dropped tokens on it or
        changed its active channels; and what `Engine.forward` raises.
        """
        engine, controller = self.engine, self.controller
        with engine.exclusive():
            if engine.owner is not self:
                raise BusyError(
                    "this generation was interrupted by another one on the same model; finish or close one first"
                )
            if engine.changes != self._changes:
                raise BusyError(
                    "this generation was interrupted by a call of its engine; finish or close it before such a call"
                )
            context = engine.length
            seen = PolicyInput(context, token, self.output.hidden, self.output.distribution, self._steps)
            action = self.schedule.choose(seen)
            try:
                self.output = engine.forward((token,), action)
            finally:  # a step that failed may be tried again
                self._changes = engine.changes
        charge = controller.record(action, context)
        self.actions[action.tag] += 1
        self._steps += 1
        return StepRecord(action, context, charge.cost, charge.relative)


def check_room(engine: Engine, tokens: Sequence[int], got: str = "prompt: got {} tokens") -> None:
    """Raises ContextError for more tokens than the context takes. `got` begins the message, and has their number."""
    if len(tokens) > engine.max_context:
        expected = f"expected at most {engine.max_context}, the model's context"
        raise ContextError(f"{got.format(len(tokens))}, {expected}; shorten it")


def generate_steps(
    decoder: Decoder,
    prompt: Sequence[int],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    progress: Progress,
    *,
    reuse: bool = False,
) -> Generator[tuple[GeneratedToken, StepRecord], None, None]:
    """The loop. Yields each token with the step that computed its distribution.

    It may be closed after any token: the cache and `progress` then hold what was done so far.

    Args:
        decoder: a fresh decoder.
        prompt: token ids, at least one.
        config: how to sample and when to end.
        tokenizer: the bundle's tokenizer.
        progress: where the loop counts what it did.
        reuse: as in `Decoder.prefill`.

    Raises ContextError for a prompt longer than the context, and what `Decoder.step` raises.
    """
    engine, controller = decoder.engine, decoder.controller
    check_room(engine, prompt)
    # the last token is returned without being processed, so it needs no room
    limit = min(config.max_new_tokens, engine.max_context - len(prompt) + 1)
    sampler = Sampler(config, engine.bundle.config.model.vocab_size)
    writer = TextWriter(tokenizer, prompt, config)
    history = list(prompt)

    clock = time.perf_counter()
    progress.prefilled = decoder.prefill(prompt, reuse=reuse)
    progress.prefill_seconds = time.perf_counter() - clock
    record = StepRecord(decoder.prompt_action, engine.length, 0.0, 0.0)

    while True:
        token, logprob = sampler.sample(decoder.output.distribution, history)
        likeliest = tuple(decoder.output.distribution.likeliest(config.top_logprobs)) if config.top_logprobs else ()
        history.append(token)
        text, finish_reason = writer.add(token)
        if finish_reason is None and len(history) - len(prompt) == limit:
            text, finish_reason = text + writer.flush(), "length"
        ms = (time.perf_counter() - clock) * 1e3
        generated = GeneratedToken(
            token, text, record.action, logprob, record.cost, record.relative, controller.achieved, ms, finish_reason,
            likeliest,
        )  # fmt: skip
        progress.add(generated)
        yield generated, record
        if finish_reason is not None:
            return
        clock = time.perf_counter()  # the caller's time since the token does not count
        record = decoder.step(token)


def score_steps(decoder: Decoder, tokens: Sequence[int], context: int) -> np.ndarray:
    """Log-probabilities, float64 [tokens - context], of every token after the first `context`.

    The context is prefilled. Each scored token but the last is then processed as a decode step, whose
    distribution scores the next one. Raises ContextError for more tokens than the context takes, before it runs any.
    """
    check_room(decoder.engine, tokens[:-1], "score: got {} tokens to run")  # the last one is only scored
    logprobs = np.empty(len(tokens) - context, np.float64)
    decoder.prefill(tokens[:context])
    for index, token in enumerate(tokens[context:]):
        logprobs[index] = decoder.output.distribution.log_probability(token)
        if index + 1 < len(logprobs):
            decoder.step(token)
    return logprobs


def _common_prefix(cached: Sequence[int], tokens: Sequence[int]) -> int:
    """Number of tokens that the two sequences begin with in common."""
    for index, (old, new) in enumerate(zip(cached, tokens, strict=False)):
        if old != new:
            return index
    return min(len(cached), len(tokens))
