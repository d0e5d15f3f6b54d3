"""Measures perplexity in llama-perplexity's convention, through the same path as generation.

The text is tokenized once and cut into windows of c tokens. If the tokenizer adds a BOS, the BOS stands before the text
and replaces the first token of every later window. The first c/2 tokens of a window are context and are prefilled,
dense unless the model has another variant for prompts. Each later token is one decode step under the schedule, and the
step's logits score the next token. A window therefore scores c - c/2 - 1 tokens, as in llama-perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sol_rt.errors import ContextError, UsageError

if TYPE_CHECKING:
    from sol_rt.bundle.config import ModelDims
    from sol_rt.generate.model import SolModel
    from sol_rt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Estimate:
    """Perplexity over the windows so far.

    Attributes:
        ppl: perplexity, exp(nll).
        stderr: standard error of ppl, propagated from the standard error of nll.
        nll: mean negative log-likelihood, nats per token.
        tokens: number of scored tokens.
        chunks: number of scored windows.
        achieved_budget: cost of all decode steps divided by their dense cost.
        actions: number of decode steps by action tag.
    """

    ppl: float
    stderr: float
    nll: float
    tokens: int
    chunks: int
    achieved_budget: float
    actions: dict[str, int]


def windows(tokens: Sequence[int], size: int, bos: int | None, chunks: int | None = None) -> list[list[int]]:
    """Cuts `tokens` into whole windows of `size` tokens. A given `bos` replaces the first token of each window.

    Raises UsageError if the text is shorter than two windows, as llama-perplexity does.
    """
    if len(tokens) < 2 * size:
        raise UsageError(
            f"the text has {len(tokens)} tokens, windows of {size} need {2 * size}; use a longer file or a smaller -c"
        )
    count = len(tokens) // size
    if chunks is not None:
        count = min(count, chunks)
    cut = [list(tokens[index * size : (index + 1) * size]) for index in range(count)]
    if bos is not None:
        for window in cut:
            window[0] = bos
    return cut


def text_windows(
    text: str, tokenizer: Tokenizer, model: ModelDims, size: int, chunks: int | None = None
) -> list[list[int]]:
    """Cuts a text into the windows of `size` tokens that `perplexity` scores, `chunks` at most. Needs no open model.

    Raises UsageError if the text is shorter than two windows.
    """
    bos = starting_token(tokenizer, model)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return windows(tokens if bos is None else [bos, *tokens], size, bos, chunks)


def estimate(logprobs: np.ndarray, chunks: int, achieved_budget: float, actions: dict[str, int]) -> Estimate:
    """Computes perplexity and its standard error from log-probabilities, float [n], in nats."""
    losses = -np.asarray(logprobs, np.float64)
    count, mean = losses.size, float(losses.mean())
    variance = float(np.square(losses).mean()) - mean * mean
    error = math.sqrt(variance / (count - 1)) if count > 1 and variance > 0 else 0.0
    return Estimate(math.exp(mean), error * math.exp(mean), mean, count, chunks, achieved_budget, dict(actions))


def perplexity(
    model: SolModel,
    text: str,
    *,
    size: int = 512,
    chunks: int | None = None,
    progress: Callable[[int, int, Estimate], None] | None = None,
    **how: Any,
) -> Estimate:
    """Scores a text window by window.

    Args:
        model: an open model.
        text: the text to score.
        size: tokens per window, 4 or more.
        chunks: number of windows at most; None means all.
        progress: called after every window with windows done, windows in total and the estimate so far.
        how: budget, schedule and the other arguments of `SolModel.score`.

    Raises UsageError if the text is shorter than two windows, ContextError if a window exceeds the context.
    """
    limit = model.bundle.config.model.max_context
    if size > limit:
        raise ContextError(f"--ctx-size {size}: the model's context is {limit} tokens")
    cut = text_windows(text, model.tokenizer, model.bundle.config.model, size, chunks)

    context = size // 2
    scored: list[np.ndarray] = []
    budgets: list[float] = []
    actions: dict[str, int] = {}
    for index, window in enumerate(cut):
        scores = model.score(window, context=context, **how)
        # The prefill, not a decode step, predicts the first scored token. llama-perplexity does not count it either.
        scored.append(np.array(scores.logprobs[-(size - context - 1) :]))
        # All windows have the same length and so the same dense cost, which makes the mean exact.
        budgets.append(scores.achieved_budget)
        for tag, count in scores.actions.items():
            actions[tag] = actions.get(tag, 0) + count
        result = estimate(np.concatenate(scored), index + 1, float(np.mean(budgets)), actions)
        if progress is not None:
            progress(index + 1, len(cut), result)
    return result


def added_bos(model: SolModel) -> int | None:
    """The BOS token that the tokenizer puts before a text; None if it adds none."""
    return starting_token(model.tokenizer, model.bundle.config.model)


def starting_token(tokenizer: Tokenizer, model: ModelDims) -> int | None:
    """The BOS token that a tokenizer puts before a text; None if it adds none. Needs no open model."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a", add_special_tokens=True)
    bos = model.bos_token_id
    return bos if bos is not None and len(full) > len(bare) and full[0] == bos else None
