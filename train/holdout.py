"""Comparison of a policy in training with two rivals at the same budget on held-out windows.

    sol       the `sol` schedule with the network in training in the policy's place
    uniform   the `uniform` schedule
    static    the `hull` schedule: the same two actions in turn, whatever the text

All three hold the budget through the native core's own controller, from one end of a window's scored part to the
other, and choose among the policy's actions. `HeldOutComparison` scores them in two ways. `replay` takes losses from
counterfactuals: the cache before a step does not depend on the schedule. `run` runs episodes: steps read the keys and
values that their own episode left in the cache. The policy's own cost is left out. `sol-rt eval` counts it, and
compares on whole texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sol_rt.budget.cost.cost_table import MeasuredCost
from sol_rt.budget.cost.model import BytesCost, CostModel
from sol_rt.budget.dial import Dial
from sol_rt.budget.hull import Hull, falling_hull
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import ActionEntry, FileEntry, PolicySpec
from sol_rt.export.graphs.policy_graph import PolicyShape
from sol_rt.generate.native.plan import Asked, Plan
from sol_rt.train.config import EvaluationConfig
from sol_rt.train.data.windows import Windows
from sol_rt.train.policy_network import Embed, PolicyNetwork
from sol_rt.train.rollouts.counterfactuals import Counterfactuals
from sol_rt.train.rollouts.observation import relative_costs
from sol_rt.train.rollouts.rollout import Observation, Rollouts, RolloutSpec
from sol_rt.train.run.distributed import Group
from sol_rt.train.warm_start import costs_of

SCHEDULES = ("sol", "uniform", "static")
_OF_DISTRIBUTION = ("entropy", "top_probability", "surprise", "margin")  # scalars
_POLICY = "policy.onnx"


class TorchPolicy:
    """A network in training, in the place of a bundle's policy.

    Attributes:
        seen: float32 [number of scalars], those of the step whose logits are asked for. Of these the ones of the last
            distribution count: a plan knows no logits.
    """

    def __init__(self, network: PolicyNetwork, embed: Embed, columns: Sequence[str]) -> None:
        self._network, self._embed = network, embed
        self._of_distribution = [columns.index(name) for name in _OF_DISTRIBUTION if name in columns]
        self.seen = torch.zeros(len(columns))

    @torch.no_grad()
    def __call__(self, asked: Asked) -> np.ndarray:
        if asked.fresh:
            self._state = self._network.new_state(1)
        scalars = torch.tensor(asked.scalars)
        scalars[self._of_distribution] = self.seen[self._of_distribution]
        logits, self._state = self._network.step(
            torch.tensor(asked.hidden),
            self._embed(torch.tensor([asked.token])),
            scalars[None],
            torch.tensor([asked.previous_action]),
            asked.step,
            self._state,
        )
        return logits[0].numpy()


class Steps:
    """A schedule of the native core, taken through the steps of one window as the decode loop would.

    Args:
        actions: what it chooses among.
        cost: the cost model, as `planning_cost` makes it.
        schedule: its name.
        budget: share of the dense cost.
        policy: what `sol` asks.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        cost: CostModel,
        schedule: str,
        budget: float,
        policy: TorchPolicy | None = None,
    ) -> None:
        self._plan = Plan(cost, Dial(budget, schedule), actions, policy)
        self._policy = policy
        self._index = {action: index for index, action in enumerate(actions)}

    def choose(self, context: int, token: int, hidden: Tensor, scalars: Tensor) -> int:
        """Chooses the action of the next step, books its cost, and returns the action's index.

        Args:
            context: tokens in the cache.
            token: the token about to be processed.
            hidden: float [1, H], final norm output of the step before.
            scalars: float32 [number of scalars].
        """
        if self._policy is not None:
            self._policy.seen = scalars.float().cpu()
        return self._index[self._plan.step(context, token, hidden=hidden.float().cpu().numpy()).action]


class Score(NamedTuple):
    """The result of one schedule over one window.

    Attributes:
        loss: mean added loss, the divergence from dense, nats per step.
        cost: mean relative cost.
    """

    loss: float
    cost: float


