"""Runs the actions of a trace again."""

from __future__ import annotations

from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.budget.schedules import PolicyInput, schedule_actions
from sol_rt.bundle.actions import Action
from sol_rt.engine.engine import Engine
from sol_rt.errors import ContextError, UsageError, brief
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

    Raises UsageError if the trace was made with another bundle, has no tokens, or names a token, action or variant that
    the bundle lacks. Raises ContextError if it does not fit the context.
    """
    config, header = engine.bundle.config, trace.header
    if header.config_sha256 != engine.bundle.identity:
        raise UsageError(f"replay: the trace was made with another bundle ({brief(header.bundle)}); name that one")
    if not trace.records:
        raise UsageError("replay: got a trace without tokens, expected one at least; record the run again")
    vocabulary = config.model.vocab_size
    for record in trace.records:
        if record.token >= vocabulary:
            got, expected = f"token {record.token} at step {record.step}", f"0 to {vocabulary - 1}"
            raise UsageError(f"replay: got {got} of the trace, expected {expected}; record the run again")
    needed = len(header.prompt_tokens) + len(trace.records) - 1  # the last token is not processed
    if needed > engine.max_context:
        expected = f"expected at most {engine.max_context}, the model's context"
        raise ContextError(f"replay: got a trace of {needed} tokens, {expected}; open the model with a larger one")
    schedule = ReplaySchedule(trace)
    for action in schedule.actions:
        if action.variant not in config.variants:
            raise UsageError(f"replay: {action.tag} is in the trace, its variant is not in the bundle")
    prompt_action = config.prefill_action(header.prefill)
    budget = 1.0 if header.budget is None else header.budget
    actions = schedule_actions(config, "random")
    controller = Controller(actions, cost, budget, policy_cost=header.schedule == "sol")
    return Decoder(engine, controller, schedule, prompt_action)
