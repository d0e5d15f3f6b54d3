"""`sol`: asks the bundle's policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from sol_rt.budget.controller import Controller
from sol_rt.budget.multiplier import Multiplier
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import PolicySpec
from sol_rt.bundle.policy_inputs import PolicyInputs, StepObservation
from sol_rt.errors import UsageError


class Policy(Protocol):
    """What `sol` needs of a policy session (policy.py)."""

    spec: PolicySpec

    def reset(self) -> None: ...

    def decide(
        self, hidden: np.ndarray, token: int, scalars: Mapping[str, float], previous_action: int, step: int
    ) -> np.ndarray:
        """Logits over the policy's actions, float32 [A]."""


class SolSchedule:
    """The policy's choice at a multiplier: argmax over allowed actions of logits - multiplier * relative cost
    (multiplier.py)."""

    name = "sol"

    def __init__(self, controller: Controller, policy: Policy) -> None:
        self._controller = controller
        self._policy = policy
        policy.reset()
        self._inputs = PolicyInputs(policy.spec.scalars, policy.spec.horizon)
        self._multiplier = Multiplier()

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        if step.hidden is None:
            raise UsageError("schedule sol: needs the hidden state of the last step")
        inputs, budget = self._inputs, 1.0 if controller.requested is None else controller.requested
        scalars = inputs.at(step.step, StepObservation(step.context, step.token, step.distribution, budget))
        logits = self._policy.decide(step.hidden, step.token, scalars, inputs.previous, inputs.position)
        values = logits.astype(np.float64)
        costs, known = controller.relative_costs(step.context), len(logits)
        target = controller.target(step.context)
        if controller.axis_targets is None:
            values -= self._multiplier.at(values, costs[:known], target) * costs[:known]
        if known < len(costs):
            # a dense action that the policy does not know follows its actions, and is taken only where nothing else is
            # allowed
            values = np.append(values, -1e9)
        index = int(values.argmax())
        if not controller.allows(index, step.context):
            index = int(np.where(controller.allowed(step.context), values, -np.inf).argmax())
        cost = float(costs[index])
        inputs.record(index if index < known else -1, cost)
        return controller.actions[index]
