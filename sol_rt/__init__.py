"""sol_rt: an inference runtime whose compute budget is a dial.

    from sol_rt import SolModel
    model = SolModel.from_pretrained("smollm2-135m")
    for step in model.stream("Once upon a time", budget=0.4, max_new_tokens=64):
        print(step.text, end="", flush=True)

Names are imported when first used: `import sol_rt` alone loads neither ONNX Runtime nor a tokenizer.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sol_rt.budget.schedules import PolicyInput, Schedule
    from sol_rt.bundle.actions import Action
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.engine.step import StepOutput
    from sol_rt.errors import (
        BundleError,
        BusyError,
        ContextError,
        DeviceError,
        NumericError,
        ProviderError,
        QualityWarning,
        SolError,
        UsageError,
    )
    from sol_rt.generate.generation_config import GenerationConfig
    from sol_rt.generate.grammar import Grammar
    from sol_rt.generate.model import SolModel
    from sol_rt.generate.native.engine import Engine
    from sol_rt.generate.native.own_schedule import Controller
    from sol_rt.generate.native.session import Session
    from sol_rt.generate.results import GeneratedToken, Generation, Scores

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it once, when it is imported

__version__ = "0.1.0"  # the build back end and the exporter read the version from here

_HOMES = {
    "Action": "bundle.actions",
    "Bundle": "bundle.bundle",
    "BundleError": "errors",
    "BusyError": "errors",
    "ContextError": "errors",
    "Controller": "generate.native.own_schedule",
    "DeviceError": "errors",
    "Engine": "generate.native.engine",
    "GeneratedToken": "generate.results",
    "Generation": "generate.results",
    "GenerationConfig": "generate.generation_config",
    "Grammar": "generate.grammar",
    "NumericError": "errors",
    "PolicyInput": "budget.schedules",
    "ProviderError": "errors",
    "QualityWarning": "errors",
    "Schedule": "budget.schedules",
    "Scores": "generate.results",
    "Session": "generate.native.session",
    "SolError": "errors",
    "SolModel": "generate.model",
    "StepOutput": "engine.step",
    "UsageError": "errors",
}

__all__ = [
    "Action",
    "Bundle",
    "BundleError",
    "BusyError",
    "ContextError",
    "Controller",
    "DeviceError",
    "Engine",
    "GeneratedToken",
    "Generation",
    "GenerationConfig",
    "Grammar",
    "NumericError",
    "PolicyInput",
    "ProviderError",
    "QualityWarning",
    "Schedule",
    "Scores",
    "Session",
    "SolError",
    "SolModel",
    "StepOutput",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sol_rt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sol_rt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
