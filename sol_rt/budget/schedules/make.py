"""Builds a schedule by its name."""

from __future__ import annotations

from collections.abc import Sequence

from sol_rt.budget.controller.base import BaseController
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.hull import Hull
from sol_rt.budget.schedules.constant import ConstantSchedule
from sol_rt.budget.schedules.entropy import EntropySchedule
from sol_rt.budget.schedules.hull import HullSchedule
from sol_rt.budget.schedules.policy import Policy, SolSchedule
from sol_rt.budget.schedules.random_schedule import RandomSchedule
from sol_rt.budget.schedules.schedule import NAMES, Schedule
from sol_rt.budget.schedules.uniform import UniformSchedule
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError, brief


def make_schedule(
    name: str,
    controller: BaseController,
    *,
    seed: int | None = None,
    policy: Policy | None = None,
    hull: Hull | None = None,
    variants: Sequence[str] | None = None,
) -> Schedule:
    """Builds the schedule `name` over the controller's actions.

    Args:
        name: `sol`, `hull`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`.
        controller: a fresh controller.
        seed: seed of `random`; None draws a fresh one.
        policy: the bundle's policy, for `sol`.
        hull: the hull of the controller's actions, for `hull`.
        variants: keys of the bundle's variants, against which `fixed:TAG` is checked; None does not check it.

    Raises UsageError for an unknown name, a tag whose variant the bundle lacks, `sol` without a policy, `hull` without
    measured losses, and `hull` under axis targets.
    """
    if name == "dense":
        return ConstantSchedule(name, controller.dense)
    if name.startswith("fixed:"):
        action = Action.parse(name.removeprefix("fixed:"))
        if variants is not None and action.variant not in variants:
            raise UsageError(
                f"--schedule {name}: no variant {action.variant} in this bundle; it has {', '.join(variants)}"
            )
        return ConstantSchedule(name, action)
    if name == "hull":
        if not isinstance(controller, Controller):
            raise UsageError("--schedule hull: holds a budget, a rate or a loss; use uniform for targets on the axes")
        if hull is None:
            raise UsageError(
                "--schedule hull: no losses of this bundle's actions were measured; use uniform, "
                "or export the model with calibration"
            )
        return HullSchedule(controller, hull)
    if name == "uniform":
        return UniformSchedule(controller)
    if name == "entropy":
        return EntropySchedule(controller)
    if name == "random":
        return RandomSchedule(controller, seed)
    if name == "sol":
        if policy is None:
            raise UsageError("--schedule sol: this bundle has no policy; use hull, or train one with `sol-rt train`")
        return SolSchedule(controller, policy)
    raise UsageError(f"--schedule: got {brief(name)}, expected one of {', '.join(NAMES)}")
