"""`sol`: asks the bundle's policy, and charges its logits for cost so that the budget is held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from sol_rt.budget.controller.base import BaseController
from sol_rt.budget.multiplier import Multiplier
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import PolicySpec
from sol_rt.bundle.policy_inputs import PolicyInputs, StepObservation
from sol_rt.errors import UsageError


class Policy(Protocol):
    """Interface of a policy that `sol` asks. `sol_rt.budget.policy.PolicySession` is the bundle's.

    Attributes:
        spec: its actions, scalars and horizon.
    """

    spec: PolicySpec

    def reset(self) -> None:
        """Forgets the episode."""

    def decide(
        self, hidden: np.ndarray, token: int, scalars: Mapping[str, float], previous_action: int, step: int
    ) -> np.ndarray:
        """Logits over the policy's actions, float32 [A]: see `PolicySession.decide`."""


class SolSchedule:
    """Takes the allowed action with the largest value of logits - multiplier * relative cost.

    The Lagrange multiplier makes these choices come to the target on average (`sol_rt.budget.multiplier`). Under axis
    targets it is 0. If the policy does not know the dense action, that action is added after the policy's own, and
    taken only where no other one is allowed.
    """

    name = "sol"

    def __init__(self, controller: BaseController, policy: Policy) -> None:
        self._controller = controller
        self._policy = policy
        self._begun = False
        self._inputs = self._fresh_inputs()
        # the policy's episodes count from the first of the steps that it saw one after another; the next one to see
        self._first = self._next = 0
        self._multiplier = Multiplier()

    def choose(self, step: PolicyInput) -> Action:
        """The action for this step. Runs the policy, unless the budget allows nothing but dense."""
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        if step.hidden is None:
            raise UsageError("schedule sol: needs the hidden state of the last step")
        if step.step != self._next:  # the run was rewound, or steps went by without the policy
            if step.step > self._next:
                self._inputs = self._fresh_inputs()
            self._first = step.step
        self._next = step.step + 1
        inputs, budget = self._inputs, _budget(controller)
        if not self._begun:  # not when the schedule is made: another run may be using the policy then
            self._policy.reset()
            self._begun = True
        scalars = inputs.at(
            step.step - self._first, StepObservation(step.context, step.token, step.distribution, budget)
        )
        logits = self._policy.decide(step.hidden, step.token, scalars, inputs.previous, inputs.position)
        values = logits.astype(np.float64)
        costs, known = controller.relative_costs(step.context), len(logits)
        target = controller.target(step.context)
        if controller.axis_targets is None:
            values -= self._multiplier.at(values, costs[:known], target) * costs[:known]
        if known < len(costs):
            # the dense action, unknown to the policy
            values = np.append(values, -1e9)
        index = int(values.argmax())
        if not controller.allows(index, step.context):
            index = int(np.where(controller.allowed(step.context), values, -np.inf).argmax())
        cost = float(costs[index])
        inputs.record(index if index < known else -1, cost)
        return controller.actions[index]

    def _fresh_inputs(self) -> PolicyInputs:
        """Inputs that begin a run of the policy: after dense steps, as after the prompt."""
        return PolicyInputs(self._policy.spec.scalars, self._policy.spec.horizon)


def _budget(controller: BaseController) -> float:
    """The budget that the policy gets: this step's. Under a rate or a loss: the budget of the steps so far."""
    if controller.budget is not None:
        return controller.budget
    return 1.0 if controller.requested is None else controller.requested
