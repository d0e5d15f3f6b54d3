"""What a decode step costs: bytes read from memory, or milliseconds measured on this device.

Both models are lines over what a step reads (docs/bundle.md section 4): fixed + per_token * tokens_read + per_page *
pages_scored. The bytes model takes the three coefficients from the bundle, the calibrated one from a table that
`sol-rt calibrate` measured.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sol_rt.bundle.actions import Action, density, hundredths
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.engine.hardware import processor_name
from sol_rt.errors import SolError, UsageError
from sol_rt.ops import library_path
from sol_rt.store.home import calibration_dir

CALIBRATION_FORMAT = "sol_rt.calibration"
CALIBRATION_VERSION = 2
_REWEIGHTINGS = 30
_SMALL_RESIDUAL = 1e-3  # relative: below it residuals count by their square, as noise does


class CostModel(Protocol):
    """Cost of everything a decode loop does. `context` is the number of tokens in the cache before the step."""

    unit: str
    """"bytes" or "milliseconds"."""
    name: str
    """"bytes" or "calibrated"."""
    note: str
    """Why this model is used instead of a better one, in one line; empty where there is nothing to say."""
    dense_action: Action

    def step(self, action: Action, context: int) -> float:
        """Cost of one decode step, without the policy."""

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        """A function contexts, int64 [n] -> `step` of every action at each of them, float64 [n, A]."""

    def dense(self, context: int) -> float:
        """Cost of the dense step: what relative costs are relative to."""

    def policy(self) -> float:
        """Cost of one run of the policy; 0 where the bundle has none."""


@dataclass(frozen=True)
class Line:
    """cost = fixed + per_token * tokens_read + per_page * pages_scored. `error`: root mean square relative residual
    of the fit.
    """

    fixed: float
    per_token: float
    per_page: float
    error: float = 0.0

    def at(self, tokens_read: float, pages_scored: float) -> float:
        return self.fixed + self.per_token * tokens_read + self.per_page * pages_scored


def reads(action: Action, context: int, config: SolConfig) -> tuple[float, float]:
    """(tokens_read, pages_scored): cache entries, and pages whose codes a decode step reads, the mean over layers."""
    kv, layers = config.kv, config.model.num_layers
    old_pages = -(-(context + 1) // kv.page_size) - 1
    pages = action.pages(context, kv.page_size)
    if pages >= old_pages:
        return context + 1, 0
    sparse, dense = layers - len(kv.dense_layers), len(kv.dense_layers)
    tokens = min(context + 1, kv.page_size * (pages + 1) + kv.sinks)
    return (sparse * tokens + dense * (context + 1)) / layers, sparse * old_pages / layers


class _LineCost:
    """A cost model whose actions are lines."""

    unit: str
    name: str

    def __init__(self, config: SolConfig, line: Callable[[Action], Line], note: str) -> None:
        self.dense_action = config.dense
        self.note = note
        self._config = config
        self._line = line
        self._dense_line = line(config.dense)

    def step(self, action: Action, context: int) -> float:
        return self._line(action).at(*reads(action, context, self._config))

    def dense(self, context: int) -> float:
        return self._dense_line.at(context + 1, 0)

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        lines = [self._line(action) for action in actions]
        fixed = np.array([line.fixed for line in lines], np.float64)
        per_token = np.array([line.per_token for line in lines], np.float64)
        per_page = np.array([line.per_page for line in lines], np.float64)
        kept = np.array([hundredths(action.kv_density) for action in actions], np.int64)
        page, sinks, layers = self._config.kv.page_size, self._config.kv.sinks, self._config.model.num_layers
        dense = len(self._config.kv.dense_layers) / layers

        def costs(contexts: np.ndarray) -> np.ndarray:
            held = contexts[:, None] + 1
            old_pages = -(-held // page) - 1
            pages = -(-old_pages * kept // 100)
            sparse = (pages < old_pages) * (1 - dense)
            tokens = held + sparse * (np.minimum(held, page * (pages + 1) + sinks) - held)
            return np.asarray(fixed + per_token * tokens + per_page * (sparse * old_pages))

        return costs


class BytesCost(_LineCost):
    """Bytes of weights and cache that a step reads: right wherever memory bandwidth is the limit, and the same on
    every device.
    """

    unit = "bytes"
    name = "bytes"

    def __init__(self, config: SolConfig, note: str = "") -> None:
        model = config.model
        heads = model.num_layers * model.num_kv_heads
        self._per_token = float(heads * config.kv.token_bytes(model.head_dim))
        self._per_page = float(heads * config.kv.page_size * (model.head_dim // 2 + 4))  # codes and range of a token
        self._variants = config.variants
        self._policy = 0.0 if config.policy is None else float(config.files[config.policy.file].bytes)
        super().__init__(config, self._bytes_line, note)

    def _bytes_line(self, action: Action) -> Line:
        return Line(float(self._variants[action.variant].weight_bytes), self._per_token, self._per_page)

    def policy(self) -> float:
        return self._policy


class FunctionBodyBytes(BytesCost):
    """Bytes that the graphs' function bodies read: they mask channels after reading them, and choosing tokens costs
    what reading fewer spares, so that bits alone spare bytes.
    """

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        most = {
            bits: max(v.channel_density for v in self._variants.values() if v.bits == bits)
            for bits in {a.bits for a in actions}
        }
        return super().table([Action(1.0, most[action.bits], action.bits) for action in actions])


@dataclass(frozen=True)
class CalibrationTable:
    """Milliseconds measured for one bundle on one device.

    Attributes:
        bundle: `Bundle.identity` of the bundle that was measured.
        device: `device_string` of the device that was measured.
        created: date and time, ISO 8601.
        policy_ms: milliseconds of one run of the policy, 0 without one.
        lines: variant key -> KV density -> line in milliseconds.
    """

    bundle: str
    device: str
    created: str
    policy_ms: float
    lines: dict[str, dict[float, Line]]

    def to_json(self) -> str:
        lines = {
            key: {str(kv_density): asdict(line) for kv_density, line in row.items()} for key, row in self.lines.items()
        }
        document = {"format": CALIBRATION_FORMAT, "format_version": CALIBRATION_VERSION, **asdict(self), "lines": lines}
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CalibrationTable:
        """Raises SolError in one line for anything but a table that this version writes."""
        try:
            raw = json.loads(text)
            if raw["format"] != CALIBRATION_FORMAT or raw["format_version"] != CALIBRATION_VERSION:
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
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise SolError(f"calibration table: not readable ({problem}); run `sol-rt calibrate` again") from None

    def save(self, path: Path) -> None:
        """Writes the file aside, then renames it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_text(self.to_json(), encoding="utf-8")
        aside.replace(path)


