"""Stage 2: group-relative policy optimization (GRPO) of the policy. This file holds one whole update, top to bottom.

`Grpo.update` goes through these steps; m is the Lagrange multiplier of the episode's budget (multipliers.py):

    1. sample      K schedules run over the same T tokens, each from the same dense cache. Every step draws one of the
                   two actions that `hull` mixes at the budget, with probability
                   softmax((logits - m * cost / unit) / temperature)
    2. reward      r[k, t] = -KL(dense || step)[k, t] - m * cost[k, t]
    3. return      R[k, t] = sum_{s >= t} gamma^(s - t) * r[k, s] - penalty * excess[k]^2
                   excess[k] = max(0, |mean_t cost[k, t] - budget| - tolerance)
    4. advantage   C[k, t] = R[k, t] - mean_k R[k, t], then A = (C - mean C) / std C over the whole batch
    5. loss        -mean min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A) - entropy * mean(weight * H)
                   ratio = pi(action) / pi_old(action), H = entropy of pi, weight = temperature / config temperature
    6. step        AdamW, with the norm of the gradient clipped. Steps 5 and 6 run `epochs` times.
    7. multipliers Each one moves to where its budget is met.

Units: divergences and rewards in nats, costs in dense steps at the same context, m in nats per dense step, logits in
multiples of `warm_start.unit` nats. Shapes: K schedules of an episode, T steps, A actions, N = episodes * K rows of a
batch, H hidden size. Floats are float32 unless a docstring says otherwise.

As in the paper and its authors' code (arXiv 2605.10875): teacher-forced text, one budget per episode, sampling at a
temperature. Returns are discounted, with the budget penalty at every step. Advantages are centred over the K schedules
at each step and whitened over the batch. The loss has PPO's clipped ratio and an entropy bonus.

Departures, whose reasons docs/design/method.md gives:

    start        The network comes from stage 1 (warm_start.py), not from random parameters.
    reward       Minus the divergence from dense, where the paper rewards the log-likelihood of the true next token.
                 Where dense is calibrated both have the same mean, and the divergence lacks the luck of the one token
                 that came, which is most of the spread between schedules.
    multiplier   The cost is charged to the logits and to the reward. So the network learns which steps gain most by the
                 dearer of the two actions, and not how to save: `sol` ranks steps by the difference of the two logits.
    cost         One budget in the bundle's cost model, where the paper has a nominal target for each of three axes.
    penalty      Mild, with a wide tolerance, because the runtime's controller holds the budget.
    temperature  Falls with m below 1 nat per dense step (`sampling_temperature`), and the entropy bonus with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sol_rt.budget.hull import Hull
from sol_rt.train.config import GrpoConfig, TrainConfig
from sol_rt.train.data.windows import Windows
from sol_rt.train.multipliers import Multipliers
from sol_rt.train.policy_network import Embed, PolicyNetwork
from sol_rt.train.rollouts.observation import relative_costs
from sol_rt.train.rollouts.rollout import Episode, Observation, Rollouts
from sol_rt.train.run.distributed import Group, require_finite

SEED = 2
"""Second number of the seeds of everything that this stage draws; the first is the training's."""
_LEAST_TEMPERATURE = 0.02  # as a share of the config's
_LEAST_SPREAD = 1e-8
_NEVER = 1e9  # logits that an action is charged which is not to be drawn


