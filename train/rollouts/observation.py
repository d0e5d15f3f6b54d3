"""Turns steps into episodes: `run_episode` gives a policy its inputs, runs its choice and records the result.

The scalars come from the code that the decode loop uses, `sol_rt.bundle.policy_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sol_rt.bundle.actions import Action
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS, PolicyInputs, StepObservation
from sol_rt.errors import ContextError, UsageError
from sol_rt.train.rollouts.rollout import Choose, Episode, Observation, RolloutSpec


class RowDistribution(NamedTuple):
    """Summary of one row of logits, with the true next token's log-likelihood.

    A `NextToken` of sol_rt.bundle.policy_inputs.

    Attributes:
        entropy: of the distribution, nats.
        top_probability: probability of the likeliest token.
        margin: `top_probability` less the probability of the second likeliest token.
        log_likelihood: logarithm of the true next token's probability, nats.
    """

    entropy: float
    top_probability: float
    margin: float
    log_likelihood: float

    def log_probability(self, token: int) -> float:
        """Log-probability of the true next token. `token` is ignored: no caller asks for another one."""
        return self.log_likelihood


@dataclass(frozen=True)
class StepResult:
    """The result of a step of B rows.

    Attributes:
        hidden: float32 [B, H], final norm output.
        distributions: B distributions of the next token.
        kl: float32 [B], divergence from dense, nats.
    """

    hidden: Tensor
    distributions: Sequence[RowDistribution]
    kl: Tensor


def row_distributions(logits: Tensor, tokens: Tensor) -> list[RowDistribution]:
    """Distributions of B rows, from logits [B, vocab] and the true next tokens, int64 [B].

    All figures come to the CPU in one transfer.
    """
    log_p = torch.log_softmax(logits, dim=-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    first, second = log_p.topk(2, dim=-1).values.exp().unbind(-1)
    likelihood = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return [RowDistribution(*row) for row in torch.stack([entropy, first, first - second, likelihood], dim=-1).tolist()]


def relative_costs(spec: RolloutSpec, actions: Sequence[Action], contexts: Sequence[int]) -> np.ndarray:
    """Costs of A actions at n contexts, float64 [n, A], in dense steps at the same context, no policy included."""
    dense = np.array([spec.cost.dense(context) for context in contexts])
    costs = spec.cost.table(actions)(np.asarray(contexts, np.int64))
    return np.asarray(costs / dense[:, None])


def checked_text(tokens: Sequence[int], vocabulary: int, max_context: int) -> list[int]:
    """The tokens as a list. Raises ContextError where they exceed the context, UsageError for an unknown token."""
    if len(tokens) > max_context:
        got, expected = f"got {len(tokens)} tokens", f"expected at most {max_context}"
        raise ContextError(f"text: {got}, {expected}; cut it into shorter ones")
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise UsageError(f"token {token}: expected 0 to {vocabulary - 1}; tokenize the text for this model")
    return [int(token) for token in tokens]


def check_range(start: int, length: int, tokens: Sequence[int]) -> None:
    """Raises UsageError unless a token lies before and one after the `length` positions from `start` on."""
    if start < 1 or length < 1 or start + length >= len(tokens):
        got, most = f"{length} positions from {start} on", len(tokens) - 2
        raise UsageError(f"episode: got {got}, expected them within 1 to {most}, as the text has {len(tokens)} tokens")


def dense_scalars(start: int, tokens: Sequence[int], before: Sequence[RowDistribution], budget: float) -> Tensor:
    """All KNOWN_SCALARS at n positions of a text, each as at step 0 of an episode after dense steps.

    Args:
        start: the first position.
        tokens: the n tokens about to be processed.
        before: n distributions, each of the step before.
        budget: what the scalar `budget` says.

    Returns:
        float32 [n, len(KNOWN_SCALARS)].
    """
    inputs = PolicyInputs(KNOWN_SCALARS, 1)
    observations = (
        StepObservation(start + i, token, seen, budget)
        for i, (token, seen) in enumerate(zip(tokens, before, strict=True))
    )
    return torch.tensor([list(inputs.at(0, observation).values()) for observation in observations], dtype=torch.float32)


def run_episode(
    spec: RolloutSpec,
    start: int,
    tokens: Sequence[int],
    budgets: Tensor,
    rows: slice,
    before: StepResult,
    choose: Choose,
    step: Callable[[int, Sequence[int]], StepResult],
) -> Episode:
    """Runs B schedules of an episode over the same T tokens.

    Args:
        spec: actions, costs and scalars.
        start: tokens before the episode.
        tokens: the T tokens to process.
        budgets: float32 [B].
        rows: which of the K schedules these are.
        before: result of the dense step before the episode, B rows.
        choose: picks the actions.
        step: runs step t under B actions, given as indices.
    """
    horizon, device = len(tokens), before.hidden.device
    wanted = [float(budget) for budget in budgets]
    inputs = [PolicyInputs(spec.scalars, horizon, budget if spec.midway else 1.0) for budget in wanted]
    costs = relative_costs(spec, spec.actions, range(start, start + horizon))
    seen: list[Observation] = []
    done: list[StepResult] = []
    chosen: list[list[int]] = []
    for t, token in enumerate(tokens):
        known = zip(inputs, before.distributions, wanted, strict=True)
        values = [list(row.at(t, StepObservation(start + t, token, p, budget)).values()) for row, p, budget in known]
        scalars = torch.tensor(values, dtype=torch.float32, device=device)
        previous = torch.tensor([row.previous for row in inputs], device=device)
        seen.append(Observation(t, rows, token, before.hidden, scalars, previous))
        actions = _checked(choose(seen[-1]), len(inputs), len(spec.actions))
        for row, action in zip(inputs, actions, strict=True):
            row.record(action, float(costs[t, action]))
        before = step(t, actions)
        done.append(before)
        chosen.append(actions)
    taken = torch.tensor(chosen).T  # [B, T]
    likelihoods = [[p.log_likelihood for p in result.distributions] for result in done]
    return Episode(
        context=start,
        budget=budgets.to(device),
        token=torch.tensor(tokens, device=device),
        hidden=torch.stack([at.hidden for at in seen], dim=1),
        scalars=torch.stack([at.scalars for at in seen], dim=1),
        previous=torch.stack([at.previous for at in seen], dim=1),
        action=taken.to(device),
        log_likelihood=torch.tensor(likelihoods, dtype=torch.float32, device=device).T,
        cost=torch.from_numpy(costs)[torch.arange(horizon), taken].float().to(device),
        kl=torch.stack([result.kl for result in done], dim=1),
    )


def joined(episodes: Sequence[Episode]) -> Episode:
    """Joins the schedules of one episode that ran one after the other, in order."""
    first = episodes[0]
    if len(episodes) == 1:
        return first

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(episode, name) for episode in episodes])

    return Episode(
        context=first.context,
        budget=rows("budget"),
        token=first.token,
        hidden=rows("hidden"),
        scalars=rows("scalars"),
        previous=rows("previous"),
        action=rows("action"),
        log_likelihood=rows("log_likelihood"),
        cost=rows("cost"),
        kl=rows("kl"),
    )


def spread_budget(budget: float | Tensor, schedules: int) -> Tensor:
    """The budget of each schedule, float32 [K] on the CPU."""
    given = torch.as_tensor(budget, dtype=torch.float32).cpu()
    return given.expand(schedules).clone()


def _checked(actions: Tensor, rows: int, count: int) -> list[int]:
    indices: list[int] = actions.tolist()
    if actions.shape != (rows,) or not all(isinstance(index, int) and 0 <= index < count for index in indices):
        got = f"{actions.dtype} {list(actions.shape)} {indices}"
        raise ValueError(f"choose: got {got}, expected {rows} integers from 0 to {count - 1}")
    return indices
