"""Base of both controllers: answers the questions of a schedule, and counts the cost of the steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from sol_rt.budget.controller.spend_window import SpendWindow
from sol_rt.budget.controller.step_costs import StepCosts, StepCostTable
from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError, brief

EPSILON = 1e-9
"""Relative difference below which two costs count as equal."""


@dataclass(frozen=True)
class AxisTargets:
    """Mean settings to hold on the three axes; an axis without a target stays at its full value.

    Attributes:
        kv_density: mean share of the old cached tokens that attention reads, 0 to 1.
        channel_density: mean share of the layers' base-plane weights read, 0 to 1.
        bits: mean weight bits.
    """

    kv_density: float | None = None
    channel_density: float | None = None
    bits: float | None = None

    def any(self) -> bool:
        """True if any axis has a target."""
        return bool(self.flags)

    @property
    def flags(self) -> str:
        """Options of the axes that have a target, for errors: `--kv-density/--bits`. Empty without targets."""
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return "/".join(f"--{name.replace('_', '-')}" for name in given)


class Charge(NamedTuple):
    """Cost that the controller booked for one step.

    `cost` is in the cost model's unit and includes the policy's run; `relative` is the same in dense steps.
    """

    cost: float
    relative: float


class BaseController(ABC):
    """Reports to a schedule which actions are allowed, and books what each step cost. A is the number of actions.

    Actions are allowed that keep the promise: what the steps achieved is within 0.02 of what was requested at every
    step from the 64th on. `spend_window.py` says how far off a spend may be before that.

    Subclasses: `Controller` holds a budget or a rate, `AxisController` holds axis targets.

    Args:
        actions: what schedules choose from, in the order of every [A] array here. The dense action is among them. An
            action may come twice.
        cost: the cost model.
        policy_cost: cost of the policy's run that each step pays for, in the cost model's unit; 0 where the schedule
            does not run it.

    Attributes:
        actions, cost: as given.
        dense: the dense action.
        axis_targets: what an `AxisController` holds; None in a `Controller`.
        dense_only: whether only the dense action is allowed, at every step until the budget changes. The policy is then
            not run, and steps do not pay for it.
        floored: whether, at some step so far, even the cheapest action cost more than was asked for.

    Raises UsageError if the dense action is missing.
    """

    axis_targets: AxisTargets | None = None
    dense_only = False
    floored = False

    def __init__(self, actions: Sequence[Action], cost: CostModel, policy_cost: float) -> None:
        self.actions = tuple(actions)
        self.cost = cost
        self.dense = cost.dense_action
        if self.dense not in self.actions:
            raise UsageError(f"controller: the dense action {self.dense.tag} is not among the actions to choose from")
        self._policy_cost = policy_cost
        self._costs = StepCostTable(self.actions, cost, policy_cost)
        self._indices = {action: index for index, action in enumerate(self.actions)}
        self._settings = _axis_settings(self.actions, self.dense)
        self._spend = SpendWindow()

    # Questions that a schedule asks before a step

    def relative_costs(self, context: int) -> np.ndarray:
        """Cost of each action in dense steps, the policy's run included: float64 [A]. The caller must not change it."""
        return self._costs.at(context).relative

    def floor(self, context: int) -> float:
        """Cost of the cheapest action at this context in dense steps, the policy's run included."""
        costs = self._costs.at(context)
        return costs.low / costs.dense

    def fastest_rate(self, context: int) -> float | None:
        """Tokens per second of the cheapest action at this context; None if costs are not in milliseconds."""
        return 1000.0 / self._costs.at(context).low if self.cost.unit == "milliseconds" else None

    @abstractmethod
    def target(self, context: int) -> float:
        """Cost in dense steps that this step should aim for, the policy's run included."""

    @abstractmethod
    def allowed(self, context: int) -> np.ndarray:
        """Marks the actions that keep the promise, bool [A]. If none does: the actions that miss it least, at least
        one.
        """

    def allows(self, index: int, context: int) -> bool:
        """`allowed(context)[index]`, but faster: no other action is looked at where this one is inside its window."""
        return self._is_inside(index, context) or bool(self.allowed(context)[index])

    def nearest_allowed(self, index: int, context: int) -> int:
        """`index` if that action is allowed, else the allowed action whose cost is nearest to its cost."""
        if self.allows(index, context):
            return index
        costs = self.relative_costs(context)
        return int(np.argmin(np.where(self.allowed(context), np.abs(costs - costs[index]), np.inf)))

    @abstractmethod
    def _is_inside(self, index: int, context: int) -> bool:
        """True if the spend is inside its window after this action."""

    # Reports of the loop after a step

    def record(self, action: Action, context: int) -> Charge:
        """Books one decode step; `context` is the number of tokens in the cache before it."""
        costs = self._costs.at(context)
        index = self._indices.get(action)
        if index is None:  # a fixed action or a replayed one
            cost = self.cost.step(action, context) + self._policy_cost
            settings = _axis_settings((action,), self.dense)[0].tolist()
        else:
            cost = costs.costs.item(index)
            settings = self._settings[index].tolist()
        self._book(cost, settings, costs)
        return Charge(cost, cost / costs.dense)

    @abstractmethod
    def _book(self, cost: float, settings: Sequence[float], costs: StepCosts) -> None:
        """Adds a step to the windows. Args: its cost, its settings on the three axes, the costs at its context."""

    # Changes that a caller makes between steps

    @abstractmethod
    def set_budget(self, budget: float) -> None:
        """Holds another budget from the next step on, a share (0 to 1) of the dense cost.

        Raises UsageError for a value out of range, and under axis targets.
        """

    @abstractmethod
    def set_rate(self, tokens_per_second: float) -> None:
        """Holds a rate from the next step on.

        Raises UsageError for a value out of range, without measured costs, and under axis targets.
        """

    @property
    @abstractmethod
    def budget(self) -> float | None:
        """The budget that the next step holds; None under a rate, a loss or axis targets."""

    @property
    @abstractmethod
    def tokens_per_second(self) -> float | None:
        """The rate that the next step holds; None if none is held."""

    # Totals of the steps so far

    @property
    def achieved(self) -> float:
        """Sum of all costs so far / sum of the dense costs of the same steps; 1.0 before the first step."""
        return self._spend.spent / self._spend.full if self._spend.full else 1.0

    @property
    @abstractmethod
    def requested(self) -> float | None:
        """The budget that was asked for. Where it changed, and under a rate or a loss: what the steps so far were
        allowed, as a share of their dense costs. None under axis targets.
        """

    @property
    def steps(self) -> int:
        """Decode steps recorded."""
        return self._spend.steps


