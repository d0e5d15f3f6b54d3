"""Stage 1: learning from counterfactuals, every action's loss known at every position.

The Lagrangian of the budget at price p (nats a dense step) is loss + p * cost. With z = unit * logits and a temperature
T = max(temperature * p, 0.001 nats), a policy that chooses with probability softmax((z - p * cost) / T) is trained, at
the prices that budgets drawn anew for each episode ask for in its window, to

    decision     minimise, over all positions, sum_a prob_a (added loss_a + p * cost_a + T * log prob_a)
    regression   make logits - mean logit equal to -(added loss - mean over actions) / unit, by squares

Both have their optimum at z = -E[added loss | what the policy sees] up to a constant; the first puts its effort where a
choice hangs on it. The temperature goes with the price because that is the scale on which losses decide: where a dense
step's cost is worth a hundredth of a nat, thousandths count. At run time a price that holds the budget takes the place
of p / unit, so the choice of `sol`, argmax of logits - price * cost, is the Lagrangian's. Nothing is sampled, so
nothing has the variance of a sampled reward.

The added loss of an action is mixed of what it lost on the true token, and its divergence from dense: the expectation
of the same where dense is calibrated, without the luck of one token.

What episodes see besides is made up as a run at that price would have it: previous actions are drawn from the mix of
actions that the window's mean losses ask for, and what was spent so far follows from the drawn costs; before the
episode the mix was run as well. Hidden state and scalars are those behind dense steps; GRPO sees those behind its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sol_rt.policy_inputs import RECENT
from sol_rt.train.config import WarmStartConfig
from sol_rt.train.counterfactuals import Counterfactuals
from sol_rt.train.observation import relative_costs
from sol_rt.train.policy_network import PolicyNetwork
from sol_rt.train.prices import LEAST, MOST
from sol_rt.train.rollout import RolloutSpec

_LEAST_TEMPERATURE = 1e-3  # nats: less than this isn't told apart
_POINTS = 61  # of budgets that are solved for
_HALVINGS = 40


@dataclass(frozen=True)
class Examples:
    """The counterfactuals of W windows of n positions, as stage 1 uses them.

    Attributes:
        token, hidden, scalars: as in Counterfactuals, [W, n, ...].
        cost: float32 [W, n, A], in dense steps at the same context.
        added: float32 [W, n, A], the mixed added loss in nats.
    """

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    cost: Tensor
    added: Tensor

    @classmethod
    def of(cls, windows: Sequence[Counterfactuals], spec: RolloutSpec, divergence: float) -> Examples:
        """`spec` has the costs; `divergence`: weight of the divergence in the added loss."""
        dense = spec.actions.index(spec.cost.dense_action)
        token, hidden, scalars = (
            torch.stack([getattr(window, name) for window in windows]) for name in ("token", "hidden", "scalars")
        )
        cost = torch.stack([costs_of(window, spec) for window in windows])
        added = torch.stack([window.added(dense, divergence) for window in windows])
        return cls(token, hidden, scalars, cost, added)


def costs_of(window: Counterfactuals, spec: RolloutSpec) -> Tensor:
    """Relative cost of every action at every position, float32 [n, A]."""
    return torch.from_numpy(
        relative_costs(spec, spec.actions, range(window.context, window.context + len(window)))
    ).float()


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes of T steps out of Examples, and a price for each: float32 [B]. Others as the network takes them."""

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    previous: Tensor
    cost: Tensor
    added: Tensor
    price: Tensor


def temperatures(price: Tensor, share: float) -> Tensor:
    """Nats that choices at these prices are softened by."""
    return (share * price).clamp_min(_LEAST_TEMPERATURE)


def choices(losses: Tensor, cost: Tensor, price: Tensor, share: float) -> Tensor:
    """Probabilities of the actions [..., A] at `price` [...], of their losses, nats, and costs."""
    price = price[..., None]
    return torch.softmax(-(losses + price * cost) / temperatures(price, share), dim=-1)


