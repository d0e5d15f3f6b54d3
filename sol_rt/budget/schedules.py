"""The `Schedule` protocol, its inputs, and the names by which commands know the schedules of the native core.

`hull` mixes the two actions that the export's measurements favour. `sol` asks the bundle's policy which steps get the
dearer of them. `uniform`, `random` and the hand-made rule `entropy` are what the two are compared with.
`fixed:TAG` and `dense` are constant. All but the constant ones choose only what the controller allows, so all of them
hold the same budget through the same code.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.engine.distribution import Distribution

NAMES = ("sol", "hull", "uniform", "entropy", "random", "fixed:TAG", "dense")


class PolicyInput(NamedTuple):
    """Facts that a schedule gets before a decode step.

    Attributes:
        context: tokens in the cache before the step.
        token: the token that the step is to process.
        hidden: float32 [1, hidden], the final norm's output of the step before, from which `token` was picked.
        distribution: the distribution from which `token` was picked.
        step: decode steps of the run before this one.
    """

    context: int
    token: int
    hidden: np.ndarray | None
    distribution: Distribution
    step: int


class Schedule(Protocol):
    """Picks the action of each decode step: a schedule of the caller's own.

    Attributes:
        name: the name under which it is reported.
    """

    name: str

    def choose(self, step: PolicyInput) -> Action:
        """The action for this step. The core runs it, then books its cost."""


def is_constant(name: str) -> bool:
    """True if the schedule `name` always takes the same action, whatever the budget."""
    return name == "dense" or name.startswith("fixed:")