@dataclass(frozen=True)
class Comparison:
    """The schedules at one budget; means over the windows.

    Attributes:
        budget: requested.
        loss: by schedule, added loss in nats per step, at exactly the cost of the budget: what a schedule spent above
            or below it is counted at the static mix's exchange rate.
        cost: by schedule, achieved.
        gain: by rival of `sol`, its loss less that of `sol`.
        stderr: by rival, the standard error of that gain over windows.
        least: by rival, the gain over the windows of one length less two standard errors, at the length where that is
            least; -inf where a length has one window.
    """

    budget: float
    loss: dict[str, float]
    cost: dict[str, float]
    gain: dict[str, float]
    stderr: dict[str, float]
    least: dict[str, float]

    def avoided(self, rival: str) -> float:
        """Share of the rival's added loss that `sol` avoids; 0 where the rival adds none."""
        return self.gain[rival] / self.loss[rival] if self.loss[rival] > 0 else 0.0

    def numbers(self) -> dict[str, float]:
        """All figures by name, for the log."""
        rows = {f"{name}_loss": value for name, value in self.loss.items()}
        rows |= {f"{name}_cost": value for name, value in self.cost.items()}
        for rival in self.gain:
            rows |= {f"gain_over_{rival}": self.gain[rival], f"gain_over_{rival}_stderr": self.stderr[rival]}
            rows |= {f"avoided_of_{rival}": self.avoided(rival), f"least_gain_over_{rival}": self.least[rival]}
        return rows

    def line(self) -> str:
        """The figures that matter in one line, for the user."""
        rivals = ", ".join(
            f"{rival} {self.loss[rival]:.4f} ({self.avoided(rival):+.0%}, ±{self.stderr[rival]:.4f})"
            for rival in self.gain
        )
        sol = f"sol {self.loss['sol']:.4f} at {self.cost['sol']:.3f}"
        return f"budget {self.budget:g}: nats over dense: {sol}, {rivals}"


def exchange_rate(points: Sequence[tuple[float, float]], budget: float) -> float:
    """(loss at budget - 0.02 less loss at budget + 0.02) / 0.04: nats that the static mix gains per dense step spent.

    The mix moves along the lower hull of `points`, the actions' cost and mean added loss.
    """
    costs, losses = (np.array(column) for column in zip(*falling_hull(points), strict=True))
    step = 0.02
    low, high = (float(np.interp(budget + side * step, costs, losses)) for side in (-1, 1))
    return (low - high) / (2 * step)


def compare(
    scores: Sequence[Mapping[str, Score]], kinds: Sequence[int], budget: float, points: Sequence[tuple[float, float]]
) -> Comparison:
    """Compares the schedules at a budget.

    Args:
        scores: of each window, by schedule.
        kinds: of each window, the index of its length.
        budget: requested.
        points: cost and mean added loss of every action, which give the exchange rate.
    """
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
        {name: _stderr(values) for name, values in gains.items()},
        {name: min(_sure(values[np.array(kinds) == kind]) for kind in set(kinds)) for name, values in gains.items()},
    )


def _stderr(gains: npt.NDArray[np.float64]) -> float:
    """The standard error of the mean of gains over windows; infinite for one window."""
    return float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else math.inf


def _sure(gains: npt.NDArray[np.float64]) -> float:
    """The mean of gains over windows less two standard errors."""
    return float(gains.mean()) - 2 * _stderr(gains)


def planning_cost(
    spec: RolloutSpec, losses: Sequence[float], columns: Sequence[str], shape: PolicyShape | None = None
) -> CostModel:
    """The costs of a bundle that has these actions and losses, and a policy of this shape that costs nothing.

    `losses` is the mean added loss of each action in nats per step, [A], by which `static` mixes; `columns` names the
    policy's scalars.
    """
    dense = losses[spec.actions.index(spec.cost.dense_action)]
    entries = tuple(ActionEntry(action, loss - dense) for action, loss in zip(spec.actions, losses, strict=True))
    policy: PolicySpec | None = None
    files = spec.cost.config.files
    if shape is not None:
        policy = PolicySpec(_POLICY, shape.horizon, tuple(columns), spec.actions, shape.state_shape, "in training")
        files = {**files, _POLICY: FileEntry(0, "0" * 64)}
    config = replace(spec.cost.config, actions=entries, policy=policy, files=files)
    if isinstance(spec.cost, MeasuredCost):
        return MeasuredCost(config, replace(spec.cost.cost_table, policy_ms=0.0))
    return BytesCost(config)


def all_steps(
    network: PolicyNetwork, embed: Embed, spec: RolloutSpec, columns: Sequence[str], budget: float, cost: CostModel
) -> Iterator[tuple[str, Steps]]:
    """Each schedule of SCHEDULES, by name, with a plan of its own. `cost` is what `planning_cost` made."""
    policy = TorchPolicy(network, embed, columns)
    yield "sol", Steps(spec.actions, cost, "sol", budget, policy)
    yield "uniform", Steps(spec.actions, cost, "uniform", budget)
    yield "static", Steps(spec.actions, cost, "hull", budget)


def replay_window(steps: Steps, measured: Counterfactuals, costs: Tensor) -> Score:
    """Scores a schedule on a window's counterfactuals, whose relative costs are `costs`, float32 [n, A]."""
    added = measured.kl.double()
    loss = cost = 0.0
    for position, (token, scalars) in enumerate(zip(measured.token.tolist(), measured.scalars, strict=True)):
        hidden = measured.hidden[position : position + 1]
        action = steps.choose(measured.context + position, token, hidden, scalars)
        loss, cost = loss + float(added[position, action]), cost + float(costs[position, action])
    return Score(loss / len(measured), cost / len(measured))


