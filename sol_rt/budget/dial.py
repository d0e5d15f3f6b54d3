"""The dial: what a caller asks of the decode steps, and the controller that holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sol_rt.budget.controller.axes import AxisController
from sol_rt.budget.controller.base import AxisTargets, BaseController, check_request
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.budget.schedules import Schedule
from sol_rt.bundle.actions import Action

MakeSchedule = Callable[[BaseController], Schedule]
"""Makes a schedule for one run. The controller has the actions and tells which of them keep the budget."""


@dataclass(frozen=True)
class Dial:
    """How decode steps are to be run: at most one of a budget below 1, axis targets, and a rate.

    Attributes:
        budget: share of the dense cost, 0 to 1.
        schedule: `sol`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`; None for the bundle's default. Or a
            function that takes the run's controller and returns a schedule of your own.
        kv_density, channel_density: mean share of old cached tokens, of base-plane weights.
        bits: mean weight bits.
        tokens_per_second: decode rate to hold.
        seed: seed of the schedule `random`; None draws a fresh one.
    """

    budget: float = 1.0
    schedule: str | MakeSchedule | None = None
    kv_density: float | None = None
    channel_density: float | None = None
    bits: float | None = None
    tokens_per_second: float | None = None
    seed: int | None = None

    @property
    def axis_targets(self) -> AxisTargets:
        """The axis targets, each None where it is not asked for."""
        return AxisTargets(self.kv_density, self.channel_density, self.bits)

    @property
    def is_set(self) -> bool:
        """Whether the dial asks for anything but a schedule."""
        return self.budget != 1.0 or self.axis_targets.any() or self.tokens_per_second is not None


def make_controller(
    actions: Sequence[Action],
    cost: CostModel,
    budget: float = 1.0,
    *,
    axis_targets: AxisTargets | None = None,
    tokens_per_second: float | None = None,
    policy_cost: bool = False,
) -> BaseController:
    """The controller of axis targets where there are any, else that of the budget or the rate.

    Arguments as in `Controller` and `AxisController`. Raises UsageError for values out of range, for contradictory or
    unreachable requests, and for a rate without measured costs.
    """
    check_request(budget, axis_targets, tokens_per_second)
    if axis_targets is not None and axis_targets.any():
        return AxisController(actions, cost, axis_targets, policy_cost=policy_cost)
    return Controller(actions, cost, budget, tokens_per_second=tokens_per_second, policy_cost=policy_cost)
