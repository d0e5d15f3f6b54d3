"""A caller's own schedule in the native core: the callback that the core asks, and the controller that it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sol_rt.budget.schedules import PolicyInput, Schedule
from sol_rt.bundle.actions import Action
from sol_rt.errors import SolError, UsageError, brief
from sol_rt.generate.native.callbacks import Callbacks
from sol_rt.generate.native.session import distribution_of, floats
from sol_rt.generate.trace import is_name
from sol_rt.native import structs


class Controller:
    """Reports to a schedule what the core's controller allows. A is the number of actions.

    Answers are those of the step that is being chosen; asking about another context is a UsageError.

    Attributes:
        actions: what the schedule chooses from, in the order of every [A] array here.
        dense: the dense action.
    """

    def __init__(self, actions: Sequence[Action], dense: Action) -> None:
        self.actions, self.dense = tuple(actions), dense
        self.choice: structs.Choice | None = None  # of the step that is being chosen

    @property
    def budget(self) -> float | None:
        """The budget that this step holds; None under a rate and axis targets."""
        budget = self._now().budget
        return None if np.isnan(budget) else float(budget)

    @property
    def achieved(self) -> float:
        """Cost of the steps so far / their dense cost."""
        return float(self._now().achieved_budget)

    def relative_costs(self, context: int) -> np.ndarray:
        """Cost of each action in dense steps: float64 [A]."""
        choice = self._at(context)
        return np.array(choice.relative_costs[: choice.num_actions])

    def allowed(self, context: int) -> np.ndarray:
        """Marks the actions that keep the promise, bool [A]. If none does: the actions that miss it least."""
        choice = self._at(context)
        return np.array(choice.allowed[: choice.num_actions], bool)

    def allows(self, index: int, context: int) -> bool:
        """`allowed(context)[index]`."""
        return bool(self.allowed(context)[index])

    def nearest_allowed(self, index: int, context: int) -> int:
        """`index` if that action is allowed, else the allowed action whose cost is nearest to its cost."""
        allowed, costs = self.allowed(context), self.relative_costs(context)
        return index if allowed[index] else int(np.argmin(np.where(allowed, np.abs(costs - costs[index]), np.inf)))

    def floor(self, context: int) -> float:
        """Cost of the cheapest action in dense steps."""
        return float(self.relative_costs(context).min())

    def target(self, context: int) -> float:
        """Cost in dense steps that this step should aim for."""
        return float(self._at(context).target)

    def allowance(self, context: int) -> float:
        """Cost in dense steps that this step may have on average, whatever was spent before."""
        return float(self._at(context).allowance)

    def _now(self) -> structs.Choice:
        if self.choice is None:
            raise UsageError("controller: no step is being chosen; ask it in the schedule's `choose`")
        return self.choice

    def _at(self, context: int) -> structs.Choice:
        if (choice := self._now()).context != context:
            raise UsageError(f"controller: got context {brief(context)}, expected {choice.context}, that of the step")
        return choice


class OwnSchedule(Callbacks):
    """A schedule of the caller's as the core calls it.

    Args:
        make: takes the controller and returns an object with `name` and `choose`.
        controller: the controller that it gets.

    Attributes:
        name: the schedule's name.
        callback: the `sol_choose` to hand over; valid as long as this object.

    Raises UsageError if `make` returns no schedule.
    """

    def __init__(self, make: Any, controller: Controller) -> None:
        super().__init__()
        self._controller, self._checked = controller, False
        self._indices = {action: index for index, action in enumerate(controller.actions)}
        self._schedule = made_schedule(make, controller)
        self.name = self._schedule.name
        self.callback = structs.Choose(lambda _, choice: self.answer(lambda: self._index(choice.contents), -1))

    def _check_actions(self, choice: structs.Choice) -> None:
        """Compares the order of the actions with the core's, at the first step."""
        if self._checked:
            return
        tags = [action.tag for action in self._controller.actions]
        given = [choice.actions[index].decode() for index in range(choice.num_actions)]
        if given != tags:
            raise SolError(f"schedule {self.name}: the core gives the actions {brief(given)}, expected {brief(tags)}")
        self._checked = True

    def _index(self, choice: structs.Choice) -> int:
        logits = floats(choice.logits, choice.vocab_size)
        distribution = distribution_of(choice.distribution.contents, logits)
        # a schedule may keep it; a plan without a model may have none
        hidden = floats(choice.hidden, 1, choice.hidden_size).copy() if choice.hidden else None
        self._check_actions(choice)
        self._controller.choice = choice
        try:
            action = self._schedule.choose(PolicyInput(choice.context, choice.token, hidden, distribution, choice.step))
        finally:
            self._controller.choice = None
        if (index := self._indices.get(action)) is None:
            raise UsageError(f"--schedule: {self.name} chose {brief(action)}, expected one of the controller's actions")
        return index


def made_schedule(make: Callable[[Any], Schedule], controller: object) -> Schedule:
    """Calls a caller's function to make a schedule. Raises UsageError if the result is no schedule."""
    expected = "expected a function that takes the controller and returns an object with `name` and `choose`"
    if isinstance(make, type) and not hasattr(make, "choose"):
        raise UsageError(f"--schedule: got {brief(make)}, {expected}")
    schedule = make(controller)
    name = getattr(schedule, "name", None)
    if not (isinstance(name, str) and callable(getattr(schedule, "choose", None))):
        raise UsageError(f"--schedule: got a function that returns {brief(schedule)}, {expected}")
    if not is_name(name):
        raise UsageError(f"--schedule: got the name {brief(name)}, expected a short text that can be printed")
    return schedule
