"""Default schedule of a run that names none."""

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
    gain_counts: bool = True,
) -> str:
    """`sol` at budgets at which the bundle's policy was measured to beat `hull`, else `hull`.

    If no losses were measured, there is no hull: `sol` if the bundle has a policy, else `uniform`. Under axis targets,
    which `hull` cannot hold, `uniform` stands in for it.

    Args:
        config: the bundle's.
        cost: the cost model of the device.
        budget: share of the dense cost that is asked for. None, where something else is asked for, counts as 1.
        axis_targets: the means that are asked for in place of a budget.
        gain_counts: whether the policy's measured gain holds for the engine that runs the steps.
    """
    known = gain_counts or not config.losses_measured
    low, high = (policy_budgets(config, cost) if known else None) or (math.inf, -math.inf)
    if low <= (1.0 if budget is None else budget) <= high:
        return "sol"
    return "hull" if config.losses_measured and not (axis_targets is not None and axis_targets.any()) else "uniform"


def policy_budgets(config: SolConfig, cost: CostModel) -> tuple[float, float] | None:
    """The least and the largest budget at which `sol` is the default schedule; None where it is at none.

    The bundle's `gain_budgets` are shares of the dense step's bytes. Where costs are milliseconds, each end but 0 and 1
    moves to the budget at which `hull` is expected to lose as much. No budget is left if

    - both ends come to one,
    - the lower end less the time of the policy's run is below the cheapest action's cost, or
    - `hull` would lose `gain_over_hull` or more there by going without that time. The gain was measured in bytes, so
      this is a cautious rule: where the two actions that `hull` mixes lie further apart, a policy gains more.

    A lower end of 0 is taken as it is.
    """
    policy = config.policy
    if policy is None:
        return None
    if not config.losses_measured:
        return 0.0, 1.0
    if policy.gain_over_hull <= 0:
        return None
    if cost.name == "bytes":
        return policy.gain_budgets
    actions = tuple(dict.fromkeys(schedule_actions(config, "hull")))
    losses = ActionLosses(config).table
    read, here = Hull(actions, BytesCost(config), losses), Hull(actions, cost, losses)
    context = min(_CONTEXT, config.model.max_context - 1)
    run, floor = cost.policy() / cost.dense(context), here.corners(context)[0].cost

    def moved(budget: float) -> float:
        if not 0 < budget < 1:
            return budget
        return here.cost_at(max(read.loss_at(budget, context), 0.0), context)

    low, high = map(moved, policy.gain_budgets)
    rest = low - run  # what is left for the policy's actions
    dear = rest < floor or here.loss_at(rest, context) - here.loss_at(low, context) >= policy.gain_over_hull
    return None if low >= high or (low > 0 and dear) else (low, high)
