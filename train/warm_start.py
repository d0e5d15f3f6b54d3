"""Stage 1, the warm start: the policy learns from counterfactuals, in which every action's loss is known everywhere.

The Lagrangian of a budget at multiplier m (nats per dense step) is  added loss + m * cost. A policy that chooses with
probability softmax(logits - m * cost / unit) is trained to minimise, over all positions and actions a,

    sum_a prob_a * (added loss_a + m * cost_a + unit * log prob_a)

with m drawn anew for each episode. The optimum is  logits = -E[added loss | what the policy sees] / unit  up to a
constant. At run time the `sol` schedule ranks steps by the difference of two actions' logits, what the dearer one
saves, and gives it to the highest. So its choice minimises the Lagrangian. No action is sampled, so the gradient has
none of the variance of a sampled reward.

The added loss of an action is the divergence of its distribution from dense. Where dense is calibrated that is the
expectation of what the action loses on the true token, without the luck of the one token that came.

Counterfactuals have the hidden state, and scalars of the distribution, after dense steps or along a run. The rest of
what an episode sees is made up as a run at its multiplier would have it (`episodes_at`). GRPO (grpo.py) then sees what
its own steps leave behind.

Shapes: W windows of n positions, B episodes of T steps, A actions, H hidden size. Floats are float32 unless a docstring
says otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sol_rt.bundle.policy_inputs import RECENT
from sol_rt.train import grpo
from sol_rt.train.config import GrpoConfig, TrainConfig
from sol_rt.train.multipliers import Multipliers
from sol_rt.train.policy_network import Embed, PolicyNetwork
from sol_rt.train.rollouts.counterfactuals import Counterfactuals
from sol_rt.train.rollouts.observation import relative_costs
from sol_rt.train.rollouts.rollout import RolloutSpec
from sol_rt.train.run.distributed import Group, require_finite
from sol_rt.train.run.first_layer import FirstLayer

_SEED, _HELD_OUT_SEED = 1, 3  # second number of the seeds of what is drawn; the first is the training's
_LEAST_MULTIPLIER = 1e-3
_GRADIENT_NORM = 1.0  # at which gradients are clipped
_STANDARDISING_EPISODES = 2048  # that the inputs' means and deviations are taken from
_GRID = 12  # multipliers at which held-out windows are scored
_FITTED_EPISODES = 256  # that multipliers are fitted on, for each length of window


@dataclass(frozen=True)
class Examples:
    """The counterfactuals of W windows of n positions, as stage 1 uses them.

    Attributes:
        token: int64 [W, n], the tokens about to be processed.
        hidden: float32 [W, n, H], of the step before.
        scalars: float32 [W, n, number of scalars].
        cost: float32 [W, n, A], in dense steps at the same context.
        added: float32 [W, n, A], added loss: the divergence from dense in nats.
    """

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    cost: Tensor
    added: Tensor

    @classmethod
    def of(cls, windows: Sequence[Counterfactuals], spec: RolloutSpec) -> Examples:
        """Stacks the counterfactuals of windows and adds the costs that `spec` gives."""
        token, hidden, scalars = (
            torch.stack([getattr(window, name) for window in windows]) for name in ("token", "hidden", "scalars")
        )
        cost = torch.stack([costs_of(window, spec) for window in windows])
        added = torch.stack([window.kl for window in windows])
        return cls(token, hidden, scalars, cost, added)


def costs_of(window: Counterfactuals, spec: RolloutSpec) -> Tensor:
    """Relative cost of every action at every position of a window, float32 [n, A]."""
    return torch.from_numpy(
        relative_costs(spec, spec.actions, range(window.context, window.context + len(window)))
    ).float()


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes of T steps.

    Attributes:
        token, hidden, scalars, previous: [B, T, ...], as PolicyNetwork takes them.
        cost, added: float32 [B, T, A], as in Examples.
        multiplier: float32 [B], in nats per dense step.
    """

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    previous: Tensor
    cost: Tensor
    added: Tensor
    multiplier: Tensor


