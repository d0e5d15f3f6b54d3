"""Results of a generation and of a scoring: a `GeneratedToken` for each token, a `Generation` at the end, `Scores`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sol_rt.bundle.actions import Action


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Attributes:
        token: its id.
        text: the text that became certain with it; the pieces of all tokens joined are the whole text.
        action: the action that computed the distribution it was drawn from; for the first token that of the prefill.
        logprob: nats, under the raw distribution.
        cost: what that decode step cost, the policy's run included, in the cost model's unit; 0 for the first token.
        relative_cost: the same in dense steps.
        achieved_budget: cost of all decode steps so far / their dense cost.
        ms: milliseconds since the token before; for the first token, since the call.
        finish_reason: None, or on the last token `stop` (end token or stop string) or `length`.
        top_logprobs: the likeliest tokens under the raw distribution, each with its log-probability in nats; as many as
            `GenerationConfig.top_logprobs` says.
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
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """A generation that has ended.

    Attributes:
        text: the generated text, without end token and stop string.
        tokens: generated tokens, the end token included.
        schedule: name of the schedule.
        requested_budget: the budget asked for. If an action, axis targets, a rate or a loss was asked for, or nothing,
            the budget that this came to.
        achieved_budget: cost of all decode steps / their dense cost; 1.0 where there was none.
        cost_model: `measured` (milliseconds) or `bytes`.
        prefill: key of the variant that ran the prompt.
        prompt_tokens_per_second: tokens that were prefilled / the seconds that took; 0 where all were cached.
        tokens_per_second: decode steps / the seconds they took; 0 where there was none.
        time_to_first_token_ms: milliseconds from the call to the first token.
        actions: decode steps by action tag.
        peak_rss_mb: largest resident size of the process so far, 10^6 bytes.
        finish_reason: `stop`, `length`, or `closed` where the caller ended it.
        floored: whether the budget lay below the cost of the cheapest action, which then served it.
        fastest_tokens_per_second: the rate of the cheapest action at the last context by the cost model, in
            milliseconds; None if costs are bytes.
        dense_tokens_per_second: the rate that dense steps would have had: `tokens_per_second * achieved_budget`.
        expected_loss: mean added loss of the prompt and the actions in nats per token, as the export measured it; None
            if it measured none, or one of the actions was not measured.
        prompt_tokens: tokens of the prompt.
        cached_tokens: tokens of the prompt that were still in the cache from the generation before.
        drafted_tokens: tokens that were guessed, and run together with the one before them.
        accepted_tokens: of these, tokens of the text.
        first_difference: in a replay, index of the first token that differs from the trace's; None where all agree.
        logprobs: log-probability of each token, in nats, under the raw distribution: before bias, penalties and
            temperature.
        top_logprobs: the likeliest tokens at each place, each with its log-probability; empty tuples by default.
    """

    text: str
    tokens: list[int]
    schedule: str
    requested_budget: float
    achieved_budget: float
    cost_model: str
    prefill: str
    prompt_tokens_per_second: float
    tokens_per_second: float
    time_to_first_token_ms: float
    actions: dict[str, int]
    peak_rss_mb: float
    finish_reason: str
    floored: bool
    fastest_tokens_per_second: float | None
    dense_tokens_per_second: float
    expected_loss: float | None
    prompt_tokens: int
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    first_difference: int | None = None
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of given tokens.

    Attributes:
        logprobs: float64 [tokens - context], nats, of every token after the context.
        achieved_budget: cost of all decode steps / their dense cost.
        actions: decode steps by action tag.
    """

    logprobs: np.ndarray
    achieved_budget: float
    actions: dict[str, int]
