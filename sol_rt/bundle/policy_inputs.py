"""The scalar inputs of a policy. The decode loop and training share this definition."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

RECENT = 16
"""Number of past decode steps that `recent_spend` averages over."""


class NextToken(Protocol):
    """The properties of the next token's distribution that policies read. All values are in nats or probabilities."""

    @property
    def entropy(self) -> float: ...

    @property
    def top_probability(self) -> float: ...

    @property
    def margin(self) -> float: ...

    def log_probability(self, token: int) -> float: ...


@dataclass(frozen=True)
class StepObservation:
    """Facts that are known before a decode step.

    Attributes:
        context: tokens in the cache.
        token: id of the token that the step will process.
        distribution: the distribution that the last step predicted for `token`.
        budget: requested share of the dense cost.
    """

    context: int
    token: int
    distribution: NextToken
    budget: float


class PolicyInputs:
    """Computes the scalar inputs of a policy over one run of decode steps.

    Args:
        names: names of the wanted scalars, from KNOWN_SCALARS.
        horizon: steps per episode.
        before: relative cost of the steps before the run; 1 if the prompt ran dense.

    Attributes:
        position: index of the step within its episode, 0 to horizon - 1.
        previous: index of the last step's action in the policy's list; -1 at the start of an episode and for an action
            that is not in the list.
        episode_cost: sum of the relative costs of the episode's steps so far.
        previous_cost: relative cost of the last step; `before` at the start of the run.
    """

    def __init__(self, names: Sequence[str], horizon: int, before: float = 1.0) -> None:
        self.horizon, self._before = horizon, before
        self._scalars = {name: _SCALARS[name] for name in names}
        self.position, self.previous = 0, -1
        self.episode_cost, self.previous_cost = 0.0, self._before
        self._recent = deque([self._before] * RECENT, RECENT)

    @property
    def recent_spend(self) -> float:
        """Mean relative cost of the last 16 steps of any episode; steps before the run cost `before`."""
        return sum(self._recent) / RECENT

    def at(self, step: int, observation: StepObservation) -> dict[str, float]:
        """Returns the scalars before decode step `step` of the run. A new episode begins every `horizon` steps."""
        self.position = step % self.horizon
        if self.position == 0:
            self.previous, self.episode_cost = -1, 0.0
        return {name: scalar(self, observation) for name, scalar in self._scalars.items()}

    def record(self, action: int, relative_cost: float) -> None:
        """Records a finished step.

        Args:
            action: index of the step's action in the policy's list; -1 if the list lacks it.
            relative_cost: cost of the step and the policy, as a share of a dense step's cost.
        """
        self.previous = action
        self.episode_cost += relative_cost
        self.previous_cost = relative_cost
        self._recent.append(relative_cost)


def _spend_deviation(inputs: PolicyInputs, observation: StepObservation) -> float:
    return inputs.episode_cost / inputs.position - observation.budget if inputs.position else 0.0


_SCALARS: dict[str, Callable[[PolicyInputs, StepObservation], float]] = {
    "step_fraction": lambda inputs, observation: inputs.position / inputs.horizon,
    "budget": lambda inputs, observation: observation.budget,
    "spend_deviation": _spend_deviation,
    "entropy": lambda inputs, observation: observation.distribution.entropy,
    "top_probability": lambda inputs, observation: observation.distribution.top_probability,
    "surprise": lambda inputs, observation: -observation.distribution.log_probability(observation.token),
    "log_context": lambda inputs, observation: math.log2(max(observation.context, 1) / 16),
    "margin": lambda inputs, observation: observation.distribution.margin,
    "previous_cost": lambda inputs, observation: inputs.previous_cost,
    "recent_spend": lambda inputs, observation: inputs.recent_spend,
}

KNOWN_SCALARS = tuple(_SCALARS)
"""Scalars that a policy may ask for (docs/reference/bundle-details.md section 5)."""
