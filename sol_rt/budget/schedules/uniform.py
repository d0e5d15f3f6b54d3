"""`uniform`: mixes the two nearest settings of each axis in fixed proportions. It needs no policy."""

from __future__ import annotations

import numpy as np

from sol_rt.budget.controller.base import BaseController
from sol_rt.budget.schedules.axes import GRID, axes_of
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.bundle.actions import Action


class UniformSchedule:
    """Alternates between the two nearest settings on each axis.

    A single position u in [0, 1] turns the axes down one after the other, each to its lowest setting. The order is
    bits, KV density, and channel density, which loses most. u is where the mix's expected cost is the controller's
    target. Under axis targets each axis is at its own target instead. Error diffusion on each axis decides which of the
    two settings around its position a step takes.
    """

    name = "uniform"

    def __init__(self, controller: BaseController) -> None:
        self._controller = controller
        self._axes = axes_of(controller.actions)
        # what error diffusion owes each axis; thirds apart, so that the axes don't all turn cheap on the same step
        self._carry = [0.0, 1 / 3, 2 / 3]
        self._forward = 0.0  # by how much of a turn the higher settings come early

    def choose(self, step: PolicyInput) -> Action:
        """The action nearest to the step's settings, or if that is not allowed the nearest allowed one."""
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        kv_density, channel_density, bits = (self._deal(axis, at) for axis, at in enumerate(self._wanted(step.context)))
        index = self._axes.nearest((kv_density, channel_density, bits))
        if controller.axis_targets is None:  # nearest in cost holds a budget; nearest in setting holds axis targets
            index = controller.nearest_allowed(index, step.context)
        elif not controller.allows(index, step.context):
            settings = self._axes.settings
            distance = np.abs(settings - settings[index]).sum(axis=1)
            index = int(np.argmin(np.where(controller.allowed(step.context), distance, np.inf)))
        return controller.actions[index]

    def _deal(self, axis: int, position: float) -> float:
        """One of the two levels around `position`; over the steps, their mean is the mean of the positions."""
        low, high, share = self._axes.around(axis, position)
        if share >= 1.0:
            return high
        self._carry[axis] += share
        if self._carry[axis] < 1.0 - self._forward - 1e-9:
            return low
        self._carry[axis] -= 1.0
        return high

    def _wanted(self, context: int) -> list[float]:
        """The settings that this step aims for: two densities and bits, [3]."""
        controller, axes = self._controller, self._axes
        targets = controller.axis_targets
        if targets is not None:
            given = (targets.kv_density, targets.channel_density, targets.bits)
            return [top if value is None else value for value, top in zip(given, axes.scale.tolist(), strict=True)]
        # the nearest existing combination may be cheaper higher up: the running maximum keeps the curve invertible
        costs = controller.relative_costs(context)
        # einsum, as a product of this size may wake threads of BLAS, which then keep cores from the next step
        expected = np.maximum.accumulate(np.einsum("ja,a->j", axes.mixes, costs))
        wanted = min(max(controller.target(context), float(expected[0])), float(expected[-1]))
        above = int(expected.searchsorted(wanted))
        if above == 0:
            return axes.positions(0.0)
        below, rise = expected[above - 1], expected[above] - expected[above - 1]
        return axes.positions(float(above - 1 + (wanted - below) / rise) / GRID)