def _milliseconds(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{value!r} is not a finite number from 0")
    return number


def _numbers(kind: type[Any], raw: Mapping[str, Any]) -> Any:
    names = [field.name for field in fields(kind)]
    if set(raw) != set(names):
        raise ValueError(f"keys {sorted(raw)} instead of {sorted(names)}")
    return kind(**{name: _milliseconds(raw[name]) for name in names})


class CalibratedCost(_LineCost):
    """Milliseconds from a calibration table. A KV density that was not measured takes the line of the nearest one that
    was.
    """

    unit = "milliseconds"
    name = "calibrated"

    def __init__(self, config: SolConfig, table: CalibrationTable, note: str = "") -> None:
        """Raises SolError where the table lacks a variant of the bundle or makes its dense step free."""
        for key in config.variants:
            if not table.lines.get(key):
                raise SolError(f"calibration table: no variant {key}; run `sol-rt calibrate` again")
        self.calibration = table
        super().__init__(config, self._measured_line, note)
        if not self.dense(0) > 0:
            raise SolError("calibration table: the dense step takes no time; run `sol-rt calibrate` again")

    def _measured_line(self, action: Action) -> Line:
        row = self.calibration.lines[action.variant]
        # a step that scores pages is another computation than one that reads all of them
        alike = [kv_density for kv_density in row if (kv_density == 1.0) == (action.kv_density == 1.0)] or list(row)
        asked = hundredths(action.kv_density)
        return row[min(alike, key=lambda kv_density: (abs(hundredths(kv_density) - asked), kv_density))]

    def policy(self) -> float:
        return self.calibration.policy_ms


def fit_line(samples: Sequence[tuple[float, float, float]]) -> Line:
    """Fits (tokens_read, pages_scored, milliseconds) samples: no coefficient is negative, and the sum of the relative
    residuals' sizes is least, so that a few samples that something else disturbed don't move the line.

    Raises SolError where there is no sample or a time is not positive.
    """
    fixed, per_token, per_page, error = _fit([(1.0, tokens, pages, ms) for tokens, pages, ms in samples])
    return Line(fixed, per_token, per_page, error)


def _fit(rows: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    data = np.array(rows, np.float64).reshape(-1, 4)
    times = data[:, 3]
    if not len(data) or not (np.isfinite(data).all() and (times > 0).all()):
        raise SolError("calibration: no usable timing; run `sol-rt calibrate` again on an idle machine")
    features = data[:, :3] / times[:, None]
    best, least = np.array([float(np.median(times)), 0.0, 0.0]), math.inf
    # three coefficients: trying every set of non-zero ones finds the non-negative optimum exactly
    for columns in itertools.chain.from_iterable(itertools.combinations(range(3), size) for size in (1, 2, 3)):
        part = _least_absolute(features[:, columns])
        if (part < 0).any():
            continue
        found = np.zeros(3)
        found[list(columns)] = part
        size = float(np.abs(features @ found - 1.0).sum())
        if size < least - 1e-12:
            best, least = found, size
    fixed, first, second = best.tolist()
    return fixed, first, second, float(np.sqrt(np.mean((features @ best - 1.0) ** 2)))


def _least_absolute(features: np.ndarray) -> np.ndarray:
    """[n] that makes the sum of |features [samples, n] @ it - 1| least, by reweighted least squares."""
    weights = np.ones(len(features))
    for _ in range(_REWEIGHTINGS):
        found, *_ = np.linalg.lstsq(features * weights[:, None], weights, rcond=None)
        weights = 1 / np.sqrt(np.maximum(np.abs(features @ found - 1.0), _SMALL_RESIDUAL))
    return np.asarray(found)


def device_string(provider: str, threads: int, native: bool, gpu: str = "") -> str:
    """Names what a table's milliseconds hold for: GPU, processor, threads, provider, ONNX Runtime, kernels.

    Native kernels are told by the library's hash and, on the CPU, their SIMD target.
    """
    import onnxruntime

    library = library_path(provider) if native else None
    kernels = "ONNX Runtime kernels" if library is None else _library_name(library, provider)
    machine = f"{gpu}, {processor_name()}" if gpu else processor_name()
    return f"{machine}, {threads} threads, {provider}, onnxruntime {onnxruntime.__version__}, {kernels}"


def _library_name(library: Path, provider: str) -> str:
    digest = hashlib.sha256(library.read_bytes()).hexdigest()[:12]
    if provider != "cpu":
        return f"native kernels {digest}"
    target = ctypes.CDLL(str(library)).SolOpsTarget
    target.restype = ctypes.c_char_p
    return f"native kernels {digest} ({target().decode()})"


def calibration_path(bundle: Bundle, provider: str, threads: int, native: bool, gpu: str = "") -> Path:
    """Where the table of this bundle folder and these settings lies, whether or not it exists."""
    settings = f"{bundle.path.resolve()} {provider} {native}" + (f" {gpu}" if gpu else "")
    digest = hashlib.sha256(settings.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in bundle.config.model.name)[:80] or "model"
    return calibration_dir() / f"{name}-{provider}-{digest}-{threads}.json"


def has_table(bundle: Bundle) -> bool:
    """Whether any table was made for this very bundle, whatever the device."""
    for path in calibration_dir().glob("*.json"):
        try:
            if CalibrationTable.from_json(path.read_text(encoding="utf-8")).bundle == bundle.identity:
                return True
        except (OSError, UnicodeDecodeError, SolError):
            continue
    return False


def load_cost_model(bundle: Bundle, provider: str, threads: int, native: bool = True, gpu: str = "") -> CostModel:
    """The calibrated model where a table of this very bundle and device exists, else the bytes model.

    `gpu` is the name of the GPU that computes, empty on the CPU.
    A table that is damaged, of another bundle, of another device or of another number of threads is not used; `note` of
    the returned model says so.
    """
    path = calibration_path(bundle, provider, threads, native, gpu)
    try:
        table = CalibrationTable.from_json(path.read_text(encoding="utf-8"))
        if table.bundle != bundle.identity:
            raise SolError("calibration table: made before the bundle changed; run `sol-rt calibrate` again")
        device = device_string(provider, threads, native, gpu)
        if table.device != device:
            raise SolError(
                f"calibration table: made on {table.device!r}, this is {device!r}; run `sol-rt calibrate` again"
            )
        return CalibratedCost(bundle.config, table)
    except FileNotFoundError:
        others = path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.json")
        counts = sorted(other.stem.rpartition("-")[2] for other in others)
        if counts:
            wanted = f"calibrated for {' and '.join(counts)} threads, not for the {threads} of this run"
            return BytesCost(bundle.config, f"{wanted}; costs are bytes")
        # a processor's kernels spare what the bytes say; a GPU's may not
        hint = f"not calibrated on {gpu}; costs are bytes: run `sol-rt calibrate --provider {provider}`" if gpu else ""
        return BytesCost(bundle.config, hint)
    except (OSError, UnicodeDecodeError) as error:
        return BytesCost(bundle.config, f"{path}: {error}; costs are bytes")
    except SolError as error:
        return BytesCost(bundle.config, f"{path}: {error}; costs are bytes")
