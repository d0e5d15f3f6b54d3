"""Scores of given continuations of a prompt: the prompt dense, the continuation's tokens as decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sol_rt.engine.engine import Engine
from sol_rt.engine.step import StepOutput
from sol_rt.errors import ContextError, UsageError
from sol_rt.evaluation.quality.runs import detached
from sol_rt.generate.loop import Decoder


@dataclass(frozen=True)
class Continuation:
    """What a schedule made of a continuation.

    Attributes:
        logprobs: float64 [tokens], nats.
        greedy: whether each of its tokens was the likeliest one.
        last: logits float32 [vocab] that its last token was scored by; holds until the next step.
        spent: cost of the decode steps, in the cost model's unit.
        full: dense cost of the same steps.
    """

    logprobs: np.ndarray
    greedy: bool
    last: np.ndarray
    spent: float
    full: float


class PromptScorer:
    """Scores continuations of one prompt after another, of each under several schedules.

    A prompt is prefilled dense up to its last `tail` tokens; what it shares with the one before stays in the cache.
    Its tail and the continuation but for the last token are decode steps, so that every token of the continuation is
    predicted by one. Decoders may go on from prompt to prompt: their account then runs on, as that of a server would.

    Args:
        engine: of the model; its cache is overwritten.
        tail: tokens of the prompt that are decode steps, 1 at least.
    """

    def __init__(self, engine: Engine, tail: int = 1) -> None:
        if tail < 1:
            raise UsageError(f"tail: got {tail}, expected 1 or more tokens of the prompt")
        self._engine, self._wanted_tail = engine, tail
        self._dense: list[int] = []  # what the cache holds from dense prefills
        self._tail: list[int] = []
        self._output: StepOutput

    def open(self, prompt: Sequence[int]) -> None:
        """Prefills a prompt. Raises UsageError where it is empty, ContextError where it is too long."""
        if not prompt:
            raise UsageError("prompt: got an empty one, expected at least one token")
        engine = self._engine
        if len(prompt) > engine.max_context:
            raise ContextError(f"prompt: got {len(prompt)} tokens, expected at most {engine.max_context}")
        # one token at least is prefilled: a schedule looks at what the step before gave
        length = max(len(prompt) - self._wanted_tail, 1)
        dense, self._tail = list(prompt[:length]), list(prompt[length:])
        if dense == self._dense and engine.owner is self:
            return
        shared = 0
        if engine.owner is self:
            pairs = zip(self._dense, dense, strict=False)
            shared = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(self._dense), len(dense)))
        shared = min(shared, length - 1)  # the last one's output is wanted
        engine.owner = self
        engine.truncate(shared)
        self._dense = dense
        self._output = detached(engine.forward(dense[shared:], engine.bundle.config.dense))

    def score(self, decoder: Decoder, continuation: Sequence[int]) -> Continuation:
        """Scores a continuation of the opened prompt, one token or more. Raises ContextError where it is too long."""
        decoder.rewind(len(self._dense), self._output)
        context, cost = len(self._dense), decoder.controller.cost
        spent = full = 0.0
        tokens = [*self._tail, *continuation]
        first = len(self._tail)
        logprobs = np.empty(len(continuation), np.float64)
        greedy = True
        for index, token in enumerate(tokens):
            distribution = decoder.output.distribution
            if index >= first:
                logprobs[index - first] = distribution.log_probability(token)
                greedy &= distribution.top == token
            if index + 1 < len(tokens):
                spent += decoder.step(token).cost
                full += cost.dense(context + index)
        # others may now open another prompt, but the cache's first tokens are still this one's
        self._engine.owner = self
        return Continuation(logprobs, greedy, decoder.output.distribution.logits, spent, full)
