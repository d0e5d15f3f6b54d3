"""Made-up times of a bundle's actions on this machine, stored where commands look for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost, cpu_device, keep
from sol_rt.budget.cost.model import Line
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig, Variant


def store_costs(bundle: Bundle, milliseconds: Callable[[Variant], float]) -> None:
    """Stores a cost table of the bundle on the CPU, in which a step of a variant takes so long at any context."""
    lines = {key: {1.0: Line(milliseconds(variant), 0.0, 0.0)} for key, variant in bundle.config.variants.items()}
    keep(MeasuredCost(bundle.config, CostTable(bundle.identity, cpu_device(), "2026-01-01", 0.0, lines)))


def save_table(bundle: Bundle, **changes: Any) -> Path:
    """Keeps `table_for` a bundle on this machine's CPU, and returns its path."""
    told = {"bundle": bundle.identity, "device": cpu_device(), **changes}
    return keep(MeasuredCost(bundle.config, table_for(bundle.config, **told)))


def table_for(config: SolConfig, **changes: Any) -> CostTable:
    """A table in which a step's time follows its bytes; `changes` replace fields of the table."""
    lines = {
        key: {
            1.0: Line(variant.weight_bytes / 1e7, 0.001, 0.0),
            0.5: Line(variant.weight_bytes / 1e7, 0.001, 0.002),
            0.1: Line(variant.weight_bytes / 1e7 + 0.1, 0.001, 0.002),
        }
        for key, variant in config.variants.items()
    }
    table = CostTable("b" * 64, "a processor", "now", 0.25, lines)
    return dataclasses.replace(table, **changes)
