"""Stage 2: group-relative policy optimization (GRPO) on schedules sampled by the policy itself.

K schedules run over the same tokens from the same dense cache. A step's reward is minus its divergence from dense, less
multiplier * cost. How this follows and departs from the reference of the method (arXiv 2605.10875):

    as there     discounted sums of rewards backwards, minus penalty * max(0, |mean cost - budget| - tolerance)^2 at
                 every step; advantages centred over the K schedules at each step, then scaled over the whole batch;
                 PPO's clipped ratio; entropy bonus; one budget drawn an episode; sampling at a temperature
    multipliers       a budget's multiplier (multipliers.py) times the step's cost is taken from the logits when an
    action is chosen,
                 as `sol` does at run time, so that the network learns what a step is worth, not how to save; where
                 multipliers are low, the temperature goes with them
    divergence   what a step's likelihood falls by where dense is right about the next token, without the luck of the
                 one token read, which is most of a likelihood's spread between schedules
    costs        those of the bundle's cost model and one budget, where the reference has kept shares and three budgets
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sol_rt.train.config import GrpoConfig
from sol_rt.train.policy_network import PolicyNetwork
from sol_rt.train.rollouts.rollout import Episode, Observation
from sol_rt.train.run.distributed import Group

Embed = Callable[[Tensor], Tensor]
"""Rows of the model's embedding, float32 [..., hidden], of tokens int64 [...]."""

_LEAST_SPREAD = 1e-8


class SampledChoice:
    """Draws K schedules' actions from the policy: softmax((logits - charge) / temperature).

    Args:
        network, embed: the policy.
        charge: float32 [T, A], what each step's actions are charged, in the logits' unit.
        temperature: of sampling.
        noise: float32 [K, T, A], Gumbel noise; the same noise draws the same actions, whatever runs beside.
    """

    def __init__(self, network: PolicyNetwork, embed: Embed, charge: Tensor, temperature: float, noise: Tensor) -> None:
        self._network, self._embed = network, embed
        self._charge, self._temperature, self._noise = charge, temperature, noise
        self._state = network.new_state(0)

    @torch.no_grad()
    def __call__(self, seen: Observation) -> Tensor:
        rows = len(seen.previous)
        if seen.step == 0:
            self._state = self._network.new_state(rows)
        embedding = self._embed(torch.tensor([seen.token])).expand(rows, -1)
        logits, self._state = self._network.step(
            seen.hidden.float().cpu(), embedding, seen.scalars.cpu(), seen.previous.cpu(), seen.step, self._state
        )
        logits = (logits - self._charge[seen.step]) / self._temperature
        return (logits + self._noise[seen.rows, seen.step]).argmax(-1).to(seen.previous.device)


def on_cpu(episode: Episode) -> Episode:
    """The episode where the policy is."""
    moved: dict[str, Any] = {name: value.cpu() for name, value in vars(episode).items() if isinstance(value, Tensor)}
    return replace(episode, **moved)


def gumbel(random: np.random.Generator, *shape: int) -> Tensor:
    """Standard Gumbel noise, float32."""
    return torch.from_numpy(random.gumbel(size=shape)).float()


@dataclass(frozen=True)
class Batch:
    """N schedules of T steps with what they came to. As in Episode, and:

    Attributes:
        charge: float32 [N, T, A], temperature: float32 [N], as in SampledChoice.
        advantage: float32 [N, T].
    """

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    previous: Tensor
    action: Tensor
    charge: Tensor
    temperature: Tensor
    advantage: Tensor


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """Sum of the rewards from each step on, [K, T], a step later counting gamma times as much."""
    sums = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for step in range(rewards.shape[1] - 1, -1, -1):
        following = rewards[:, step] + gamma * following
        sums[:, step] = following
    return sums


def centred_returns(episode: Episode, multiplier: float, config: GrpoConfig) -> Tensor:
    """Returns of K schedules less their mean at each step, [K, T]: what of them is the schedule's own doing.

    `multiplier`: nats a dense step that the reward pays for costs.
    """
    rewards = -episode.kl - multiplier * episode.cost
    beyond = ((episode.cost.mean(1) - episode.budget).abs() - config.tolerance).clamp_min(0)
    returns = discounted(rewards, config.gamma) - config.penalty * beyond.square()[:, None]
    return returns - returns.mean(dim=0, keepdim=True)


def scaled(centred: Sequence[Tensor], group: Group) -> list[Tensor]:
    """Centred returns over their deviation in the whole batch, that of all processes."""
    flat = torch.cat([part.double().flatten() for part in centred])
    count, total, squares = group.sum(
        torch.stack([torch.tensor(float(len(flat)), dtype=torch.float64), flat.sum(), flat.square().sum()])
    ).tolist()
    mean = total / count
    deviation = max(squares / count - mean**2, 0.0) ** 0.5 + _LEAST_SPREAD
    return [((part - mean) / deviation).float() for part in centred]


def log_probabilities(network: torch.nn.Module, embed: Embed, batch: Batch) -> Tensor:
    """Of every action at every step, [N, T, A]."""
    logits = network(batch.hidden, embed(batch.token), batch.scalars, batch.previous)
    return torch.log_softmax((logits - batch.charge) / batch.temperature[:, None, None], dim=-1)


@dataclass(frozen=True)
class Losses:
    """Of one update: what is minimised, and what is told of it."""

    total: Tensor
    entropy: Tensor
    clipped: Tensor


def ppo_losses(logprobs: Tensor, old: Tensor, batch: Batch, config: GrpoConfig) -> Losses:
    """PPO's clipped objective less the entropy bonus, means over the batch; `old` [N, T]: log-probabilities of the
    actions when they were drawn."""
    taken = logprobs.gather(-1, batch.action[..., None]).squeeze(-1)
    ratio = (taken - old).exp()
    within = ratio.clamp(1 - config.clip, 1 + config.clip)
    gain = torch.minimum(ratio * batch.advantage, within * batch.advantage).mean()
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    clipped = ((ratio - 1).abs() > config.clip).float().mean()
    # the finer the temperature, the more of a logit's change is entropy: weighted back to the bonus of one temperature
    bonus = (batch.temperature[:, None] / config.temperature * entropy).mean()
    return Losses(-gain - config.entropy * bonus, entropy.mean(), clipped)
