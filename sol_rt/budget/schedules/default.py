"""Which schedule runs where none is named."""

from __future__ import annotations

import math

from sol_rt.budget.controller.base import AxisTargets
from sol_rt.budget.cost.bytes_model import BytesCost, CostModel
from sol_rt.budget.hull import Hull
from sol_rt.budget.losses import ActionLosses
from sol_rt.budget.schedules.schedule import schedule_actions
from sol_rt.bundle.config import SolConfig

_CONTEXT = 512  # tokens at which budgets in bytes are compared with those in milliseconds


def default_schedule(
    config: SolConfig,
    cost: CostModel,
    budget: float | None = None,
    axis_targets: AxisTargets | None = None,
) -> str:
    """`sol` at budgets at which the bundle's policy was measured to beat `hull`, else `hull`.

    If no losses were measured, there is no hull: `sol` if the bundle has a policy, else `uniform`. Under axis targets,
    which `hull` cannot hold, `uniform` stands in for it.

    Args:
        config: the bundle's.
        cost: the cost model of the device.
        budget: share of the dense cost that is asked for. None, where something else is asked for, counts as 1.
        axis_targets: the means that are asked for in place of a budget.
    """
    low, high = policy_budgets(config, cost) or (math.inf, -math.inf)
    if low <= (1.0 if budget is None else budget) <= high:
        return "sol"
    return "hull" if config.losses_measured and not (axis_targets is not None and axis_targets.any()) else "uniform"


def policy_budgets(config: SolConfig, cost: CostModel) -> tuple[float, float] | None:
    """The least and the largest budget at which `sol` is the default schedule; None where it is at none.

    The bundle's `gain_budgets` are shares of the dense step's bytes. Where costs are milliseconds, each end moves to
    the budget at which `hull` is expected to lose as much.
    """
    policy = config.policy
    if policy is None:
        return None
    if not config.losses_measured:
        return 0.0, 1.0
    if policy.gain_over_hull <= 0:
        return None
    low, high = policy.gain_budgets
    if cost.name == "bytes" or (low, high) == (0.0, 1.0):
        return low, high
    actions = tuple(dict.fromkeys(schedule_actions(config, "hull")))
    losses = ActionLosses(config).table
    read, here = Hull(actions, BytesCost(config), losses), Hull(actions, cost, losses)
    context = min(_CONTEXT, config.model.max_context - 1)
    return here.cost_at(read.loss_at(low, context), context), here.cost_at(read.loss_at(high, context), context)
