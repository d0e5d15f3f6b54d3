"""From steps to episodes: what a policy is shown at each step, and what is written down of it.

The scalars are those of the decode loop, computed by the same code (sol_rt.policy_inputs).
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
    """What is kept of a row of logits: a `NextToken` of sol_rt.bundle.policy_inputs that knows the true next token.

    Attributes:
        entropy: nats.
        top_probability: of the likeliest token.
        margin: that less the probability of the second likeliest.
        log_likelihood: of the true next token, nats.
    """

    entropy: float
    top_probability: float
    margin: float
    log_likelihood: float

    def log_probability(self, token: int) -> float:
        """Of the true next token, whatever `token` is: nobody asks for another."""
        return self.log_likelihood


@dataclass(frozen=True)
class StepResult:
    """What a step of B rows gave.

    Attributes:
        hidden: float32 [B, hidden].
        distributions: B of them.
        kl: float32 [B], divergence from dense in nats.
    """

    hidden: Tensor
    distributions: Sequence[RowDistribution]
    kl: Tensor


def row_distributions(logits: Tensor, tokens: Tensor) -> list[RowDistribution]:
    """Of logits [B, vocab] and the true next tokens, int64 [B]. Waits for the device once."""
    log_p = torch.log_softmax(logits, dim=-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    first, second = log_p.topk(2, dim=-1).values.exp().unbind(-1)
    likelihood = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return [RowDistribution(*row) for row in torch.stack([entropy, first, first - second, likelihood], dim=-1).tolist()]


def relative_costs(spec: RolloutSpec, actions: Sequence[Action], contexts: Sequence[int]) -> np.ndarray:
    """Cost of every action in dense steps, float64 [n, A], as `Controller.relative_costs` has it without a policy."""
    dense = np.array([spec.cost.dense(context) for context in contexts])
    costs = spec.cost.table(actions)(np.asarray(contexts, np.int64))
    return np.asarray(costs / dense[:, None])


def checked_text(tokens: Sequence[int], vocabulary: int, max_context: int) -> list[int]:
    """The tokens. Raises ContextError where they are more than the context, UsageError where one is no token."""
    if len(tokens) > max_context:
        got, expected = f"got {len(tokens)} tokens", f"expected at most {max_context}"
        raise ContextError(f"text: {got}, {expected}; cut it into shorter ones")
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise UsageError(f"token {token}: expected 0 to {vocabulary - 1}; tokenize the text for this model")
    return [int(token) for token in tokens]


def check_range(start: int, length: int, tokens: Sequence[int]) -> None:
    """Raises UsageError unless `length` positions from `start` on have a token before and one after them."""
    if start < 1 or length < 1 or start + length >= len(tokens):
        got, most = f"{length} positions from {start} on", len(tokens) - 2
        raise UsageError(f"episode: got {got}, expected them within 1 to {most}, as the text has {len(tokens)} tokens")


def dense_scalars(start: int, tokens: Sequence[int], before: Sequence[RowDistribution], budget: float) -> Tensor:
    """KNOWN_SCALARS, float32 [n, all of them], at positions `start` … of a text, each as step 0 of an episode behind
    dense steps.

    Args:
        tokens: n of them, those about to be processed.
        before: n distributions, each that of the step before.
    """
    inputs = PolicyInputs(KNOWN_SCALARS, 1)
    observations = (
        StepObservation(start + i, token, seen, budget)
        for i, (token, seen) in enumerate(zip(tokens, before, strict=True))
    )
    return torch.tensor([list(inputs.at(0, observation).values()) for observation in observations], dtype=torch.float32)


def follow(
    spec: RolloutSpec,
    start: int,
    tokens: Sequence[int],
    budgets: Tensor,
    rows: slice,
    before: StepResult,
    choose: Choose,
    step: Callable[[int, Sequence[int]], StepResult],
) -> Episode:
    """Runs B schedules over the same T tokens.

    Args:
        start: tokens before the episode.
        tokens: T, those that are processed.
        budgets: float32 [B].
        rows: which of the K schedules these are.
        before: of the dense step before the episode, B rows.
        choose: the policy.
        step: runs step t, under one action (an index) a row.
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
    """Schedules of one episode that ran apart, in order."""
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
