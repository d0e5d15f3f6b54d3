"""Scores given continuations of a prompt: the prompt runs dense, the continuation's tokens are decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sol_rt.engine.step import StepOutput
from sol_rt.errors import ContextError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.decoder import Decoder


@dataclass(frozen=True)
class Continuation:
    """Scores of a continuation under a schedule.

    Attributes:
        logprobs: log-probability of each token, float64 [tokens], nats.
        greedy: whether every token was the likeliest token.
        spent: cost of the decode steps, in the cost model's unit.
        full: dense cost of the same steps.
    """

    logprobs: np.ndarray
    greedy: bool
    spent: float
    full: float


class PromptScorer:
    """Scores continuations of one prompt after another, each prompt under several schedules.

    A prompt is prefilled dense up to its last token. Tokens that it shares with the previous prompt stay in the cache.
    That last token and all tokens of the continuation but the last one are decode steps, so a decode step predicts
    every token of the continuation. A decoder may be used for several prompts, and then keeps the budget over all of
    them, as in a server.

    Args:
        model: an open model; its cache is overwritten.
    """

    def __init__(self, model: SolModel) -> None:
        self._model, self._engine = model, model.engine
        self._dense: list[int] = []  # tokens of the cache that were prefilled dense
        self._tail: list[int] = []
        self._output: StepOutput

    def open(self, prompt: Sequence[int]) -> None:
        """Prefills a prompt. Raises UsageError if it is empty, ContextError if it is too long."""
        if not prompt:
            raise UsageError("prompt: got an empty one, expected at least one token")
        engine = self._engine
        if len(prompt) > engine.max_context:
            raise ContextError(f"prompt: got {len(prompt)} tokens, expected at most {engine.max_context}")
        # prefill at least one token: a schedule needs the output of the previous step
        length = max(len(prompt) - 1, 1)
        dense, self._tail = list(prompt[:length]), list(prompt[length:])
        if dense == self._dense and engine.owner is self:
            return
        shared = 0
        if engine.owner is self:
            pairs = zip(self._dense, dense, strict=False)
            shared = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(self._dense), len(dense)))
        shared = min(shared, length - 1)  # the last token must run, because its output is needed
        engine.owner = self
        engine.truncate(shared)
        self._dense = dense
        self._output = engine.forward(dense[shared:], engine.bundle.config.dense)

    def score(self, decoder: Decoder, continuation: Sequence[int]) -> Continuation:
        """Scores a continuation, one token or more, of the opened prompt. Raises ContextError if it is too long."""
        decoder.rewind(len(self._dense), self._output)
        context, cost = len(self._dense), self._model.cost
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
        # the decoder took over the cache, whose first tokens still belong to this prompt
        self._engine.owner = self
        return Continuation(logprobs, greedy, spent, full)
