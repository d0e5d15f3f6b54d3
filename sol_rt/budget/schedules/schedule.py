"""What every schedule implements, and the names by which commands know them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from sol_rt.budget.controller import AxisTargets
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.engine.distribution import Distribution

NAMES = ("sol", "uniform", "entropy", "random", "fixed:TAG", "dense")


class PolicyInput(NamedTuple):
    """What is known when an action is picked.

    Attributes:
        context: tokens in the cache.
        token: the token about to be processed.
        hidden: float32 [1, hidden], final hidden state of the step that produced `token`; only `sol` needs it.
        distribution: of the tokens after that step; only `sol` and `entropy` read it.
        step: decode steps done before this one.
    """

    context: int
    token: int
    hidden: np.ndarray | None
    distribution: Distribution
    step: int


class Schedule(Protocol):
    name: str

    def choose(self, step: PolicyInput) -> Action:
        """The action for this step. The loop then reports it to the controller with `record`."""


def is_constant(name: str) -> bool:
    """Whether the schedule `name` takes one action whatever the budget."""
    return name == "dense" or name.startswith("fixed:")


def default_schedule(config: SolConfig) -> str:
    """`sol` where the bundle has a policy, else `uniform`."""
    return "uniform" if config.policy is None else "sol"


def schedule_actions(config: SolConfig, name: str, axis_targets: AxisTargets | None = None) -> tuple[Action, ...]:
    """The actions that the controller and the schedule `name` work with; the dense one is always among them.

    `sol`: the policy's, in its order. `random`: the bundle's action set. `uniform` and `entropy`, and every schedule
    but `sol` under axis targets: every keep of the action set with every variant.
    """
    if name == "sol" and config.policy is not None:
        actions = config.policy.actions
    elif name in ("uniform", "entropy") or (axis_targets is not None and axis_targets.any()):
        keeps = sorted({entry.action.keep for entry in config.actions} | {100}, reverse=True)
        variants = sorted(config.variants.values(), key=lambda variant: (-variant.bits, -variant.prune))
        actions = tuple(Action(keep, variant.prune, variant.bits) for variant in variants for keep in keeps)
    else:
        actions = tuple(entry.action for entry in config.actions)
    return actions if config.dense in actions else (*actions, config.dense)
