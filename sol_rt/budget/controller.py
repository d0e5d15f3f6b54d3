"""The controller: turns a budget into limits and targets for single steps, in closed loop.

Whatever a schedule prefers, the controller allows only actions after which the total spend is still close to what was
asked for, so that |achieved - requested| <= 0.02 holds at every step from the 64th on. docs/decode-loop.md has the
same arithmetic as pseudo-code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from sol_rt.budget.cost import CostModel
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError

WINDOW_STEPS = 1.25
"""Half width of the window up to WINDOW_FROM steps, in dense steps: 1.25 / 64 < 0.02."""
WINDOW_FROM = 64
WINDOW_GROWTH = 0.0075
"""Dense steps that the window grows by with each further step: less than 0.02, so long runs end closer."""
HORIZON = 8
"""Steps over which a deviation is to be made up."""
_BLOCK = 64  # contexts whose costs are worked out at once: for one of them most of it would be the calls
_EPSILON = 1e-9
_AXIS_FLAGS = "--kv-density/--channel-density/--bits"


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
        return any(getattr(self, field.name) is not None for field in fields(self))


class Charge(NamedTuple):
    """What one step was charged: `cost` in the cost model's unit, policy included; `relative` in dense steps."""

    cost: float
    relative: float


class _Meter:
    """Spend of one quantity against its allowance, and the window that holds their difference."""

    def __init__(self) -> None:
        self.steps = 0
        self.spent = 0.0
        self.allowed = 0.0
        self.full = 0.0

    @property
    def deviation(self) -> float:
        return self.spent - self.allowed

    def window(self, full: float) -> float:
        """Half width after one more step that would spend `full` if dense; in the quantity's own unit."""
        count, total = self.steps + 1, self.full + full
        return total / count * (WINDOW_STEPS + WINDOW_GROWTH * max(0, count - WINDOW_FROM))

    def add(self, spent: float, allowed: float, full: float) -> None:
        self.steps += 1
        self.spent += spent
        self.allowed += allowed
        self.full += full


class StepCosts(NamedTuple):
    """Costs at one context, in the cost model's unit; all but `dense` include the policy.

    Attributes:
        context: tokens in the cache before the step.
        costs: float64 [A].
        relative: `costs` in dense steps, float64 [A].
        useful: bool [A], the dense action and what is cheaper: others have nothing to offer.
        low, high: least and largest of `costs`.
        dense: the dense step's cost.
        allowance: what the step may cost on average.
        floored: whether even the cheapest action costs more than that.
    """

    context: int
    costs: np.ndarray
    relative: np.ndarray
    useful: np.ndarray
    low: float
    high: float
    dense: float
    allowance: float
    floored: bool