def as_number(name: str, value: object) -> float:
    """The value of an option as a float. Raises UsageError for another type."""
    refused = UsageError(f"--{name.replace('_', '-')}: got {brief(value)}, expected a number")
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise refused
    try:
        return float(value)
    except OverflowError:
        raise refused from None


def check_request(
    budget: float,
    axis_targets: AxisTargets | None,
    tokens_per_second: float | None,
    max_loss: float | None = None,
) -> None:
    """Raises UsageError if the budget or the loss is out of range or more than one thing is asked for."""
    if not (isinstance(budget, (int, float)) and math.isfinite(budget) and 0 <= budget <= 1):
        raise UsageError(f"--budget: got {budget}, expected a share of the dense cost from 0 to 1")
    if max_loss is not None and not (
        isinstance(max_loss, (int, float)) and math.isfinite(max_loss) and 0 <= max_loss <= 10
    ):
        raise UsageError(f"--max-loss: got {max_loss}, expected a rise of perplexity from 0 to 10, such as 0.01 or 1%")
    axes = AxisTargets() if axis_targets is None else axis_targets
    wishes = [
        name
        for name, given in (
            ("--budget", budget < 1.0),
            (axes.flags, axes.any()),
            ("--tokens-per-second", tokens_per_second is not None),
            ("--max-loss", max_loss is not None),
        )
        if given
    ]
    if len(wishes) > 1:
        raise UsageError(f"{' and '.join(wishes)} contradict each other: give one of them")


def least(excess: np.ndarray) -> np.ndarray:
    """Marks where `excess`, float64 [A], is smallest: bool [A]. If any is 0, marks the zeros."""
    return np.asarray(excess <= excess.min() + EPSILON * max(1.0, float(excess.min())))


def _axis_settings(actions: Sequence[Action], dense: Action) -> np.ndarray:
    """[A, 3]: KV density, channel density and bits of each action as shares of the dense action's."""
    return np.array([(a.kv_density, a.channel_density, a.bits / dense.bits) for a in actions], np.float64)
