"""Stage 1: learning from counterfactuals, every action's loss known at every position.

The Lagrangian of the budget at multiplier p (nats a dense step) is loss + p * cost. A policy that chooses with
probability softmax(logits - p * cost / unit) is trained, at multipliers drawn anew for each episode, to minimise over
all positions

    sum_a prob_a (added loss_a + p * cost_a + unit * log prob_a)

The optimum is at logits = -E[added loss | what the policy sees] / unit up to a constant; the effort goes where a choice
hangs on it. At run time a multiplier that holds the budget takes the place of p / unit, so the choice of `sol`, argmax
of logits - multiplier * cost, is the Lagrangian's. Nothing is sampled, so nothing has the variance of a sampled reward.

The added loss of an action is its divergence from dense. Where dense is calibrated, that is the expectation of what the
action loses on the true token, without the luck of one token.

What episodes see besides is made up as a run at that multiplier would have it: previous actions are drawn from the mix
of actions that the window's mean losses ask for, `budget` is that mix's mean cost, and what was spent so far follows
from the drawn costs; before the episode the mix was run as well. Hidden state and scalars are those behind dense steps;
GRPO sees those behind its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sol_rt.bundle.policy_inputs import RECENT
from sol_rt.train.multipliers import Multipliers
from sol_rt.train.policy_network import PolicyNetwork
from sol_rt.train.rollouts.counterfactuals import Counterfactuals
from sol_rt.train.rollouts.observation import relative_costs
from sol_rt.train.rollouts.rollout import RolloutSpec

_LEAST_MULTIPLIER = 1e-3


@dataclass(frozen=True)
class Examples:
    """The counterfactuals of W windows of n positions, as stage 1 uses them.

    Attributes:
        token, hidden, scalars: as in Counterfactuals, [W, n, ...].
        cost: float32 [W, n, A], in dense steps at the same context.
        added: float32 [W, n, A], added loss in nats: the divergence from dense.
    """

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    cost: Tensor
    added: Tensor

    @classmethod
    def of(cls, windows: Sequence[Counterfactuals], spec: RolloutSpec) -> Examples:
        """`spec` has the costs."""
        token, hidden, scalars = (
            torch.stack([getattr(window, name) for window in windows]) for name in ("token", "hidden", "scalars")
        )
        cost = torch.stack([costs_of(window, spec) for window in windows])
        added = torch.stack([window.kl for window in windows])
        return cls(token, hidden, scalars, cost, added)


def costs_of(window: Counterfactuals, spec: RolloutSpec) -> Tensor:
    """Relative cost of every action at every position, float32 [n, A]."""
    return torch.from_numpy(
        relative_costs(spec, spec.actions, range(window.context, window.context + len(window)))
    ).float()


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes of T steps out of Examples, and a multiplier for each: float32 [B]. Others as the network takes
    them."""

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    previous: Tensor
    cost: Tensor
    added: Tensor
    multiplier: Tensor


def multiplier_range(examples: Examples, unit: float, budgets: tuple[float, float]) -> tuple[float, float]:
    """The multipliers, nats a dense step, at which choices by the windows' mean losses come to the highest and to the
    lowest of `budgets`, so that what is learned is what budgets between them ask for."""
    added, cost = examples.added.mean(1), examples.cost.mean(1)  # [W, A]

    def mean_cost(multiplier: float) -> float:
        return float((torch.softmax(-(added + multiplier * cost) / unit, -1) * cost).sum(-1).mean())

    ends = Multipliers(*budgets)
    ends.fit(mean_cost)
    low, high = ends.at(budgets[1]), ends.at(budgets[0])
    return max(low, _LEAST_MULTIPLIER), max(high, 2 * _LEAST_MULTIPLIER, 2 * low)


def draw_episodes(
    examples: Examples,
    count: int,
    horizon: int,
    multipliers: tuple[float, float],
    unit: float,
    columns: Sequence[str],
    random: np.random.Generator,
) -> EpisodeBatch:
    """`count` episodes from random places, multipliers log-uniform in `multipliers`."""
    windows, positions = examples.token.shape
    window = torch.from_numpy(random.integers(0, windows, count))
    begin = torch.from_numpy(random.integers(0, positions - horizon + 1, count))
    multiplier = random_multipliers(random, multipliers, count)
    return episodes_at(examples, window, begin, horizon, multiplier, unit, columns, random)


