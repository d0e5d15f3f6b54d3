"""Makes a schedule of the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sol_rt.budget.schedules import Schedule
from sol_rt.errors import UsageError, brief
from sol_rt.generate.trace import is_name


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