class WarmStart:
    """Runs updates of stage 1 on a network.

    Args:
        config: of the training.
        network: the policy. `parallel` is the same network, wrapped for several processes where there are several.
        optimizer: AdamW of the network's parameters.
        embed: looks up embedding rows.
        columns: names of the scalars.
        training: examples to learn from.
        held_out: examples to measure on.
        held_out_kinds: for each held-out window the index of its length in `Windows.lengths`.
        group: the processes.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        network: PolicyNetwork,
        parallel: nn.Module,
        optimizer: torch.optim.Optimizer,
        embed: Embed,
        columns: Sequence[str],
        training: Examples,
        held_out: Examples,
        held_out_kinds: Sequence[int],
        group: Group,
    ) -> None:
        self.config, self.network, self.parallel, self.optimizer = config, network, parallel, optimizer
        self.embed, self.columns, self.training, self.group = embed, columns, training, group
        low, high = config.grpo.budget
        floor = float(training.cost.mean(dim=(0, 1)).min())  # relative cost of the cheapest action
        budgets = max(low, min(floor, high)), high
        self.multipliers = multiplier_range(training, config.warm_start.unit, budgets)
        self._grid = np.geomspace(*self.multipliers, _GRID).tolist()
        self._check = self._all_episodes(held_out)
        per_window = len(self._check.multiplier) // len(held_out_kinds)
        self._check_kinds = torch.tensor(held_out_kinds).repeat_interleave(per_window)

    def begin(self, first: FirstLayer | None = None) -> bool:
        """Prepares a new network: standardises its inputs, and starts its logits at minus the mean added losses.

        A network that can take `first` begins at what these units tell of the losses. Returns True where it does.
        """
        random = np.random.default_rng([self.config.seed, _SEED])
        shown = self._drawn(self.training, _STANDARDISING_EPISODES, random)
        self.network.standardise(
            shown.hidden.flatten(0, 1), self.embed(shown.token).flatten(0, 1), shown.scalars.flatten(0, 1)
        )
        unit = self.config.warm_start.unit
        self.network.begin_at(-self.training.added.mean(dim=(0, 1)) / unit)
        weight = None if first is None else first.inputs(self.network.shape, self.columns)
        if first is None or weight is None:
            return False
        self.network.take_units(weight, first.bias)
        flat = {name: value.flatten(0, 1) for name, value in vars(shown).items() if name != "multiplier"}
        inputs = flat["scalars"], flat["hidden"], self.embed(flat["token"])
        self.network.fit_units(len(first.bias), *inputs, -flat["added"] / unit)
        return True

    def update(self, number: int) -> dict[str, float | str]:
        """Runs update `number`, counted from 0. Returns its figures for the log.

        Every process draws the whole batch and takes its share of the rows.

        Raises NumericError where loss or gradient is not finite, before the network changes.
        """
        warm, shape, group = self.config.warm_start, self.network.shape, self.group
        rate = 0.5 * warm.learning_rate * (1 + math.cos(math.pi * number / warm.updates))
        random = np.random.default_rng([self.config.seed, _SEED, number])
        whole = self._drawn(self.training, warm.batch, random)
        shown = shown_features((warm.batch, shape.horizon, shape.observed_size), warm.dropout, random)
        own = slice(group.rank, None, group.size)
        batch = EpisodeBatch(**{name: value[own] for name, value in vars(whole).items()})

        logits = self.parallel(
            batch.hidden,
            self.embed(batch.token),
            batch.scalars,
            batch.previous,
            None if shown is None else shown[own],
        )
        loss = objective(logits, batch, warm.unit)

        for parameters in self.optimizer.param_groups:
            parameters["lr"], parameters["weight_decay"] = rate, warm.weight_decay
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM))
        require_finite(loss, norm, group, f"warm start, update {number}")
        self.optimizer.step()
        return {"loss": float(group.sum(loss.detach()) / group.size), "learning_rate": rate}

    def held_out_gain(self) -> float:
        """Gain of the network over static actions on the held-out windows, nats per step: `lagrangian_gain`."""
        unit, check = self.config.warm_start.unit, self._check
        return lagrangian_gain(self.network, self.embed(check.token), check, self._grid, unit, self._check_kinds)

    @torch.no_grad()
    def fit_multipliers(self, fitted: Sequence[Multipliers], kinds: Sequence[int]) -> None:
        """Sets the multipliers at which the network's sampled choices meet each budget on the training windows.

        Args:
            fitted: by length of window, in the order of `Windows.lengths`.
            kinds: for each training window the index of its length.
        """
        warm = self.config.warm_start
        random = np.random.default_rng([self.config.seed, grpo.SEED])
        for kind, multipliers in enumerate(fitted):
            members = [row for row, of in enumerate(kinds) if of == kind] or list(range(len(kinds)))
            part = Examples(**{name: value[members] for name, value in vars(self.training).items()})
            batch = self._drawn(part, _FITTED_EPISODES, random)
            logits = self.network(batch.hidden, self.embed(batch.token), batch.scalars, batch.previous)
            multipliers.fit(functools.partial(sampled_cost, logits, batch.cost, warm.unit, self.config.grpo))

    def _drawn(self, examples: Examples, count: int, random: np.random.Generator) -> EpisodeBatch:
        """`count` episodes from random places at random multipliers."""
        horizon, unit = self.network.shape.horizon, self.config.warm_start.unit
        return draw_episodes(examples, count, horizon, self.multipliers, unit, self.columns, random)

    def _all_episodes(self, examples: Examples) -> EpisodeBatch:
        """All episodes of the examples, window after window, at random multipliers."""
        horizon, (windows, positions) = self.network.shape.horizon, examples.token.shape
        begins = torch.arange(0, positions - horizon + 1, horizon)
        window = torch.arange(windows).repeat_interleave(len(begins))
        random = np.random.default_rng([self.config.seed, _HELD_OUT_SEED])
        multiplier = random_multipliers(random, self.multipliers, len(window))
        unit = self.config.warm_start.unit
        return episodes_at(examples, window, begins.repeat(windows), horizon, multiplier, unit, self.columns, random)


def multiplier_range(examples: Examples, unit: float, budgets: tuple[float, float]) -> tuple[float, float]:
    """The lowest and highest multiplier to train at, nats per dense step, so that they cover `budgets`.

    They are those at which choices by the windows' mean losses cost the highest and the lowest budget, which are shares
    of the dense cost. `unit` is in nats.
    """
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
    """Draws `count` episodes of `horizon` steps from random places, as `episodes_at` makes them.

    Multipliers are log-uniform between the two of `multipliers`, in nats per dense step.
    """
    windows, positions = examples.token.shape
    window = torch.from_numpy(random.integers(0, windows, count))
    begin = torch.from_numpy(random.integers(0, positions - horizon + 1, count))
    multiplier = random_multipliers(random, multipliers, count)
    return episodes_at(examples, window, begin, horizon, multiplier, unit, columns, random)


def random_multipliers(random: np.random.Generator, multipliers: tuple[float, float], count: int) -> Tensor:
    """`count` multipliers, float32, log-uniform between the two of `multipliers`."""
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
    """Makes episodes from counterfactuals, as a run at their multipliers would see them.

    Each window and multiplier gives a mix of actions, softmax(-(mean added loss + m * mean cost) / unit). Previous
    actions are drawn from the mix, `budget` is its mean cost, and the scalars of spending follow from the drawn costs.
    Before the episode, the mix was run as well.

    Args:
        window: int64 [B], which window each episode is from.
        begin: int64 [B], its first position.
        horizon: T.
        multiplier: float32 [B], m in nats per dense step.
        unit: nats that a logit of 1 stands for.
        columns: names of the scalars.
        random: draws the previous actions.
    """
    count = len(window)
    at = (window[:, None], begin[:, None] + torch.arange(horizon))
    cost, scalars = examples.cost[at], examples.scalars[at].clone()
    means = torch.stack([examples.added[window].mean(1), examples.cost[window].mean(1)])  # [2, B, A]
    mix = torch.softmax(-(means[0] + multiplier[:, None] * means[1]) / unit, dim=-1)  # [B, A]
    noise = torch.from_numpy(random.gumbel(size=(count, horizon, mix.shape[-1]))).float()
    drawn = (mix.clamp_min(1e-12).log()[:, None] + noise).argmax(-1)  # [B, T]
    previous = torch.cat([torch.full((count, 1), -1), drawn[:, :-1]], dim=1)
    budget = (mix * means[1]).sum(-1, keepdim=True)  # [B, 1]
    step = torch.arange(horizon)
    paid = cost.gather(-1, drawn[..., None]).squeeze(-1)  # [B, T]
    spent = F.pad(paid.cumsum(1), (1, -1))  # before each step
    before_episode = (RECENT - step).clamp_min(0) * budget  # cost of those of the last RECENT steps
    told = {
        "step_fraction": (step / horizon).expand(count, -1),
        "budget": budget.expand(-1, horizon),
        "spend_deviation": torch.where(step > 0, spent / step.clamp_min(1) - budget, 0.0),
        "previous_cost": torch.cat([paid[:, -1:], paid[:, :-1]], dim=1),
        "recent_spend": (spent - F.pad(spent, (RECENT, 0))[:, :horizon] + before_episode) / RECENT,
    }
    for column, name in enumerate(columns):
        if name in told:
            scalars[..., column] = told[name]
    return EpisodeBatch(
        examples.token[at], examples.hidden[at], scalars, previous, cost, examples.added[at], multiplier
    )


def objective(logits: Tensor, batch: EpisodeBatch, unit: float) -> Tensor:
    """The scalar that stage 1 minimises for logits [B, T, A]: the module's sum, as a mean over steps, over `unit`."""
    charge = batch.multiplier[:, None, None] * batch.cost / unit
    logprob = F.log_softmax(logits - charge, dim=-1)
    return (logprob.exp() * (batch.added / unit + charge + logprob)).sum(-1).mean()


