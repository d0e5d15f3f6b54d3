"""How good a policy in training is: on held-out windows, against `uniform` and the static mix on the actions' hull.

All three are the runtime's own code, `sol` with the network in the policy's place, and hold the same budget through
the runtime's controller, from one end of a window's scored part to the other. Two ways to score: from counterfactuals,
every step behind a dense cache (`replayed`), and by running episodes, whose steps feel their own episode's damage
(`run`). The schedules choose among the policy's actions only; `sol-rt eval`
compares on whole texts through the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from sol_rt.budget.controller import Controller
from sol_rt.budget.frontier import falling_hull
from sol_rt.budget.schedules import PolicyInput, Schedule
from sol_rt.budget.schedules.policy import SolSchedule
from sol_rt.budget.schedules.uniform import UniformSchedule
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import PolicySpec
from sol_rt.engine.distribution import Distribution
from sol_rt.train.grpo import Embed
from sol_rt.train.policy_network import PolicyNetwork
from sol_rt.train.rollouts.counterfactuals import Counterfactuals
from sol_rt.train.rollouts.rollout import Episode, Observation, Rollouts, RolloutSpec

SCHEDULES = ("sol", "uniform", "static")


class StaticMix:
    """The two actions of the lower hull of (cost, mean loss) around the target, dealt out by error diffusion: what can
    be had without looking at the text.

    Args:
        controller: gives costs, limits and target. losses: float64 [A], mean added loss of its actions.
    """

    name = "static"

    def __init__(self, controller: Controller, losses: np.ndarray) -> None:
        self._controller, self._losses = controller, losses
        self.reset()

    def reset(self) -> None:
        self._carry = 0.5

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        costs = controller.relative_costs(step.context)
        points = list(zip(costs.tolist(), self._losses.tolist(), strict=True))
        corners = falling_hull(points)
        target = controller.target(step.context)
        above = next((index for index, (cost, _) in enumerate(corners) if cost >= target), len(corners) - 1)
        low, high = corners[max(above - 1, 0)], corners[above]
        share = 1.0 if high == low else min(max((target - low[0]) / (high[0] - low[0]), 0.0), 1.0)
        self._carry += share
        chosen = high if self._carry >= 1.0 - 1e-9 else low
        self._carry -= float(self._carry >= 1.0 - 1e-9)
        index = points.index(chosen)
        if not controller.allows(index, step.context):
            allowed = controller.allowed(step.context)
            index = int(np.argmin(np.where(allowed, np.abs(costs - costs[index]), np.inf)))
        return controller.actions[index]


class Told:
    """The next token's distribution in so far as a policy's scalars say it (sol_rt.policy_inputs.NextToken)."""

    def __init__(self, columns: Sequence[str], scalars: Tensor) -> None:
        self._values = dict(zip(columns, scalars.tolist(), strict=True))

    @property
    def entropy(self) -> float:
        return self._values["entropy"]

    @property
    def top_probability(self) -> float:
        return self._values["top_probability"]

    @property
    def margin(self) -> float:
        return self._values["margin"]

    def log_probability(self, token: int) -> float:
        return -self._values["surprise"]


class TorchPolicy:
    """The network as what `SolSchedule` asks."""

    def __init__(self, network: PolicyNetwork, embed: Embed, columns: Sequence[str], actions: Sequence[Action]) -> None:
        shape = network.shape
        self.spec = PolicySpec("", shape.horizon, tuple(columns), tuple(actions), shape.state_shape, "in training")
        self._network, self._embed = network, embed
        self.reset()

    def reset(self) -> None:
        self._state = self._network.new_state(1)

    @torch.no_grad()
    def decide(
        self, hidden: np.ndarray, token: int, scalars: Mapping[str, float], previous_action: int, step: int
    ) -> np.ndarray:
        logits, self._state = self._network.step(
            torch.from_numpy(hidden),
            self._embed(torch.tensor([token])),
            torch.tensor([[scalars[name] for name in self.spec.scalars]]),
            torch.tensor([previous_action]),
            step,
            self._state,
        )
        return logits[0].numpy()


class Steps:
    """A schedule with its controller over the steps of one window, as the decode loop goes over them."""

    def __init__(self, schedule: Schedule, controller: Controller, columns: Sequence[str]) -> None:
        self._schedule, self._controller, self._columns = schedule, controller, columns
        self._index = {action: index for index, action in enumerate(controller.actions)}

    def choose(self, context: int, token: int, hidden: Tensor, scalars: Tensor) -> int:
        """Index of the action for a step; hidden [1, hidden], scalars [columns]."""
        told = cast(Distribution, Told(self._columns, scalars))
        step = PolicyInput(context, token, hidden.float().cpu().numpy(), told, self._controller.steps)
        action = self._schedule.choose(step)
        self._controller.record(action, context)
        return self._index[action]


class Score(NamedTuple):
    """Of one schedule over one window: added loss in nats a step, and achieved cost."""

    loss: float
    cost: float


@dataclass(frozen=True)
class Comparison:
    """The schedules at one budget, means over the windows.

    Attributes:
        budget: asked for.
        loss: by schedule, nats a step over dense, at the budget's cost exactly: what was spent beside it is counted at
            the static mix' exchange rate.
        cost: by schedule, achieved.
        gain, stderr: by rival of `sol`, its loss less that of `sol`, and the standard error of that mean over windows.
    """

    budget: float
    loss: dict[str, float]
    cost: dict[str, float]
    gain: dict[str, float]
    stderr: dict[str, float]

    def avoided(self, rival: str) -> float:
        """Share of the rival's added loss that `sol` avoids; 0 where the rival adds none."""
        return self.gain[rival] / self.loss[rival] if self.loss[rival] > 0 else 0.0

    def numbers(self) -> dict[str, float]:
        """All of it by name, for logs."""
        rows = {f"{name}_loss": value for name, value in self.loss.items()}
        rows |= {f"{name}_cost": value for name, value in self.cost.items()}
        for rival in self.gain:
            rows |= {f"gain_over_{rival}": self.gain[rival], f"gain_over_{rival}_stderr": self.stderr[rival]}
            rows |= {f"avoided_of_{rival}": self.avoided(rival)}
        return rows


