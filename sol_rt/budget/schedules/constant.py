"""`dense` and `fixed:TAG`: the same action at every step."""

from __future__ import annotations

from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.bundle.actions import Action


class ConstantSchedule:
    """Takes one action at every step, whatever the budget: `fixed:TAG` and `dense`."""

    def __init__(self, name: str, action: Action) -> None:
        self.name = name
        self.action = action

    def choose(self, step: PolicyInput) -> Action:
        """The one action."""
        return self.action