class Controller:
    """Keeps the running spend of a generation at what was asked for.

    Exactly one of three things is asked for: a `budget` (share of the dense cost, 0 to 1), `axis_targets`,
    or `tokens_per_second` (needs a cost model in milliseconds). Raises UsageError for values out of range, for
    contradictory or unreachable requests, and for a rate without calibrated costs.

    Args:
        actions: what schedules choose from, in the order of every [A] array here; the dense action is among them. One
            may come twice.
        cost: the cost model.
        budget: sum of costs / sum of dense costs to hold. 1.0 means dense only, without the policy.
        axis_targets: means to hold on the axes.
        tokens_per_second: decode rate to hold with as little compression as possible.
        policy_cost: whether each step pays for a run of the policy.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        cost: CostModel,
        budget: float = 1.0,
        *,
        axis_targets: AxisTargets | None = None,
        tokens_per_second: float | None = None,
        policy_cost: bool = False,
    ) -> None:
        self.actions = tuple(actions)
        self.cost = cost
        self.dense = cost.dense_action
        self.axis_targets = axis_targets if axis_targets is not None and axis_targets.any() else None
        self._rate = tokens_per_second
        self._budget = _checked_budget(budget)
        self._check_request()
        self.dense_only = self._budget == 1.0 and self.axis_targets is None and self._rate is None
        self.floored = False
        self._policy = cost.policy() if policy_cost and not self.dense_only else 0.0
        self._table = cost.table(self.actions)
        self._indices = {action: index for index, action in enumerate(self.actions)}
        self._is_dense = np.array([action == self.dense for action in self.actions], bool)
        self._spend = _Meter()
        self._served = 0.0
        self._axes = _axis_values(self.actions, self.dense)
        self._axis_sums = [0.0, 0.0, 0.0]
        self._targets = _axis_targets(self.axis_targets, self._axes, self.dense, self.actions)
        self._meters = [_Meter() for _ in range(3)] if self.axis_targets else []
        self._steps: list[StepCosts] = []  # of the block of contexts that the run is in

    def _check_request(self) -> None:
        if self.dense not in self.actions:
            raise UsageError(f"controller: the dense action {self.dense.tag} is not among the actions to choose from")
        wishes = [
            name
            for name, given in (
                ("--budget", self._budget < 1.0),
                (_AXIS_FLAGS, self.axis_targets is not None),
                ("--tokens-per-second", self._rate is not None),
            )
            if given
        ]
        if len(wishes) > 1:
            raise UsageError(f"{' and '.join(wishes)} contradict each other: give one of them")
        if self._rate is not None:
            if not (math.isfinite(self._rate) and self._rate > 0):
                raise UsageError(f"--tokens-per-second: got {self._rate}, expected a number over 0")
            if self.cost.unit != "milliseconds":
                raise UsageError("--tokens-per-second: no times measured on this device; run `sol-rt calibrate` first")

    # What a schedule asks

    def relative_costs(self, context: int) -> np.ndarray:
        """Cost of each action in dense steps, policy included, float64 [A]; not to be changed."""
        return self._at(context).relative

    def floor(self, context: int) -> float:
        """Relative cost of the cheapest action at this context, policy included."""
        step = self._at(context)
        return step.low / step.dense

    def target(self, context: int) -> float:
        """Relative cost, policy included, that this step should aim for: the allowance, and what makes up for the
        deviation within HORIZON steps; between the cheapest and the dearest action.
        """
        step = self._at(context)
        if self._meters:
            return step.high / step.dense
        wanted = step.allowance - self._spend.deviation / HORIZON
        return min(max(wanted, step.low), step.high) / step.dense

    def allowed(self, context: int) -> np.ndarray:
        """Which actions keep the promise, bool [A]; never empty. Where none does, the ones that miss it least."""
        if self.dense_only:
            return self._is_dense.copy()
        if self._meters:
            return _least(self._axis_violation())
        step = self._at(context)
        if step.floored:
            return np.asarray(step.costs <= step.low * (1 + _EPSILON))
        after = self._spend.deviation + step.costs - step.allowance
        window = self._spend.window(step.dense)
        return _least(np.where(step.useful, np.maximum(np.abs(after) - window, 0.0), np.inf))

    def allows(self, index: int, context: int) -> bool:
        """`allowed(context)[index]`. As a rule the action keeps the promise, which takes no look at the others."""
        return self._keeps_promise(index, context) or bool(self.allowed(context)[index])

    # What the loop reports

    def record(self, action: Action, context: int) -> Charge:
        """Charges one decode step; `context` is the cache length before it."""
        step = self._at(context)
        index = self._indices.get(action)
        cost = self.cost.step(action, context) + self._policy if index is None else step.costs.item(index)
        if not self._meters and not self.dense_only:
            self.floored |= step.floored
        allowance = cost if self._meters else step.allowance
        self._spend.add(cost, allowance, step.dense)
        self._served += max(allowance, step.low) if not self.dense_only else allowance
        values = (_axis_values((action,), self.dense)[0] if index is None else self._axes[index]).tolist()
        self._axis_sums = [total + value for total, value in zip(self._axis_sums, values, strict=True)]
        for meter, value, target in zip(self._meters, values, self._targets.tolist(), strict=False):
            meter.add(value, target, 1.0)
        return Charge(cost, cost / step.dense)

    # How it stands

    @property
    def achieved(self) -> float:
        """Sum of all costs so far / sum of the dense costs of the same steps; 1.0 before the first step."""
        return self._spend.spent / self._spend.full if self._spend.full else 1.0

    @property
    def requested(self) -> float | None:
        """The budget asked for; the one that the rate came to so far; None under axis targets."""
        if self._meters:
            return None
        if self._rate is not None and self._spend.full:
            return self._spend.allowed / self._spend.full
        return self._budget

    @property
    def served_budget(self) -> float | None:
        """What could be served so far of `requested`: more than it where the cheapest action costs more. None under
        axis targets.
        """
        if self._meters:
            return None
        return self._served / self._spend.full if self._spend.full else self.requested

    @property
    def axis_means(self) -> AxisTargets:
        """Mean settings of the steps so far, in the units of AxisTargets."""
        kv_density, channel_density, bits = (total / max(self.steps, 1) for total in self._axis_sums)
        return AxisTargets(kv_density, channel_density, bits * self.dense.bits)

    @property
    def steps(self) -> int:
        """Decode steps recorded."""
        return self._spend.steps

    # Arithmetic

    def _at(self, context: int) -> StepCosts:
        if not self._steps or not 0 <= context - self._steps[0].context < _BLOCK:
            self._steps = self._block(context // _BLOCK * _BLOCK)
        return self._steps[context - self._steps[0].context]

    def _block(self, first: int) -> list[StepCosts]:
        """Costs at the _BLOCK contexts from `first` on."""
        contexts = np.arange(first, first + _BLOCK)
        costs = self._table(contexts)
        dense = costs[:, self._is_dense][:, :1]
        costs = costs + self._policy
        allowance = self._budget * dense
        if self._rate is not None:
            allowance = np.minimum(dense + self._policy, 1000.0 / self._rate)
        useful = (costs < dense + self._policy) | self._is_dense
        low, high = costs.min(axis=1, keepdims=True), costs.max(axis=1, keepdims=True)
        floored = allowance < low * (1 - _EPSILON)
        numbers = (column.ravel().tolist() for column in (low, high, dense, allowance, floored))
        return [StepCosts(*row) for row in zip(contexts.tolist(), costs, costs / dense, useful, *numbers, strict=True)]

    def _keeps_promise(self, index: int, context: int) -> bool:
        """Whether all stays in its window after this action."""
        if self._meters:
            window = self._meters[0].window(1.0)
            after = zip(self._meters, self._axes[index].tolist(), self._targets.tolist(), strict=True)
            return all(abs(meter.deviation + value - target) <= window for meter, value, target in after)
        step = self._at(context)
        if self.dense_only or step.floored or not step.useful[index]:
            return False
        deviation = self._spend.deviation + step.costs.item(index) - step.allowance
        return abs(deviation) <= self._spend.window(step.dense)

    def _axis_violation(self) -> np.ndarray:
        after = np.array([meter.deviation for meter in self._meters]) + self._axes - self._targets
        windows = np.array([meter.window(1.0) for meter in self._meters])
        return np.asarray(np.maximum(np.abs(after) - windows, 0.0).max(axis=1))


def _least(violation: np.ndarray) -> np.ndarray:
    """Where the violation is smallest: where it is 0 if anywhere."""
    return np.asarray(violation <= violation.min() + _EPSILON * max(1.0, float(violation.min())))


def _checked_budget(budget: float) -> float:
    if not (isinstance(budget, (int, float)) and math.isfinite(budget) and 0 <= budget <= 1):
        raise UsageError(f"--budget: got {budget}, expected a share of the dense cost from 0 to 1")
    return float(budget)


def _axis_values(actions: Sequence[Action], dense: Action) -> np.ndarray:
    """[A, 3]: KV density, channel density and bits of each action as shares of the dense ones."""
    return np.array([(a.kv_density, a.channel_density, a.bits / dense.bits) for a in actions], np.float64)


def _axis_targets(
    targets: AxisTargets | None, values: np.ndarray, dense: Action, actions: Sequence[Action]
) -> np.ndarray:
    """[3] targets as shares of the dense settings. Raises UsageError where they are out of range or no mix of actions
    has them.
    """
    if targets is None:
        return np.ones(3)
    wanted = np.ones(3)
    for axis, (name, full) in enumerate((("kv_density", 1.0), ("channel_density", 1.0), ("bits", float(dense.bits)))):
        value = getattr(targets, name)
        low, high = float(values[:, axis].min()) * full, float(values[:, axis].max()) * full
        if value is None:
            wanted[axis] = high / full
            continue
        if not (isinstance(value, (int, float)) and math.isfinite(value) and low - 1e-6 <= value <= high + 1e-6):
            raise UsageError(
                f"--{name.replace('_', '-')}: got {value}, expected {low:g} to {high:g}, as this bundle has"
            )
        wanted[axis] = value / full
    if _distance_to_hull(values - wanted) > 0.01:
        near = actions[int(np.argmin(((values - wanted) ** 2).sum(axis=1)))]
        raise UsageError(
            f"{_AXIS_FLAGS}: no mix of this bundle's actions has these means; the nearest action is {near.tag}"
        )
    return wanted


def _distance_to_hull(points: np.ndarray) -> float:
    """Distance from the origin to the convex hull of `points` [A, n], by Frank-Wolfe steps; an upper bound within
    0.005 or so.
    """
    nearest = points[int(np.argmin((points**2).sum(axis=1)))]
    for _ in range(1000):
        vertex = points[int(np.argmin(points @ nearest))]
        way = nearest - vertex
        gain = float(nearest @ way)
        if gain < 1e-7:
            break
        nearest = nearest - min(gain / float(way @ way), 1.0) * way
    return float(np.sqrt(nearest @ nearest))
