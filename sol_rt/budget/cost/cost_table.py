"""The table of milliseconds measured on this device, its file, and the cost model that reads it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import write_errors, write_text
from sol_rt.budget.cost.model import BytesCost, CostModel, Line
from sol_rt.bundle.actions import density
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.engine.hardware import processor_name
from sol_rt.engine.hardware.tuning import Tuning, is_recent
from sol_rt.errors import SolError, UsageError, WriteError, brief
from sol_rt.ops import library_name, library_path
from sol_rt.read_file import read_bytes
from sol_rt.store.home import costs_dir, file_name

COST_TABLE_FORMAT = "sol_rt.cost_table"
COST_TABLE_VERSION = 1
IN_BYTES = "; costs are bytes"
"""Ends the note of a model that counts bytes where there is a table, or should be."""
_QUICK = ".quick.json"
_LONGEST = 1e9
"""Milliseconds that a step may take; larger numbers would overflow in sums."""


@dataclass(frozen=True)
class CostTable:
    """Milliseconds measured for one bundle on one device.

    Attributes:
        bundle: `Bundle.identity` of the bundle that was measured.
        device: `device_string` of the device that was measured.
        created: date and time, ISO 8601.
        policy_ms: milliseconds of one run of the policy, 0 without one.
        lines: variant key -> KV density -> line in milliseconds.
        quick: whether a first load made the table, at one short context.
        steady: whether the times agreed from round to round. If not, the table serves for an hour.
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
        """Reads what `to_json` wrote. Raises SolError in one line for anything else, a table of another version too."""
        try:
            raw = json.loads(text)
            if raw["format"] != COST_TABLE_FORMAT or raw["format_version"] != COST_TABLE_VERSION:
                raise ValueError(f"format {raw['format']!r} version {raw['format_version']!r}")
            return cls(
                bundle=str(raw["bundle"]),
                device=str(raw["device"]),
                created=str(raw["created"]),
                policy_ms=_milliseconds(raw["policy_ms"]),
                lines={
                    str(key): {
                        density("kv_density", float(kv_density)): _numbers(Line, line)
                        for kv_density, line in row.items()
                    }
                    for key, row in raw["lines"].items()
                },
                quick=raw["quick"] is True,
                steady=raw["steady"] is True,
                tuning=None if raw["tuning"] is None else Tuning.read(raw["tuning"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UsageError) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise SolError(f"cost table: not readable ({problem}); run `sol-rt profile` again") from None

    @property
    def expired(self) -> bool:
        """True if the times scattered, and were taken more than an hour ago or at no known time."""
        return not self.steady and not is_recent(self.created)

    def save(self, path: Path) -> None:
        """Writes the table. Raises WriteError; an older table is then as it was."""
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.to_json())


def _milliseconds(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= _LONGEST:
        raise ValueError(f"{brief(value)} is not a number from 0 to {_LONGEST:g}")
    return number


def _numbers(kind: type[Any], raw: Mapping[str, Any]) -> Any:
    names = [field.name for field in fields(kind)]
    if set(raw) != set(names):
        raise ValueError(f"keys {sorted(raw)} instead of {sorted(names)}")
    return kind(**{name: _milliseconds(raw[name]) for name in names})


class MeasuredCost(CostModel):
    """Milliseconds from a cost table. A KV density that was not measured takes the line of the nearest one that was.

    Args:
        config: the bundle's config.
        table: the table.
        note: as in CostModel.
        path: the file that the table was read from, if there is one.

    Attributes:
        cost_table, path: as given.

    Raises SolError if the table lacks a variant of the bundle, or says that a step takes no time.
    """

    unit = "milliseconds"
    name = "measured"

    def __init__(self, config: SolConfig, table: CostTable, note: str = "", path: Path | None = None) -> None:
        self.cost_table, self.path = table, path
        super().__init__(config, table.to_json(), note)


def device_string(provider: str, threads: int, native: bool, gpu: str = "") -> str:
    """Names everything that measured milliseconds depend on: GPU, processor, threads, provider, ONNX Runtime, kernels.

    Native kernels are named by the hash of their library and, on the CPU, their SIMD target.
    """
    import onnxruntime

    library = library_path(provider) if native else None
    kernels = "ONNX Runtime kernels" if library is None else library_name(library, provider)
    machine = f"{gpu}, {processor_name()}" if gpu else processor_name()
    return f"{machine}, {threads} threads, {provider}, onnxruntime {onnxruntime.__version__}, {kernels}"


def cost_table_path(bundle: Bundle, provider: str, threads: int, native: bool, gpu: str = "") -> Path:
    """Path of the table for this bundle folder and these settings, whether or not the file exists."""
    digest = _settings_digest(bundle.path, provider, native, gpu)
    return costs_dir() / f"{file_name(bundle.config.model.name)}-{provider}-{digest}-{threads}.json"


def _settings_digest(folder: Path, provider: str, native: bool, gpu: str) -> str:
    settings = f"{folder.resolve()} {provider} {native}" + (f" {gpu}" if gpu else "")
    return hashlib.sha256(settings.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def tables_of(folder: Path) -> list[Path]:
    """The tables that were made for the bundle in this folder, on any device, also for a bundle that it held before."""
    found = []
    for path in sorted(costs_dir().glob("*-*-*-*.json")):
        _, provider, digest, threads = path.stem.removesuffix(".quick").rsplit("-", 3)
        gpus = [""]
        try:
            # the device's description begins with the GPU, and names of GPUs may have commas
            device = CostTable.from_json(read_bytes(path).decode("utf-8")).device
            parts = device.partition(f", {threads} threads, ")[0].split(", ")
            gpus += [", ".join(parts[:count]) for count in range(1, len(parts))]
        except (OSError, UnicodeDecodeError, SolError):
            pass
        if digest in {_settings_digest(folder, provider, native, gpu) for native in (True, False) for gpu in gpus}:
            found.append(path)
    return found


def has_table(bundle: Bundle) -> bool:
    """True if there is a table of any device for this very bundle."""
    for path in costs_dir().glob("*.json"):
        try:
            if CostTable.from_json(read_bytes(path).decode("utf-8")).bundle == bundle.identity:
                return True
        except (OSError, UnicodeDecodeError, SolError):
            continue
    return False


def quick_path(path: Path) -> Path:
    """Path of the table that was measured quickly, beside the one of `cost_table_path`."""
    return path.with_suffix(_QUICK)


def _is_quick(path: Path) -> bool:
    return path.name.endswith(_QUICK)


def keep_quick(table: CostTable, path: Path) -> str:
    """Saves a quick table for the next load. Returns a line about that for the user.

    Args:
        table: the table.
        path: `cost_table_path` of its bundle and device. A table that lies there stays.
    """
    try:
        table.save(quick_path(path))
    except WriteError as error:
        return (
            f"measured what each action costs here, but {error.path} cannot be written ({error.reason}); set "
            "SOL_RT_HOME to a folder that can, so that it is kept"
        )
    kept = "measured what each action costs on this machine, once and quickly"
    if not table.steady:
        kept = (
            "measured what each action costs on this machine, quickly; the times varied, so they are measured again "
            "after an hour"
        )
    return f"{kept}; sol-rt profile measures it better"


def load_cost_model(
    bundle: Bundle, provider: str, threads: int, native: bool = True, gpu: str = "", *, quick: bool = True
) -> CostModel:
    """The measured model if this very bundle was measured on this device, else the bytes model.

    A table that is damaged, or was made for another bundle, device or number of threads, is not used. The `note` of the
    returned model then says so.

    Args:
        bundle: the bundle.
        provider: `cpu`, `cuda` or `webgpu`.
        threads: size of the thread pool.
        native: whether native operators run.
        gpu: name of the GPU that computes; empty on the CPU.
        quick: whether a table that was measured quickly counts.
    """
    path = cost_table_path(bundle, provider, threads, native, gpu)
    device = device_string(provider, threads, native, gpu)
    problem = ""
    try:
        return _read(path, bundle, device)
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError, SolError) as error:
        problem = f"{path}: {error}"
    if quick:
        with contextlib.suppress(OSError, UnicodeDecodeError, SolError):  # it is measured again
            return _read(quick_path(path), bundle, device, problem)
    if problem:
        return BytesCost(bundle.config, f"{problem}{IN_BYTES}")
    others = path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.json")
    counts = sorted({other.stem.rpartition("-")[2] for other in others if not _is_quick(other)} - {str(threads)})
    if counts:
        wanted = f"measured for {' and '.join(counts)} threads, not for the {threads} of this run"
        return BytesCost(bundle.config, f"{wanted}{IN_BYTES}")
    # on a processor time follows bytes; on a GPU it may not
    hint = f"not measured on {gpu}{IN_BYTES}: run `sol-rt profile --provider {provider}`" if gpu else ""
    return BytesCost(bundle.config, hint)


def _read(path: Path, bundle: Bundle, device: str, note: str = "") -> MeasuredCost:
    """The model of a table.

    Raises OSError, UnicodeDecodeError, and SolError for a table that does not serve here.
    """
    table = CostTable.from_json(read_bytes(path).decode("utf-8"))
    if table.bundle != bundle.identity:
        raise SolError("cost table: made before the bundle changed; run `sol-rt profile` again")
    if table.device != device:
        raise SolError(f"cost table: made on {table.device[:200]!r}, this is {device!r}; run `sol-rt profile` again")
    if table.expired:
        raise SolError("cost table: its times scattered, and are over an hour old")
    return MeasuredCost(bundle.config, table, note, path)
