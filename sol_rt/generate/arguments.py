"""Checks of arguments of `SolModel`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import UsageError, brief
from sol_rt.store.home import find_bundle


def as_switch(name: str, value: Any) -> bool:
    """The value of an argument that is on or off. Raises UsageError for another type."""
    if not isinstance(value, (bool, np.bool_)):
        raise UsageError(f"{name}: got {brief(value)}, expected True or False")
    return bool(value)


def opened_bundle(path: Any, verify: Any) -> Bundle:
    """The bundle that a caller gave: opened already, a folder, or the name of one under the home folder.

    Raises UsageError for another type, and for a bundle that is not there; BundleError as `Bundle.open` does.
    """
    verify = as_switch("verify", verify)
    if isinstance(path, Bundle):
        return path
    if not isinstance(path, (str, os.PathLike)):
        raise UsageError(f"model: got {brief(path)}, expected a bundle folder or the name of a bundle")
    return Bundle.open(find_bundle(os.fsdecode(path)), verify=verify)