@dataclass(frozen=True)
class Batch:
    """N sampled schedules of T steps.

    Attributes:
        token: int64 [N, T], the tokens that the steps process.
        hidden: float32 [N, T, H], final norm output of the step before.
        scalars: float32 [N, T, number of scalars].
        previous: int64 [N, T], action of the step before; -1 at the start.
        action: int64 [N, T], the sampled actions.
        charge: float32 [N, T, A], what each action is charged, in logits: m * cost / unit, without end for those that
            `hull` does not mix.
        temperature: float32 [N], of sampling.
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


@dataclass(frozen=True)
class Sample:
    """K schedules of one episode.

    Attributes:
        schedules: K rows, whose `advantage` is centred but not yet whitened.
        kind: index of the window's length in `Windows.lengths`.
        budget: drawn for the episode, share of the dense cost.
        cost: mean over schedules and steps, in dense steps.
        log_likelihood: of the true next tokens, mean over schedules and steps, nats.
    """

    schedules: Batch
    kind: int
    budget: float
    cost: float
    log_likelihood: float


@dataclass(frozen=True)
class Grpo:
    """Runs updates of stage 2 on a network.

    Everything that an update draws comes from generators seeded by (seed, stage, update, window, episode). So a resumed
    training repeats an interrupted update exactly, and n processes draw what one process draws.

    Attributes:
        config: of the training.
        network: the policy. `parallel` is the same network, wrapped for several processes where there are several.
        optimizer: AdamW of the network's parameters.
        multipliers: by length of window, in the order of `Windows.lengths`; updates change them.
        embed: looks up embedding rows.
        rollouts: runs the episodes.
        windows: of text.
        hulls: of the actions by length of window.
        group: the processes.
    """

    config: TrainConfig
    network: PolicyNetwork
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    multipliers: Sequence[Multipliers]
    embed: Embed
    rollouts: Rollouts
    windows: Windows
    hulls: Sequence[Hull]
    group: Group

    def update(self, number: int) -> dict[str, float | str]:
        """Runs update `number`, counted from 0. Returns its figures for the log.

        Raises NumericError where loss or gradient is not finite, before the network changes.
        """
        config, group, began = self.config.grpo, self.group, time.monotonic()

        # 1 to 3: this process samples the episodes of its share of the windows
        own = [(window, episode) for window in group.mine(config.windows) for episode in range(config.episodes)]
        samples = [self.sample(number, window, episode) for window, episode in own]
        sampling_seconds = time.monotonic() - began

        # 4: advantages
        batch = _concatenated([sample.schedules for sample in samples])
        batch = replace(batch, advantage=whitened(batch.advantage, group))

        # 5 and 6: loss and optimizer step
        with torch.no_grad():
            old = log_probabilities(self.network, self.embed, batch)
            old = old.gather(-1, batch.action[..., None]).squeeze(-1)  # [N, T]
        for parameters in self.optimizer.param_groups:
            parameters["lr"], parameters["weight_decay"] = config.learning_rate, config.weight_decay
        for _ in range(config.epochs):
            losses = ppo_losses(log_probabilities(self.parallel, self.embed, batch), old, batch, config)
            self.optimizer.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), config.grad_norm))
            require_finite(losses.total, norm, group, f"grpo, update {number}")
            self.optimizer.step()

        # 7: multipliers, from the episodes of all processes
        table = torch.zeros(config.windows, config.episodes, 4, dtype=torch.float64)
        for (window, episode), sample in zip(own, samples, strict=True):
            figures = sample.kind, sample.budget, sample.cost, sample.log_likelihood
            table[window, episode] = torch.tensor(figures, dtype=torch.float64)
        table = group.sum(table).flatten(0, 1)
        for kind, multipliers in enumerate(self.multipliers):
            budgets, costs = table[table[:, 0] == kind, 1:3].T.tolist()
            multipliers.follow(budgets, costs, config.multiplier_rate)

        budget, cost, log_likelihood = table[:, 1:].mean(0).tolist()
        return {
            "loss": float(group.sum(losses.total.detach()) / group.size),
            "log_likelihood": log_likelihood,
            "cost_over_budget": cost - budget,
            "entropy": float(losses.entropy.detach()),
            "clipped": float(losses.clipped),
            "gradient_norm": norm,
            "sampling_seconds": sampling_seconds,
            "seconds": time.monotonic() - began,
        }

    def sample(self, update: int, number: int, episode: int) -> Sample:
        """Steps 1 to 3 for episode `episode` of window `number` of an update. Episode 0 of a window comes first."""
        config, horizon, spec = self.config.grpo, self.network.shape.horizon, self.rollouts.spec
        random = np.random.default_rng([self.config.seed, SEED, update, number, episode])

        # stage 1 has used the first `warm_start.windows` windows
        window = self.windows.trained_on(self.config.warm_start.windows + update * config.windows + number)
        tokens = self.windows.tokens(window)
        if episode == 0:
            self.rollouts.open(tokens)
        start = int(random.integers(min(len(tokens) // 2, len(tokens) - horizon - 1), len(tokens) - horizon))

        contexts = range(start, start + horizon)
        costs = torch.from_numpy(relative_costs(spec, spec.actions, contexts)).float()  # [T, A]
        low, high = config.budget
        floor = float(costs.min(1).values.max())  # no schedule can hold a budget below its cheapest action
        budget = float(np.float32(random.uniform(min(max(low, floor), high), high)))

        multiplier = self.multipliers[window.kind].at(budget)
        temperature = sampling_temperature(multiplier, config)
        charge = multiplier * costs / self.config.warm_start.unit
        charge = charge.masked_fill(~mixed_actions(self.hulls[window.kind], budget, contexts), _NEVER)
        noise = gumbel(random, config.schedules, horizon, len(spec.actions))
        choose = SampledChoice(self.network, self.embed, charge, temperature, noise)
        ran = _on_cpu(self.rollouts.run(start, horizon, budget, choose, config.schedules))

        schedules = Batch(
            token=ran.token.expand(config.schedules, -1),
            hidden=ran.hidden.float(),
            scalars=ran.scalars,
            previous=ran.previous,
            action=ran.action,
            charge=charge.expand(config.schedules, -1, -1),
            temperature=torch.full((config.schedules,), temperature),
            advantage=centred_returns(ran, multiplier, config),
        )
        return Sample(schedules, window.kind, budget, float(ran.cost.mean()), float(ran.log_likelihood.mean()))


def mixed_actions(hull: Hull, budget: float, contexts: Sequence[int]) -> Tensor:
    """The two actions that `hull` mixes at a budget, or the one that it takes, at each context: bool [T, A]."""
    mixed = torch.zeros(len(contexts), len(hull.actions), dtype=torch.bool)
    for row, context in enumerate(contexts):
        corners = hull.corners(context)
        dear = next((number for number, corner in enumerate(corners) if budget < corner.cost), len(corners) - 1)
        mixed[row, [corner.place for corner in corners[max(dear - 1, 0) : dear + 1]]] = True
    return mixed


def sampling_temperature(multiplier: float, config: GrpoConfig) -> float:
    """Temperature of sampling at a multiplier, in nats per dense step: config.temperature * min(multiplier, 1).

    At a small multiplier thousandths of a nat decide between actions. Sampling that does not resolve them draws good
    actions alike, and their rewards teach noise. The temperature stays above 0.02 of the config's.
    """
    return config.temperature * min(max(multiplier, _LEAST_TEMPERATURE), 1.0)


class SampledChoice:
    """Step 1: draws the actions of K schedules from softmax((logits - charge) / temperature).

    Args:
        network, embed: the policy and its embedding rows.
        charge: float32 [T, A], what each step's actions are charged, in logits.
        temperature: of sampling.
        noise: float32 [K, T, A], standard Gumbel noise. The largest of logit plus noise is a draw from the softmax; the
            same noise draws the same actions, whichever schedules run together.
    """

    def __init__(self, network: PolicyNetwork, embed: Embed, charge: Tensor, temperature: float, noise: Tensor) -> None:
        self._network, self._embed = network, embed
        self._charge, self._temperature, self._noise = charge, temperature, noise
        self._state = network.new_state(0)

    @torch.no_grad()
    def __call__(self, seen: Observation) -> Tensor:
        """The actions, int64 [B], of the B schedules that the observation is about."""
        rows = len(seen.previous)
        if seen.step == 0:
            self._state = self._network.new_state(rows)
        embedding = self._embed(torch.tensor([seen.token])).expand(rows, -1)
        logits, self._state = self._network.step(
            seen.hidden.float().cpu(), embedding, seen.scalars.cpu(), seen.previous.cpu(), seen.step, self._state
        )
        logits = (logits - self._charge[seen.step]) / self._temperature  # [B, A]
        return (logits + self._noise[seen.rows, seen.step]).argmax(-1).to(seen.previous.device)


def gumbel(random: np.random.Generator, *shape: int) -> Tensor:
    """Standard Gumbel noise, float32."""
    return torch.from_numpy(random.gumbel(size=shape)).float()


def centred_returns(episode: Episode, multiplier: float, config: GrpoConfig) -> Tensor:
    """Steps 2 and 3, and the centring of step 4: the returns of K schedules less their mean at each step, [K, T].

    The schedules share text and budget, so what remains is the schedule's own doing. `multiplier` is in nats per dense
    step.
    """
    rewards = -episode.kl - multiplier * episode.cost
    excess = ((episode.cost.mean(1) - episode.budget).abs() - config.tolerance).clamp_min(0)  # [K]
    returns = discounted(rewards, config.gamma) - config.penalty * excess.square()[:, None]
    return returns - returns.mean(dim=0, keepdim=True)


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """Sums [K, T] of the rewards [K, T] from each step on: out[t] = rewards[t] + gamma * out[t + 1]."""
    sums = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for step in range(rewards.shape[1] - 1, -1, -1):
        following = rewards[:, step] + gamma * following
        sums[:, step] = following
    return sums


def whitened(values: Tensor, group: Group) -> Tensor:
    """Step 4: values [N, T] less their mean and over their standard deviation, both taken over all processes."""
    flat = values.double().flatten()
    count, total, squares = group.sum(
        torch.stack([torch.tensor(float(len(flat)), dtype=torch.float64), flat.sum(), flat.square().sum()])
    ).tolist()
    mean = total / count
    deviation = max(squares / count - mean**2, 0.0) ** 0.5 + _LEAST_SPREAD
    return ((values - mean) / deviation).float()


def log_probabilities(network: nn.Module, embed: Embed, batch: Batch) -> Tensor:
    """Logarithm of the probability with which each action would be sampled at each step, [N, T, A]."""
    logits = network(batch.hidden, embed(batch.token), batch.scalars, batch.previous)
    return torch.log_softmax((logits - batch.charge) / batch.temperature[:, None, None], dim=-1)


@dataclass(frozen=True)
class Losses:
    """The result of step 5. All are scalars, means over the batch.

    Attributes:
        total: the loss to minimise.
        entropy: of the action distributions, nats.
        clipped: share of ratios that lie outside 1 - clip to 1 + clip.
    """

    total: Tensor
    entropy: Tensor
    clipped: Tensor


def ppo_losses(logprobs: Tensor, old: Tensor, batch: Batch, config: GrpoConfig) -> Losses:
    """Step 5: PPO's clipped objective and the entropy bonus.

    Args:
        logprobs: float32 [N, T, A], log-probabilities under the network as it is now.
        old: float32 [N, T], log-probabilities of the sampled actions when they were sampled.
        batch: gives actions, advantages and temperatures.
        config: gives clip, entropy and temperature.
    """
    taken = logprobs.gather(-1, batch.action[..., None]).squeeze(-1)
    ratio = (taken - old).exp()
    within = ratio.clamp(1 - config.clip, 1 + config.clip)
    gain = torch.minimum(ratio * batch.advantage, within * batch.advantage).mean()
    entropy = -(logprobs.exp() * logprobs).sum(-1)  # [N, T]
    clipped = ((ratio - 1).abs() > config.clip).float().mean()
    # at a low temperature a small change of a logit changes the entropy much: the weight keeps the bonus the same
    bonus = (batch.temperature[:, None] / config.temperature * entropy).mean()
    return Losses(-gain - config.entropy * bonus, entropy.mean(), clipped)


def _on_cpu(episode: Episode) -> Episode:
    """The episode with its tensors on the CPU, where the policy is."""
    moved: dict[str, Any] = {name: value.cpu() for name, value in vars(episode).items() if isinstance(value, Tensor)}
    return replace(episode, **moved)


def _concatenated(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of all."""
    return Batch(
        **{field.name: torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)}
    )
