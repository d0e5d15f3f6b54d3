"""Checks of arguments that both `SolModel` and `NativeModel` take."""

from __future__ import annotations

from typing import Any

import numpy as np

from sol_rt.errors import UsageError, brief


def as_switch(name: str, value: Any) -> bool:
    """The value of an argument that is on or off. Raises UsageError for another type."""
    if not isinstance(value, (bool, np.bool_)):
        raise UsageError(f"{name}: got {brief(value)}, expected True or False")
    return bool(value)