def shown_features(shape: tuple[int, int, int], dropout: float, random: np.random.Generator) -> Tensor | None:
    """Dropout's factors for hidden state and embedding, drawn once per episode and the same at all its steps.

    Args:
        shape: B, T and the number F of features.
        dropout: share of features that become 0.

    Returns:
        float32 [B, 1, F], None where `dropout` is 0.
    """
    if not dropout:
        return None
    shown = torch.from_numpy(random.random((shape[0], 1, shape[2])) >= dropout)
    return shown.float() / (1 - dropout)


@torch.no_grad()
def lagrangian_gain(
    network: PolicyNetwork,
    embedding: Tensor,
    batch: EpisodeBatch,
    multipliers: Sequence[float],
    unit: float,
    groups: Tensor,
) -> float:
    """Gain of the network's choices over static actions, nats per step, the mean over `multipliers`.

    The gain is the Lagrangian, added loss + multiplier * cost, of the best static action, less that of the network's
    choices. Each group of episodes has a static action of its own.

    Args:
        embedding: float32 [B, T, H].
        groups: int64 [B], the group of each episode, such as its window's length.
    """
    logits = network(batch.hidden, embedding, batch.scalars, batch.previous)
    gains = []
    for multiplier in multipliers:
        value = batch.added + multiplier * batch.cost
        chosen = (logits - multiplier * batch.cost / unit).argmax(-1, keepdim=True)
        own = value.gather(-1, chosen).mean(dim=(1, 2))  # [B]
        for group in set(groups.tolist()):
            members = groups == group
            static = value[members].mean(dim=(0, 1)).min()
            gains.append(float(static - own[members].mean()) * float(members.float().mean()))
    return sum(gains) / len(multipliers)


def sampled_cost(logits: Tensor, cost: Tensor, unit: float, config: GrpoConfig, multiplier: float) -> float:
    """Mean cost, in dense steps, of the choices that GRPO would sample at a multiplier; logits and cost [..., A]."""
    charged = (logits - multiplier * cost / unit) / grpo.sampling_temperature(multiplier, config)
    return float((torch.softmax(charged, -1) * cost).sum(-1).mean())
