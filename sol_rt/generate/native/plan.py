"""`Plan`: the actions of a run without a model, as the native core's controllers and schedules pick them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from ctypes import byref, c_void_p, pointer, sizeof
from typing import Any, NamedTuple, Protocol

import numpy as np

from sol_rt.budget.cost.model import CostModel
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.generate.native.callbacks import Callbacks, raising_of
from sol_rt.generate.native.options import Options
from sol_rt.generate.native.session import floats
from sol_rt.generate.native.turns import Turns
from sol_rt.native import structs
from sol_rt.native.library import c_strings, core


class Asked(NamedTuple):
    """Inputs of a policy. Arrays are valid during the call.

    Attributes:
        hidden: float32 [1, hidden] of the step that produced `token`; [1, 0] if the plan was not given it.
        token: the token about to be processed.
        scalars: float32 [number of scalars], in the order of the config's policy.
        previous_action: place among the policy's actions, -1 at the start of an episode.
        step: position within the episode, 0 to horizon - 1.
        fresh: True at the first call: the episodes before are to be forgotten.
    """

    hidden: np.ndarray
    token: int
    scalars: np.ndarray
    previous_action: int
    step: int
    fresh: bool


class Policy(Protocol):
    """A policy that `sol` asks in place of the bundle's."""

    def __call__(self, asked: Asked) -> np.ndarray:
        """Logits over the policy's actions, float32 [A]."""


class Taken(NamedTuple):
    """A planned step.

    Attributes:
        action: its action.
        cost: in the cost model's unit, the policy's run included.
        relative_cost: the same in dense steps.
    """

    action: Action
    cost: float
    relative_cost: float


class Plan:
    """A controller and a schedule, taken through the steps of one run.

    Args:
        cost: the cost model, with the bundle's config.
        dial: the request.
        actions: what to choose among, the dense action with them; None for the schedule's own.
        policy: the policy of the schedule `sol`; its actions and scalars are those of the config.

    Attributes:
        achieved: cost of the steps so far / their dense cost; 1 before the first step.
        requested: the budget asked for. Where it changed, and under a rate or a loss: what the steps so far were
            allowed; under axis targets, what they came to.
        floored: True if, at some step so far, even the cheapest action cost more than was asked for.
        steps: steps so far.

    Raises UsageError for a dial that contradicts itself, or that this bundle or device cannot hold.
    """

    def __init__(
        self, cost: CostModel, dial: Dial, actions: Sequence[Action] | None = None, policy: Policy | None = None
    ) -> None:
        self._options = Options(cost, dial, actions)
        self._policy = None if policy is None else _Policy(policy, cost.config.policy)
        self._turns = Turns()
        given = structs.PlanOptions(size=sizeof(structs.PlanOptions))
        given.options = pointer(self._options.struct)
        if actions is not None:
            given.actions, given.num_actions = c_strings(action.tag for action in actions), len(actions)
        if self._policy is not None:
            given.decide = self._policy.callback
        self._handle, self._step = c_void_p(), structs.Step(size=sizeof(structs.Step))
        core().sol_plan_create(cost.handle, byref(given), byref(self._handle))
        weakref.finalize(self, core().sol_plan_release, self._handle).atexit = False
        self.achieved, self.requested, self.floored, self.steps = 1.0, dial.budget, False, 0

    def step(
        self, context: int, token: int = 0, *, hidden: np.ndarray | None = None, logits: np.ndarray | None = None
    ) -> Taken:
        """Chooses the action of the next step, and books its cost.

        Args:
            context: tokens in the cache before the step.
            token: the token about to be processed.
            hidden: float32 [1, hidden] of the step before; handed on to the policy.
            logits: float32 [vocab], from which the token was picked; None if not known.
        """
        seen = structs.PlanSeen(sizeof(structs.PlanSeen), token, self.steps, context)
        kept = [None if given is None else np.ascontiguousarray(given, np.float32) for given in (hidden, logits)]
        if kept[0] is not None:
            seen.hidden, seen.hidden_size = kept[0].ctypes.data, kept[0].size
        if kept[1] is not None:
            seen.logits, seen.num_logits = kept[1].ctypes.data, kept[1].size
        own = self._options.own
        with raising_of(own, self._turns), raising_of(self._policy, self._turns):
            core().sol_plan_step(self._handle, byref(seen), byref(self._step))
        step = self._step
        self.achieved, self.requested, self.floored = step.achieved_budget, step.requested_budget, bool(step.floored)
        self.steps += 1
        return Taken(Action.parse(step.action.decode()), step.cost, step.relative_cost)

    def set_budget(self, budget: float) -> None:
        """Holds another budget from the next step on. Raises UsageError for a value out of range."""
        core().sol_plan_set_budget(self._handle, budget)

    def set_tokens_per_second(self, rate: float) -> None:
        """Holds a rate from the next step on. Raises UsageError for a bad one, and without measured costs."""
        core().sol_plan_set_tokens_per_second(self._handle, rate)


class _Policy(Callbacks):
    """A policy of the caller's as the core calls it."""

    def __init__(self, decide: Policy, spec: Any) -> None:
        super().__init__()
        count = 0 if spec is None else len(spec.actions)

        def answer(inputs: structs.PolicyInputs, logits: Any) -> int:
            hidden = floats(inputs.hidden, 1, inputs.hidden_size) if inputs.hidden else np.empty((1, 0), np.float32)
            scalars = floats(inputs.scalars, inputs.num_scalars)
            asked = Asked(hidden, inputs.token, scalars, inputs.previous_action, inputs.step, bool(inputs.fresh))
            floats(logits, count)[:] = decide(asked)
            return 0

        self.callback = structs.Decide(
            lambda _, inputs, logits: self.answer(lambda: answer(inputs.contents, logits), -1)
        )