class BudgetPrices:
    """Prices, nats a dense step, at which choices by the mean losses of G groups of positions cost given budgets.

    Args:
        added, cost: float32 [G, A], means of each group.
        budgets: the lowest and the highest. share: as in `choices`.

    Attributes:
        low, high: float32 [G], the budgets that each group can come to.
    """

    def __init__(self, added: Tensor, cost: Tensor, budgets: tuple[float, float], share: float) -> None:
        def spent(price: Tensor) -> Tensor:
            return (choices(added[:, None], cost[:, None], price, share) * cost[:, None]).sum(-1)

        ends = [spent(torch.full((len(added), 1), price))[:, 0] for price in (MOST, LEAST)]
        self.low, self.high = (torch.full_like(ends[0], budget).clamp(*ends) for budget in budgets)
        points = self.low[:, None] + torch.linspace(0, 1, _POINTS) * (self.high - self.low)[:, None]
        below, above = (torch.full_like(points, math.log(price)) for price in (LEAST, MOST))
        for _ in range(_HALVINGS):
            middle = (below + above) / 2
            over = spent(middle.exp()) > points
            below, above = torch.where(over, middle, below), torch.where(over, above, middle)
        self._logarithms = above

    def at(self, group: Tensor, budget: Tensor) -> Tensor:
        """float32 [B], for budgets [B] of the groups [B], which are cut to what these can come to; logarithms are
        linear between the points that were solved for."""
        span = (self.high - self.low)[group].clamp_min(1e-6)
        place = ((budget - self.low[group]) / span).clamp(0, 1) * (_POINTS - 1)
        left = place.long().clamp_max(_POINTS - 2)
        rows = self._logarithms[group]
        ends = [rows.gather(1, left[:, None] + step)[:, 0] for step in range(2)]
        return torch.lerp(ends[0], ends[1], place - left).exp()


def draw_episodes(
    examples: Examples,
    count: int,
    horizon: int,
    prices: BudgetPrices,
    share: float,
    columns: Sequence[str],
    random: np.random.Generator,
) -> EpisodeBatch:
    """`count` episodes from random places at random budgets; `prices` has a group a window."""
    windows, positions = examples.token.shape
    window = torch.from_numpy(random.integers(0, windows, count))
    begin = torch.from_numpy(random.integers(0, positions - horizon + 1, count))
    budget = torch.lerp(prices.low[window], prices.high[window], torch.from_numpy(random.random(count)).float())
    price = prices.at(window, budget)
    return episodes_at(examples, window, begin, horizon, budget, price, share, columns, random)


def episodes_at(
    examples: Examples,
    window: Tensor,
    begin: Tensor,
    horizon: int,
    budget: Tensor,
    price: Tensor,
    share: float,
    columns: Sequence[str],
    random: np.random.Generator,
) -> EpisodeBatch:
    """The episodes that begin at position `begin` [B] of `window` [B], told of `budget` [B], at `price` [B]."""
    count, budget = len(window), budget[:, None]
    at = (window[:, None], begin[:, None] + torch.arange(horizon))
    cost, scalars = examples.cost[at], examples.scalars[at].clone()
    mix = choices(examples.added[window].mean(1), examples.cost[window].mean(1), price, share)
    noise = torch.from_numpy(random.gumbel(size=(count, horizon, mix.shape[-1]))).float()
    drawn = (mix.clamp_min(1e-12).log()[:, None] + noise).argmax(-1)  # [B, T]
    previous = torch.cat([torch.full((count, 1), -1), drawn[:, :-1]], dim=1)
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
    return EpisodeBatch(examples.token[at], examples.hidden[at], scalars, previous, cost, examples.added[at], price)


def objective(logits: Tensor, batch: EpisodeBatch, config: WarmStartConfig) -> Tensor:
    """The mean of what stage 1 minimises, in units of `config.unit`; logits [B, T, A]."""
    if config.objective == "regression":
        target = -(batch.added - batch.added.mean(-1, keepdim=True)) / config.unit
        return (logits - logits.mean(-1, keepdim=True) - target).square().mean()
    price = batch.price[:, None, None]
    temperature = temperatures(price, config.temperature)
    logprob = F.log_softmax((config.unit * logits - price * batch.cost) / temperature, dim=-1)
    value = batch.added + price * batch.cost + temperature * logprob
    return (logprob.exp() * value).sum(-1).mean() / config.unit


def shown_features(shape: tuple[int, int, int], dropout: float, random: np.random.Generator) -> Tensor | None:
    """The dropout of an update, one choice of features an episode: float32 [B, 1, features], None without dropout."""
    if not dropout:
        return None
    kept = torch.from_numpy(random.random((shape[0], 1, shape[2])) >= dropout)
    return kept.float() / (1 - dropout)


@torch.no_grad()
def lagrangian_gain(
    network: PolicyNetwork, embedding: Tensor, batch: EpisodeBatch, unit: float, groups: Tensor
) -> Tensor:
    """What the network's choices gain over static ones, by group of episodes of one price: nats a step, (best static
    action's loss + price * cost) - (the network's), float64 [G].

    Args:
        embedding: float32 [B, T, hidden].
        groups: int64 [B], from 0 to G - 1.
    """
    logits = network(batch.hidden, embedding, batch.scalars, batch.previous)
    charge = batch.price[:, None, None] * batch.cost
    chosen = (unit * logits - charge).argmax(-1, keepdim=True)
    value = (batch.added + charge).double()
    own = value.gather(-1, chosen).mean(dim=(1, 2))
    gains = []
    for group in range(int(groups.max()) + 1):
        members = groups == group
        gains.append(value[members].mean(dim=(0, 1)).min() - own[members].mean())
    return torch.stack(gains)