def exchange_rate(points: Sequence[tuple[float, float]], budget: float) -> float:
    """Nats that the mix on the lower hull of (cost, mean added loss) loses less for a dense step more, at a budget."""
    costs, losses = (np.array(column) for column in zip(*falling_hull(points), strict=True))
    step = 0.02
    low, high = (float(np.interp(budget + side * step, costs, losses)) for side in (-1, 1))
    return (low - high) / (2 * step)


def compare(scores: Sequence[Mapping[str, Score]], budget: float, points: Sequence[tuple[float, float]]) -> Comparison:
    """Scores of each window at a budget; `points` (cost, mean added loss) of the actions give the exchange rate."""
    rate = exchange_rate(points, budget)
    matched = {
        name: np.array([row[name].loss + rate * (row[name].cost - budget) for row in scores]) for name in SCHEDULES
    }
    gains = {name: matched[name] - matched["sol"] for name in SCHEDULES if name != "sol"}
    return Comparison(
        budget,
        {name: float(values.mean()) for name, values in matched.items()},
        {name: float(np.mean([row[name].cost for row in scores])) for name in SCHEDULES},
        {name: float(values.mean()) for name, values in gains.items()},
        {
            name: float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
            for name, values in gains.items()
        },
    )


def static_steps(spec: RolloutSpec, columns: Sequence[str], budget: float, losses: np.ndarray) -> tuple[str, Steps]:
    """The static mix alone, as of `all_steps`."""
    controller = Controller(spec.actions, spec.cost, budget)
    return StaticMix.name, Steps(StaticMix(controller, losses), controller, columns)


def all_steps(
    network: PolicyNetwork, embed: Embed, spec: RolloutSpec, columns: Sequence[str], budget: float, losses: np.ndarray
) -> Iterator[tuple[str, Steps]]:
    """Each of SCHEDULES with a controller of its own; `losses` as in StaticMix."""
    for name in SCHEDULES:
        controller = Controller(spec.actions, spec.cost, budget)
        schedule: Schedule
        if name == "sol":
            schedule = SolSchedule(controller, TorchPolicy(network, embed, columns, spec.actions))
        elif name == "uniform":
            schedule = UniformSchedule(controller)
        else:
            schedule = StaticMix(controller, losses)
        yield name, Steps(schedule, controller, columns)


def replayed(steps: Steps, measured: Counterfactuals, costs: Tensor) -> Score:
    """A schedule over a window's counterfactuals, whose relative costs are `costs` [n, A]; the added loss is `kl`."""
    added = measured.kl.double()
    loss = cost = 0.0
    for position, (token, scalars) in enumerate(zip(measured.token.tolist(), measured.scalars, strict=True)):
        hidden = measured.hidden[position : position + 1]
        action = steps.choose(measured.context + position, token, hidden, scalars)
        loss, cost = loss + float(added[position, action]), cost + float(costs[position, action])
    return Score(loss / len(measured), cost / len(measured))


def episode(steps: Steps, rollouts: Rollouts, start: int, horizon: int, budget: float) -> Episode:
    """The next steps of a schedule as an episode of the open text."""

    def choose(seen: Observation) -> Tensor:
        return torch.tensor([steps.choose(start + seen.step, seen.token, seen.hidden, seen.scalars[0])])

    return rollouts.run(start, horizon, budget, choose, 1)


def run(
    steps: Steps,
    rollouts: Rollouts,
    start: int,
    episodes: int,
    horizon: int,
    budget: float,
) -> Score:
    """A schedule over `episodes` episodes in a row of the open text. The added loss is the divergence from dense."""
    added, costs = [], []
    for context in range(start, start + episodes * horizon, horizon):
        ran = episode(steps, rollouts, context, horizon, budget)
        added.append(ran.kl[0].cpu().double())
        costs.append(ran.cost[0].cpu())
    return Score(float(torch.cat(added).mean()), float(torch.cat(costs).double().mean()))
