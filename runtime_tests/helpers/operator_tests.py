"""The tests of the CPU's operators as modules of their own, for other libraries to pass."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from helpers.places import TESTS


def copy_of(name: str, prefix: str) -> ModuleType:
    """A fresh module of the test file `name`, called `prefix`_`name`, whose globals may be replaced."""
    spec = importlib.util.spec_from_file_location(f"{prefix}_{name}", TESTS / "ops" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
