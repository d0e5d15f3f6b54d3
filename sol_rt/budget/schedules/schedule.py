"""The `Schedule` protocol, its inputs, and the names by which commands know schedules.

`sol` asks the bundle's policy. `hull` mixes the two actions that the export's measurements favour. `uniform`, `random`
and the hand-made rule `entropy` are what the two are compared with.
`fixed:TAG` and `dense` are constant. All but the constant ones choose only what the controller allows, so all of them
hold the same budget through the same code.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from sol_rt.budget.controller.base import AxisTargets
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.engine.distribution import Distribution

NAMES = ("sol", "hull", "uniform", "entropy", "random", "fixed:TAG", "dense")


class PolicyInput(NamedTuple):
    """Facts that a schedule gets before a decode step.

    Attributes:
        context: tokens in the cache before the step.
        token: the token that the step is to process.
        hidden: float32 [1, hidden], the final norm's output of the step before, from which `token` was picked; only
            `sol` needs it.
        distribution: the distribution from which `token` was picked; only `sol` and `entropy` read it.
        step: decode steps of the run before this one.
    """

    context: int
    token: int
    hidden: np.ndarray | None
    distribution: Distribution
    step: int


class Schedule(Protocol):
    """Picks the action of each decode step.

    Attributes:
        name: one of NAMES, or the name of a schedule of your own.
    """

    name: str

    def choose(self, step: PolicyInput) -> Action:
        """The action for this step. The loop runs it, then reports it to the controller with `record`."""


def is_constant(name: str) -> bool:
    """True if the schedule `name` always takes the same action, whatever the budget."""
    return name == "dense" or name.startswith("fixed:")


def schedule_actions(config: SolConfig, name: str, axis_targets: AxisTargets | None = None) -> tuple[Action, ...]:
    """The actions that the controller and the schedule `name` work with; the dense action is always among them.

    `sol` has the policy's actions, in the policy's order, `hull` and `random` the bundle's action set. `uniform` and
    `entropy`, and every schedule but `sol` under axis targets, have every KV density of the action set with every
    variant.
    """
    if name == "sol" and config.policy is not None:
        actions = config.policy.actions
    elif name in ("uniform", "entropy") or (axis_targets is not None and axis_targets.any()):
        kv_densities = sorted({entry.action.kv_density for entry in config.actions} | {1.0}, reverse=True)
        variants = sorted(config.variants.values(), key=lambda variant: (-variant.bits, -variant.channel_density))
        actions = tuple(
            Action(kv_density, variant.channel_density, variant.bits)
            for variant in variants
            for kv_density in kv_densities
        )
    else:
        actions = tuple(entry.action for entry in config.actions)
    return actions if config.dense in actions else (*actions, config.dense)
