"""`uniform`: the hand-made mix that needs no policy."""

from __future__ import annotations

import numpy as np

from sol_rt.budget.controller import Controller
from sol_rt.budget.schedules.axes import GRID, axes_of
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.bundle.actions import Action


class UniformSchedule:
    """The hand-made mix that needs no policy: on each axis the two nearest settings in turn.

    A single position u in [0, 1] turns the axes down one after the other: bits, which cost least quality for what they
    save, then pages or channels, whichever can save more at this context (reading fewer pages of a short cache would
    save nothing), then the other; the lowest settings of both come last, for they cost most. u is where the mix's
    expected cost is the controller's target. Under axis targets each axis is at its own target instead. Error diffusion
    on each axis deals out the two settings around its position.
    """

    name = "uniform"

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._axes = axes_of(controller.actions)
        # thirds apart, so that the axes don't all turn cheap on the same step
        self._carry = [0.0, 1 / 3, 2 / 3]
        self._forward = 0.0  # how much of a turn the higher settings come early

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        keep, prune, bits = (self._deal(axis, at) for axis, at in enumerate(self._wanted(step.context)))
        index = self._axes.nearest((keep, prune, bits))
        if not controller.allows(index, step.context):
            allowed = controller.allowed(step.context)
            costs = controller.relative_costs(step.context)
            # nearest in cost holds a budget; nearest in setting holds axis targets
            distance = np.abs(costs - costs[index])
            if controller.axis_targets is not None:
                settings = self._axes.settings
                distance = np.abs(settings - settings[index]).sum(axis=1)
            index = int(np.argmin(np.where(allowed, distance, np.inf)))
        return controller.actions[index]

    def _deal(self, axis: int, position: float) -> float:
        """One of the two settings around `position`, so that their mean over the steps is what the positions ask."""
        low, high, share = self._axes.around(axis, position)
        if share >= 1.0:
            return high
        self._carry[axis] += share
        if self._carry[axis] < 1.0 - self._forward - 1e-9:
            return low
        self._carry[axis] -= 1.0
        return high

    def _wanted(self, context: int) -> list[float]:
        """Position of each axis for this step, [3], in percent, percent and bits."""
        controller, axes = self._controller, self._axes
        targets = controller.axis_targets
        if targets is not None:
            given = (
                None if targets.keep is None else 100 * targets.keep,
                None if targets.prune is None else 100 * targets.prune,
                targets.bits,
            )
            return [top if value is None else value for value, top in zip(given, axes.scale.tolist(), strict=True)]
        # the nearest existing combination may be cheaper higher up: the running maximum keeps the curve invertible
        costs = controller.relative_costs(context)
        pages_first = bool(costs[axes.cheap_keep] < costs[axes.cheap_prune])
        # einsum, as a product of this size may wake threads of BLAS, which then keep cores from the next step
        expected = np.maximum.accumulate(np.einsum("ja,a->j", axes.mixes(pages_first), costs))
        wanted = min(max(controller.target(context), float(expected[0])), float(expected[-1]))
        above = int(expected.searchsorted(wanted))
        if above == 0:
            return axes.positions(0.0, pages_first)
        below, rise = expected[above - 1], expected[above] - expected[above - 1]
        return axes.positions(float(above - 1 + (wanted - below) / rise) / GRID, pages_first)
