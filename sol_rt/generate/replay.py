"""Runs the actions of a trace again."""

from __future__ import annotations

from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.budget.schedules import PolicyInput, schedule_actions
from sol_rt.bundle.actions import Action
from sol_rt.engine.engine import Engine
from sol_rt.errors import UsageError
from sol_rt.generate.loop import Decoder
from sol_rt.generate.trace import Trace


class ReplaySchedule:
    """Takes the recorded actions, step by step."""

    name = "replay"

    def __init__(self, trace: Trace) -> None:
        self.actions = [Action.parse(record.action) for record in trace.records if record.action is not None]

    def choose(self, step: PolicyInput) -> Action:
        """The action that the trace has at this step."""
        return self.actions[step.step]


def replay_decoder(engine: Engine, cost: CostModel, trace: Trace) -> Decoder:
    """A run of the trace's actions, with the trace's budget for the account.

    Raises UsageError if the trace was made with another bundle, or has an action that the bundle lacks.
    """
    config, header = engine.bundle.config, trace.header
    if header.config_sha256 != engine.bundle.identity:
        raise UsageError(f"replay: the trace was made with another bundle ({header.bundle}); name that one")
    schedule = ReplaySchedule(trace)
    for action in schedule.actions:
        if action.variant not in config.variants:
            raise UsageError(f"replay: {action.tag} is in the trace, its variant is not in the bundle")
    budget = 1.0 if header.budget is None else header.budget
    actions = schedule_actions(config, "random")
    controller = Controller(actions, cost, budget, policy_cost=header.schedule == "sol")
    return Decoder(engine, controller, schedule)
