"""Made-up times of a bundle's actions on this machine, stored where commands look for them."""

from __future__ import annotations

from collections.abc import Callable

from sol_rt.budget.cost.bytes_model import Line
from sol_rt.budget.cost.calibration_table import CalibrationTable, calibration_path, device_string
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import Variant
from sol_rt.engine.hardware import usable_cores


def store_calibration(bundle: Bundle, milliseconds: Callable[[Variant], float]) -> None:
    """Stores a calibration of the bundle on the CPU, in which a step of a variant takes so long at any context."""
    machine = ("cpu", usable_cores(), True)
    lines = {key: {1.0: Line(milliseconds(variant), 0.0, 0.0)} for key, variant in bundle.config.variants.items()}
    table = CalibrationTable(bundle.identity, device_string(*machine), "2026-01-01", 0.0, lines)
    table.save(calibration_path(bundle, *machine))