def random_multipliers(random: np.random.Generator, multipliers: tuple[float, float], count: int) -> Tensor:
    """float32 [count], log-uniform."""
    low, high = np.log(multipliers).tolist()
    return torch.from_numpy(np.exp(random.uniform(low, high, count))).float()


def episodes_at(
    examples: Examples,
    window: Tensor,
    begin: Tensor,
    horizon: int,
    multiplier: Tensor,
    unit: float,
    columns: Sequence[str],
    random: np.random.Generator,
) -> EpisodeBatch:
    """The episodes that begin at position `begin` [B] of `window` [B], at `multiplier` [B]."""
    count = len(window)
    at = (window[:, None], begin[:, None] + torch.arange(horizon))
    cost, scalars = examples.cost[at], examples.scalars[at].clone()
    means = torch.stack([examples.added[window].mean(1), examples.cost[window].mean(1)])  # [2, B, A]
    mix = torch.softmax(-(means[0] + multiplier[:, None] * means[1]) / unit, dim=-1)
    noise = torch.from_numpy(random.gumbel(size=(count, horizon, mix.shape[-1]))).float()
    drawn = (mix.clamp_min(1e-12).log()[:, None] + noise).argmax(-1)  # [B, T]
    previous = torch.cat([torch.full((count, 1), -1), drawn[:, :-1]], dim=1)
    budget = (mix * means[1]).sum(-1, keepdim=True)
    step = torch.arange(horizon)
    paid = cost.gather(-1, drawn[..., None]).squeeze(-1)
    spent = F.pad(paid.cumsum(1), (1, -1))  # before each step
    of_mix = (RECENT - step).clamp_min(0) * budget  # of the last steps, those before the episode
    told = {
        "step_fraction": (step / horizon).expand(count, -1),
        "budget": budget.expand(-1, horizon),
        "spend_deviation": torch.where(step > 0, spent / step.clamp_min(1) - budget, 0.0),
        "previous_cost": torch.cat([paid[:, -1:], paid[:, :-1]], dim=1),
        "recent_spend": (spent - F.pad(spent, (RECENT, 0))[:, :horizon] + of_mix) / RECENT,
    }
    for column, name in enumerate(columns):
        if name in told:
            scalars[..., column] = told[name]
    return EpisodeBatch(
        examples.token[at], examples.hidden[at], scalars, previous, cost, examples.added[at], multiplier
    )


def objective(logits: Tensor, batch: EpisodeBatch, unit: float) -> Tensor:
    """The mean of what stage 1 minimises, in units of `unit` nats; logits [B, T, A]."""
    multiplier = batch.multiplier[:, None, None] * batch.cost / unit
    logprob = F.log_softmax(logits - multiplier, dim=-1)
    return (logprob.exp() * (batch.added / unit + multiplier + logprob)).sum(-1).mean()


def shown_features(shape: tuple[int, int, int], dropout: float, random: np.random.Generator) -> Tensor | None:
    """The dropout of an update, one choice of features an episode: float32 [B, 1, features], None without dropout."""
    if not dropout:
        return None
    kept = torch.from_numpy(random.random((shape[0], 1, shape[2])) >= dropout)
    return kept.float() / (1 - dropout)


@torch.no_grad()
def lagrangian_gain(
    network: PolicyNetwork,
    embedding: Tensor,
    batch: EpisodeBatch,
    multipliers: Sequence[float],
    unit: float,
    groups: Tensor,
) -> float:
    """What the network's choices gain over static ones: nats a step, the mean over `multipliers` of (best static
    action's loss + multiplier * cost) - (the network's); static actions are chosen for each group of episodes apart.

    Args:
        embedding: float32 [B, T, hidden].
        groups: int64 [B], such as the context's class, of each episode.
    """
    logits = network(batch.hidden, embedding, batch.scalars, batch.previous)
    gains = []
    for multiplier in multipliers:
        value = batch.added + multiplier * batch.cost
        chosen = (logits - multiplier * batch.cost / unit).argmax(-1, keepdim=True)
        own = value.gather(-1, chosen).mean(dim=(1, 2))
        for group in set(groups.tolist()):
            members = groups == group
            static = value[members].mean(dim=(0, 1)).min()
            gains.append(float(static - own[members].mean()) * float(members.float().mean()))
    return sum(gains) / len(multipliers)
