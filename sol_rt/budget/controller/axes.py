"""The controller of axis targets: holds a mean setting on each of the three axes instead of a budget.

An axis is one of an action's three numbers. Each has a window of its own, in which the sum of the settings stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sol_rt.budget.controller.base import AxisTargets, BaseController, least
from sol_rt.budget.controller.spend_window import SpendWindow
from sol_rt.budget.controller.step_costs import StepCosts
from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError

_NEAR_HULL = 0.01  # how far from any mix of actions the targets may lie, in shares of the dense settings


class AxisController(BaseController):
    """Keeps the mean settings of a generation at axis targets.

    Args:
        actions: what schedules choose from; the dense action is among them.
        cost: the cost model. It decides nothing here; it reports the cost of the steps.
        axis_targets: the means to hold, with at least one target.
        policy_cost: whether each step pays for a run of the policy.

    Raises UsageError for targets out of range, or that no mix of the actions has.
    """

    axis_targets: AxisTargets

    def __init__(
        self, actions: Sequence[Action], cost: CostModel, axis_targets: AxisTargets, *, policy_cost: bool = False
    ) -> None:
        super().__init__(actions, cost, cost.policy() if policy_cost else 0.0)
        self.axis_targets = axis_targets
        self._targets = _as_shares(axis_targets, self._settings, self.dense, self.actions)
        self._windows = [SpendWindow() for _ in range(3)]

    def target(self, context: int) -> float:
        """The cost of the dearest action in dense steps: axis targets limit settings, not costs."""
        costs = self._costs.at(context)
        return costs.high / costs.dense

    def allowed(self, context: int) -> np.ndarray:
        """Marks the actions that keep all three means, bool [A]. If none does: the actions that miss them least."""
        after = np.array([window.deviation for window in self._windows]) + self._settings - self._targets
        half_widths = np.array([window.half_width(1.0) for window in self._windows])
        return least(np.maximum(np.abs(after) - half_widths, 0.0).max(axis=1))

    def _is_inside(self, index: int, context: int) -> bool:
        half_width = self._windows[0].half_width(1.0)  # the same on every axis
        after = zip(self._windows, self._settings[index].tolist(), self._targets.tolist(), strict=True)
        return all(abs(window.deviation + setting - target) <= half_width for window, setting, target in after)

    def _book(self, cost: float, settings: Sequence[float], costs: StepCosts) -> None:
        self._spend.add(cost, cost, costs.dense)
        for window, setting, target in zip(self._windows, settings, self._targets.tolist(), strict=True):
            window.add(setting, target, 1.0)

    def set_budget(self, budget: float) -> None:
        """Raises UsageError: axis targets ask for no budget."""
        raise self._no_budget()

    def set_rate(self, tokens_per_second: float) -> None:
        """Raises UsageError: axis targets ask for no rate."""
        raise self._no_budget()

    def _no_budget(self) -> UsageError:
        return UsageError(f"budget: this run holds {self.axis_targets.flags} instead; start a run with a budget")

    @property
    def budget(self) -> None:
        """None: axis targets ask for no budget."""
        return

    @property
    def tokens_per_second(self) -> None:
        """None: axis targets ask for no rate."""
        return

    @property
    def requested(self) -> None:
        """None: axis targets ask for no budget."""
        return


def _as_shares(targets: AxisTargets, settings: np.ndarray, dense: Action, actions: Sequence[Action]) -> np.ndarray:
    """The targets as shares of the dense settings, [3]; an axis without one gets the highest setting of the actions.

    Raises UsageError for targets out of range, or that no mix of the actions has. `settings` are the actions', [A, 3].
    """
    wanted = np.ones(3)
    for axis, (name, full) in enumerate((("kv_density", 1.0), ("channel_density", 1.0), ("bits", float(dense.bits)))):
        value = getattr(targets, name)
        low, high = float(settings[:, axis].min()) * full, float(settings[:, axis].max()) * full
        if value is None:
            wanted[axis] = high / full
            continue
        if not (isinstance(value, (int, float)) and math.isfinite(value) and low - 1e-6 <= value <= high + 1e-6):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: got {value}, expected {low:g} to {high:g}, as this bundle has")
        wanted[axis] = value / full
    if _distance_to_hull(settings - wanted) > _NEAR_HULL:
        near = actions[int(np.argmin(((settings - wanted) ** 2).sum(axis=1)))]
        raise UsageError(
            f"{targets.flags}: no mix of this bundle's actions has these means; the nearest action is {near.tag}"
        )
    return wanted


def _distance_to_hull(points: np.ndarray) -> float:
    """Distance from the origin to the convex hull of `points` [A, n], by Frank-Wolfe steps.

    It is an upper bound, at most about 0.005 too large.
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
