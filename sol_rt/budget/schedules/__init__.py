"""Schedules: who picks the action of each decode step. One file for each schedule.

May import: sol_rt.budget and what it may import.
"""

from sol_rt.budget.schedules.default import default_schedule, policy_budgets
from sol_rt.budget.schedules.hull import measured_hull
from sol_rt.budget.schedules.make import make_schedule
from sol_rt.budget.schedules.policy import Policy
from sol_rt.budget.schedules.schedule import (
    NAMES,
    PolicyInput,
    Schedule,
    is_constant,
    schedule_actions,
)

__all__ = [
    "NAMES",
    "Policy",
    "PolicyInput",
    "Schedule",
    "default_schedule",
    "is_constant",
    "make_schedule",
    "measured_hull",
    "policy_budgets",
    "schedule_actions",
]
