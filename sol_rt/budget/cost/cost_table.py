"""The table of milliseconds measured on this device, which the core finds and keeps, and the cost model of it."""

from __future__ import annotations

import json
from ctypes import byref, c_void_p, sizeof
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sol_rt.budget.cost.model import BytesCost, CostModel, Line
from sol_rt.bundle.bundle import Bundle, sha256
from sol_rt.bundle.config import CONFIG_NAME, SolConfig
from sol_rt.engine.hardware import usable_cores
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.native import structs
from sol_rt.native.library import core, path_bytes, runtime
from sol_rt.store.home import costs_dir

COST_TABLE_FORMAT = "sol_rt.cost_table"
COST_TABLE_VERSION = 1


@dataclass(frozen=True)
class CostTable:
    """Milliseconds measured for one bundle on one device.

    Attributes:
        bundle: `Bundle.identity` of the bundle that was measured.
        device: `Engine.device` of the device that was measured.
        created: date and time, ISO 8601.
        policy_ms: milliseconds of one run of the policy, 0 without one.
        lines: variant key -> KV density -> line in milliseconds.
        quick: whether a first load made the table, at one short context.
        steady: whether the times agreed from round to round. If not, a quick table serves for an hour.
        tuning: settings of the operators that the times were taken under, which the native core applies when it loads
            the table; None where the CPU's native operators did not run.
    """

    bundle: str
    device: str
    created: str
    policy_ms: float
    lines: dict[str, dict[float, Line]]
    quick: bool = False
    steady: bool = True
    tuning: Tuning | None = None

    def to_json(self) -> str:
        """The file's content."""
        lines = {
            key: {str(kv_density): asdict(line) for kv_density, line in row.items()} for key, row in self.lines.items()
        }
        document = {"format": COST_TABLE_FORMAT, "format_version": COST_TABLE_VERSION, **asdict(self), "lines": lines}
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """Reads a table that the core has read already, which checks it."""
        raw: dict[str, Any] = json.loads(text)
        lines = {
            key: {float(kv_density): Line(**line) for kv_density, line in row.items()}
            for key, row in raw["lines"].items()
        }
        tuning = None if raw["tuning"] is None else Tuning(**raw["tuning"])
        told = {name: raw[name] for name in ("bundle", "device", "created", "policy_ms", "quick", "steady")}
        return cls(**told, lines=lines, tuning=tuning)


class MeasuredCost(CostModel):
    """Milliseconds from a cost table. A KV density that was not measured takes the line of the nearest one that was.

    Args:
        config: the bundle's config.
        table: the table.
        note: as in CostModel.
        path: the file that the table was read from, if there is one.

    Attributes:
        cost_table, path: as given.

    Raises BundleError for a table that lacks a variant of the bundle, or has other numbers than times.
    """

    unit = "milliseconds"
    name = "measured"

    def __init__(self, config: SolConfig, table: CostTable, note: str = "", path: Path | None = None) -> None:
        self.cost_table, self.path = table, path
        super().__init__(config, table.to_json(), note)


def cpu_device(threads: int | None = None, *, native: bool = True) -> str:
    """Names what milliseconds depend on where the core computes: processor, threads, ONNX Runtime, kernels.

    `threads` are all usable processors by default.
    """
    name: bytes = core().sol_runtime_device(runtime(threads or usable_cores(), native))
    return name.decode("utf-8", "replace")


def stored_cost(bundle: Bundle, device: str, *, quick: bool = True) -> CostModel:
    """The measured model if this very bundle was measured on this device, else the bytes model.

    Args:
        bundle: the bundle.
        device: `Engine.device`, or `cpu_device`.
        quick: whether a table of a first load counts.
    """
    text, costs = (bundle.path / CONFIG_NAME).read_bytes(), c_void_p()
    core().sol_costs_find(path_bytes(costs_dir()), text, device.encode(), int(quick), byref(costs))
    try:
        return _cost_of(bundle, core().sol_costs_get_table, costs)
    finally:
        core().sol_costs_release(costs)


def loaded_cost(bundle: Bundle, model: c_void_p) -> CostModel:
    """The costs that a `sol_model` of the bundle was loaded with."""
    return _cost_of(bundle, core().sol_model_get_cost_table, model)


def _cost_of(bundle: Bundle, read: Any, handle: c_void_p) -> CostModel:
    found = structs.CostTable(size=sizeof(structs.CostTable))
    read(handle, byref(found))
    text, file, note = (told.decode("utf-8", "surrogateescape") for told in (found.text, found.file, found.note))
    if text:
        return MeasuredCost(bundle.config, CostTable.from_json(text), note, Path(file) if file else None)
    return BytesCost(bundle.config, note)


def keep(cost: MeasuredCost) -> Path:
    """Keeps a table for later loads of its bundle on its device, and returns its path. Raises WriteError."""
    core().sol_costs_keep(cost.handle, path_bytes(costs_dir()))
    found = structs.CostTable(size=sizeof(structs.CostTable))
    core().sol_costs_get_table(cost.handle, byref(found))
    return Path(found.file.decode("utf-8", "surrogateescape"))


def tables_of(folder: Path) -> list[Path]:
    """The tables of the bundle in a folder, on any device; none if it holds no bundle."""
    config = folder / CONFIG_NAME
    return sorted(costs_dir().glob(f"*-{sha256(config)[:8]}-*.json")) if config.is_file() else []
