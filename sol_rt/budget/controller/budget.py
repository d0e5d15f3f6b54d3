"""The controller of a budget, a rate or a loss: turns it into limits and targets for single steps, in closed loop.

|achieved - requested| <= 0.02 holds at every step from the 64th on, whatever a schedule prefers. For that the
controller allows only actions after which the total spend is still close to the request.
docs/reference/decode-loop.md has the same arithmetic as pseudo-code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sol_rt.budget.controller.base import EPSILON, BaseController, as_number, check_request, least
from sol_rt.budget.controller.step_costs import StepCosts, StepCostTable
from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError

HORIZON = 8
"""Steps within which a deviation is to be made up."""


class Controller(BaseController):
    """Keeps the running spend of a generation at a budget, or at what a rate or a loss allows.

    Args:
        actions: what schedules choose from; the dense action is among them.
        cost: the cost model.
        budget: share of the dense cost to hold, 0 to 1. 1.0 means dense only, without the policy.
        tokens_per_second: decode rate to hold with as little compression as possible. It needs a cost model in
            milliseconds.
        budget_at: gives the budget of a step from its context, in place of `budget`, for example that of the cheapest
            mix which keeps a loss.
        policy_cost: whether each step pays for a run of the policy, unless the budget is 1.0.

    Raises UsageError for values out of range, for a budget together with a rate, and for a rate without measured costs.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        cost: CostModel,
        budget: float = 1.0,
        *,
        tokens_per_second: float | None = None,
        budget_at: Callable[[int], float] | None = None,
        policy_cost: bool = False,
    ) -> None:
        check_request(budget, None, tokens_per_second)
        self._budget, self._budget_at = float(budget), budget_at
        self.dense_only = self._budget == 1.0 and tokens_per_second is None and budget_at is None
        self._policy_run = cost.policy() if policy_cost else 0.0
        super().__init__(actions, cost, 0.0 if self.dense_only else self._policy_run)
        # what the rate leaves for a step, in milliseconds
        self._step_limit = None if tokens_per_second is None else _milliseconds(tokens_per_second, cost)
        self._served = 0.0  # the steps' allowances; at steps where even the cheapest action cost more, its cost
        self._changed = False  # whether something else was asked for at first

    def allowance(self, context: int) -> float:
        """Cost in dense steps that this step may have on average, whatever was spent before."""
        costs = self._costs.at(context)
        return self._allowance(costs) / costs.dense

    def target(self, context: int) -> float:
        """Cost in dense steps that this step should aim for: its allowance, less a part of the deviation so far.

        The deviation is made up within HORIZON steps. The target is never below the cheapest action or above the
        dearest one.
        """
        costs = self._costs.at(context)
        wanted = self._allowance(costs) - self._spend.deviation / HORIZON
        return min(max(wanted, costs.low), costs.high) / costs.dense

    def allowed(self, context: int) -> np.ndarray:
        """Marks the actions that keep the promise, bool [A]. If none does: the actions that miss it least."""
        if self.dense_only:
            return np.array([action == self.dense for action in self.actions], bool)
        costs = self._costs.at(context)
        allowance = self._allowance(costs)
        if _is_below_floor(allowance, costs):
            return np.asarray(costs.costs <= costs.low * (1 + EPSILON))
        after = self._spend.deviation + costs.costs - allowance
        excess = np.maximum(np.abs(after) - self._spend.half_width(costs.dense), 0.0)
        return least(np.where(costs.useful, excess, np.inf))

    def _is_inside(self, index: int, context: int) -> bool:
        costs = self._costs.at(context)
        allowance = self._allowance(costs)
        if self.dense_only or not costs.useful[index] or _is_below_floor(allowance, costs):
            return False
        deviation = self._spend.deviation + costs.costs.item(index) - allowance
        return abs(deviation) <= self._spend.half_width(costs.dense)

    def _book(self, cost: float, settings: Sequence[float], costs: StepCosts) -> None:
        allowance = self._allowance(costs)
        self._spend.add(cost, allowance, costs.dense)
        if self.dense_only:
            self._served += allowance
        else:
            self._served += max(allowance, costs.low)
            self.floored |= _is_below_floor(allowance, costs)

    def set_budget(self, budget: float) -> None:
        """Holds a budget from the next step on; a rate or a loss is not held any more. What the steps so far were
        allowed stays as it is, but where the cheapest action cost more, that counts.

        Raises UsageError for a value out of range.
        """
        budget = as_number("budget", budget)
        check_request(budget, None, None)
        self._change(budget, None)

    def set_rate(self, tokens_per_second: float) -> None:
        """Holds a rate from the next step on, as `set_budget` does a budget.

        Raises UsageError for a value out of range, and without measured costs.
        """
        self._change(1.0, _milliseconds(as_number("tokens_per_second", tokens_per_second), self.cost))

    def _change(self, budget: float, step_limit: float | None) -> None:
        self._budget, self._step_limit, self._budget_at = budget, step_limit, None
        self._spend.allowed = self._served  # later steps do not make up for what the cheapest action cost too much
        self._changed = self._changed or self._spend.steps > 0
        self.dense_only = budget == 1.0 and step_limit is None
        policy_cost = 0.0 if self.dense_only else self._policy_run
        if policy_cost != self._policy_cost:
            self._policy_cost = policy_cost
            self._costs = StepCostTable(self.actions, self.cost, policy_cost)

    @property
    def budget(self) -> float | None:
        """The budget that the next step holds; None under a rate or a loss."""
        return self._budget if self._step_limit is None and self._budget_at is None else None

    @property
    def tokens_per_second(self) -> float | None:
        """The rate that the next step holds; None if none is held."""
        return None if self._step_limit is None else 1000.0 / self._step_limit

    @property
    def requested(self) -> float:
        """The budget asked for. Where it changed, and under a rate or a loss: what the steps so far were allowed, as a
        share of their dense costs; 1.0 before the first step.
        """
        if (self._changed or self.budget is None) and self._spend.full:
            return self._spend.allowed / self._spend.full
        return self._budget

    def _allowance(self, costs: StepCosts) -> float:
        """Allowed mean cost of a step, in the cost model's unit."""
        if self._step_limit is not None:
            return min(costs.dense + self._policy_cost, self._step_limit)
        budget = self._budget if self._budget_at is None else self._budget_at(costs.context)
        return budget * costs.dense


def _is_below_floor(allowance: float, costs: StepCosts) -> bool:
    """True if even the cheapest action costs more than the allowance."""
    return allowance < costs.low * (1 - EPSILON)


def _milliseconds(tokens_per_second: float, cost: CostModel) -> float:
    """Milliseconds that a step may take. Raises UsageError for a bad rate or a cost model in bytes."""
    if not (math.isfinite(tokens_per_second) and tokens_per_second > 0):
        raise UsageError(f"--tokens-per-second: got {tokens_per_second}, expected a number over 0")
    if cost.unit != "milliseconds":
        raise UsageError("--tokens-per-second: no times measured on this device; run `sol-rt calibrate` first")
    return 1000.0 / tokens_per_second