def run_window(steps: Steps, rollouts: Rollouts, start: int, episodes: int, horizon: int, budget: float) -> Score:
    """Scores a schedule by running it on the open text: `episodes` episodes in a row from position `start` on."""
    added, costs = [], []
    for context in range(start, start + episodes * horizon, horizon):

        def choose(seen: Observation, context: int = context) -> Tensor:
            return torch.tensor([steps.choose(context + seen.step, seen.token, seen.hidden, seen.scalars[0])])

        ran = rollouts.run(context, horizon, budget, choose, 1)
        added.append(ran.kl[0].cpu().double())
        costs.append(ran.cost[0].cpu())
    return Score(float(torch.cat(added).mean()), float(torch.cat(costs).double().mean()))


@dataclass(frozen=True)
class HeldOutComparison:
    """Compares the three schedules on held-out windows, at every budget of the config.

    Attributes:
        config: budgets, number of windows and steps in each.
        network: the policy in training.
        embed: looks up embedding rows.
        spec: actions, costs and scalars.
        losses: float64 [lengths, A], mean added loss of each action, by length of window: what static mixes go by.
    """

    config: EvaluationConfig
    network: PolicyNetwork
    embed: Embed
    spec: RolloutSpec
    losses: Tensor

    def replay(self, measured: Sequence[Counterfactuals], kinds: Sequence[int]) -> list[Comparison]:
        """A comparison for each budget, from counterfactuals; `kinds` has the index of each window's length."""
        costs = [costs_of(window, self.spec) for window in measured]
        mean_costs = torch.stack(costs).double().mean(dim=(0, 1))
        comparisons = []
        for budget in self.config.budgets:
            scores = []
            for window, of_window, kind in zip(measured, costs, kinds, strict=True):
                steps = self._steps(budget, kind)
                scores.append({name: replay_window(each, window, of_window) for name, each in steps})
            comparisons.append(compare(scores, kinds, budget, self._points(mean_costs)))
        return comparisons

    def run(
        self, rollouts: Rollouts, windows: Windows, group: Group, report: Callable[[int, int], None]
    ) -> list[Comparison]:
        """A comparison for each budget, by running episodes; the processes share the windows.

        `report` is called with the number of windows done and of all.
        """
        horizon, budgets, positions = self.network.shape.horizon, self.config.budgets, self.config.positions
        held = windows.held_out[: self.config.windows]
        table = torch.zeros(len(held), len(budgets), len(SCHEDULES), 2, dtype=torch.float64)
        for number in group.mine(len(held)):
            report(number, len(held))
            tokens = windows.tokens(held[number])
            episodes = max(min(positions, len(tokens) - 2) // horizon, 1)
            start = len(tokens) - 1 - episodes * horizon
            rollouts.open(tokens)
            for row, budget in enumerate(budgets):
                for column, (_, steps) in enumerate(self._steps(budget, held[number].kind)):
                    score = run_window(steps, rollouts, start, episodes, horizon, budget)
                    table[number, row, column] = torch.tensor(score, dtype=torch.float64)
        table = group.sum(table)
        middle = round(sum(window.length for window in held) / len(held) - positions / 2)
        points = self._points(torch.from_numpy(relative_costs(self.spec, self.spec.actions, [middle])[0]))
        comparisons = []
        for row, budget in enumerate(budgets):
            scores = [
                {name: Score(*table[number, row, column].tolist()) for column, name in enumerate(SCHEDULES)}
                for number in range(len(held))
            ]
            comparisons.append(compare(scores, [window.kind for window in held], budget, points))
        return comparisons

    def _steps(self, budget: float, kind: int) -> Iterator[tuple[str, Steps]]:
        return all_steps(self.network, self.embed, self.spec, self.spec.scalars, budget, self._costs[kind])

    @cached_property
    def _costs(self) -> list[CostModel]:
        """The costs to plan with, by length of window."""
        shape, columns = self.network.shape, self.spec.scalars
        return [planning_cost(self.spec, losses, columns, shape) for losses in self.losses.tolist()]

    @property
    def hulls(self) -> list[Hull]:
        """The lower hulls of the actions by length of window: what `static` mixes, and `sol` deals out anew."""
        return [Hull(self.spec.actions, cost) for cost in self._costs]

    def _points(self, costs: Tensor) -> list[tuple[float, float]]:
        """(cost, mean added loss) of every action; costs [A]."""
        return list(zip(costs.tolist(), self.losses.mean(0).tolist(), strict=True))
