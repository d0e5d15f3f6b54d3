"""`entropy`: the mix of `uniform`, timed by the model's uncertainty."""

from __future__ import annotations

import math

from sol_rt.budget.controller import Controller
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.budget.schedules.uniform import UniformSchedule
from sol_rt.bundle.actions import Action

_DOUBT_MEMORY = 0.95  # how slowly what is usual follows
_DOUBT_GAIN = 0.5  # turns that a doubt of one standard deviation is worth


class EntropySchedule(UniformSchedule):
    """A hand-made rule: the mix of `uniform`, its dearer settings on the steps where the model was in doubt before.

    Doubt is the entropy of the last step's distribution in nats, and one minus the margin between its two likeliest
    tokens; each in standard deviations from what is usual in this text, and the mean of both, from -2 to 2. It brings
    an axis' turn to take its higher setting forward or puts it off; how often each setting comes is as in `uniform`.
    """

    name = "entropy"

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._usual = (_Usual(), _Usual())

    def choose(self, step: PolicyInput) -> Action:
        entropy, margin = self._usual
        distribution = step.distribution
        doubt = (entropy.standing(distribution.entropy) + margin.standing(1.0 - distribution.margin)) / 2
        self._forward = _DOUBT_GAIN * doubt
        return super().choose(step)


class _Usual:
    """Running mean and variance of a number."""

    def __init__(self) -> None:
        self._mean = self._variance = self._weight = 0.0

    def standing(self, value: float) -> float:
        """How many standard deviations `value` is over the mean of those before it, -2 to 2; it then counts itself."""
        deviation = math.sqrt(self._variance)
        found = (value - self._mean) / deviation if deviation > 0 else 0.0
        # the first values weigh alike, later ones fade
        self._weight = _DOUBT_MEMORY * self._weight + 1.0
        share = 1.0 / self._weight
        step = value - self._mean
        self._mean += share * step
        self._variance = (1 - share) * (self._variance + share * step * step)
        return min(max(found, -2.0), 2.0)
