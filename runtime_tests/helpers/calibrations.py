"""Made-up times of a bundle's actions on this machine, stored where commands look for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sol_rt.budget.cost.bytes_model import Line
from sol_rt.budget.cost.calibration_table import CalibrationTable, calibration_path, device_string
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig, Variant
from sol_rt.engine.hardware import usable_cores


def store_calibration(bundle: Bundle, milliseconds: Callable[[Variant], float]) -> None:
    """Stores a calibration of the bundle on the CPU, in which a step of a variant takes so long at any context."""
    machine = ("cpu", usable_cores(), True)
    lines = {key: {1.0: Line(milliseconds(variant), 0.0, 0.0)} for key, variant in bundle.config.variants.items()}
    table = CalibrationTable(bundle.identity, device_string(*machine), "2026-01-01", 0.0, lines)
    table.save(calibration_path(bundle, *machine))


def table_for(config: SolConfig, **changes: Any) -> CalibrationTable:
    """A table in which a step's time follows its bytes; `changes` replace fields of the table."""
    lines = {
        key: {
            1.0: Line(variant.weight_bytes / 1e7, 0.001, 0.0),
            0.5: Line(variant.weight_bytes / 1e7, 0.001, 0.002),
            0.1: Line(variant.weight_bytes / 1e7 + 0.1, 0.001, 0.002),
        }
        for key, variant in config.variants.items()
    }
    table = CalibrationTable("b" * 64, device_string("cpu", 2, True), "now", 0.25, lines)
    return dataclasses.replace(table, **changes)
