"""`random`: draws actions so that their expected cost is the target."""

from __future__ import annotations

import secrets

import numpy as np

from sol_rt import philox
from sol_rt.budget.controller.base import BaseController
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.bundle.actions import Action


class RandomSchedule:
    """Draws actions with probability proportional to exp(-rate * cost), with the rate at which the expected cost is the
    target. Under axis targets all allowed actions are equally likely. A draw depends on seed and context alone.
    """

    name = "random"

    def __init__(self, controller: BaseController, seed: int | None) -> None:
        self._controller = controller
        self._seed = secrets.randbits(32) if seed is None else int(seed)

    def choose(self, step: PolicyInput) -> Action:
        """A random one of the allowed actions."""
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        candidates = np.flatnonzero(controller.allowed(step.context))
        word = philox.words(self._seed, philox.SCHEDULE, step.context, np.zeros(1, np.uint64))[0, :1]
        number = float(philox.uniform(word)[0])
        if controller.axis_targets is not None:
            place = int(number * len(candidates))
        else:
            shares = tilted(controller.relative_costs(step.context)[candidates], controller.target(step.context))
            place = drawn(shares, number)
        return controller.actions[int(candidates[place])]


def drawn(shares: np.ndarray, number: float) -> int:
    """The first index at which the running sum of `shares`, float64 [A], exceeds `number` (0 to 1) of their sum."""
    sums = np.cumsum(shares)
    return min(int(sums.searchsorted(number * sums[-1], side="right")), len(shares) - 1)


def tilted(costs: np.ndarray, target: float) -> np.ndarray:
    """The distribution, float64 [A], of largest entropy whose expected cost is `target`.

    If no distribution over `costs` [A] has that expectation, the nearest possible one. The rate is found by bisection.
    """
    low, high = -500.0, 500.0
    for _ in range(40):
        rate = (low + high) / 2
        exponents = -rate * costs
        shares = np.exp(exponents - exponents.max())
        shares = shares / shares.sum()
        if float(shares @ costs) > target:
            low = rate
        else:
            high = rate
    return np.asarray(shares)
