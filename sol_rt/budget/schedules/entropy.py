"""`entropy`: the mix of `uniform`, with the dearer settings on the steps where the model was uncertain before.

It is a hand-made rule: what a policy has to beat.
"""

from __future__ import annotations

import math

from sol_rt.budget.controller.base import BaseController
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.budget.schedules.uniform import UniformSchedule
from sol_rt.bundle.actions import Action

_DECAY = 0.95  # weight of the past when the running mean takes a new value
_GAIN = 0.5  # turns by which an uncertainty of one standard deviation brings the higher setting forward
_LIMIT = 2.0  # standard deviations


class EntropySchedule(UniformSchedule):
    """Takes the mix of `uniform`, and its dearer settings on uncertain steps.

    Uncertainty is the mean of two signals of the last step's distribution: its entropy in nats, and one minus the
    margin between its two likeliest tokens. Each is counted in standard deviations from its running mean over this
    text, from -2 to 2. High uncertainty brings forward the turn at which an axis takes its higher setting, low
    uncertainty puts it off. How often each setting comes is as in `uniform`.
    """

    name = "entropy"

    def __init__(self, controller: BaseController) -> None:
        super().__init__(controller)
        self._entropy, self._closeness = RunningZScore(), RunningZScore()

    def choose(self, step: PolicyInput) -> Action:
        """The action for this step, after the step's uncertainty has moved the turns of the axes."""
        entropy = self._entropy.update(step.distribution.entropy)
        closeness = self._closeness.update(1.0 - step.distribution.margin)
        uncertainty = (entropy + closeness) / 2
        self._forward = _GAIN * uncertainty
        return super().choose(step)


class RunningZScore:
    """Running z-score of a sequence: the distance of a value from the running mean, in standard deviations."""

    def __init__(self) -> None:
        self._mean = self._variance = self._weight = 0.0

    def update(self, value: float) -> float:
        """The z-score of `value` among the values before it, from -2 to 2; 0 while they do not vary.

        Then adds it to the running mean and variance. The first values weigh alike, later ones decay.
        """
        deviation = math.sqrt(self._variance)
        score = (value - self._mean) / deviation if deviation > 0 else 0.0
        self._weight = _DECAY * self._weight + 1.0
        share = 1.0 / self._weight
        step = value - self._mean
        self._mean += share * step
        self._variance = (1 - share) * (self._variance + share * step * step)
        return min(max(score, -_LIMIT), _LIMIT)
