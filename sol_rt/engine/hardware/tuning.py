"""Settings of the CPU's operators that depend on the processor, and the file that keeps them for this machine.

`$SOL_RT_HOME/tuning.json` has an entry for each processor, number of threads and build of the operators, and beside it
for each model what copies of its matrices gain. No setting changes a result. `budget/cost/tune.py` measures which ones
are best.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import write_errors, write_text
from sol_rt.bundle.bits import is_of_screen
from sol_rt.bundle.config import TensorEntry
from sol_rt.engine.hardware.memory import available_memory
from sol_rt.engine.hardware.processor import processor_name
from sol_rt.errors import brief
from sol_rt.ops import library_name
from sol_rt.store.home import home

FILE = "tuning.json"
FORMAT, FORMAT_VERSION = "sol_rt.tuning", 1
_RECENT_SECONDS = 3600.0
_MOST_AHEAD = 1 << 20
_MOST_MEMBERS = 1024


@dataclass(frozen=True)
class Tuning:
    """Settings of the operators on a processor.

    Attributes:
        cache_level: the cache that memory is asked for into before it is read, 1 or 2.
        row_bytes_ahead: how far ahead of its use a row of weights is asked for, in bytes.
        members: threads of a decode step at most; 0 means all of the pool's.
        copies: whether the layers' 4-bit matrices and the 3-bit one that screens the LM head are copied into the order
            in which a step reads them. The copies are memory of this process, `copied_bytes`, each made at the first
            step that reads it.
    """

    cache_level: int = 2
    row_bytes_ahead: int = 12288
    members: int = 0
    copies: bool = False

    @classmethod
    def read(cls, raw: Any) -> Tuning:
        """Reads settings that were written as JSON. Raises ValueError, TypeError or KeyError for what is none."""
        if not isinstance(raw, dict):
            raise TypeError(f"settings {brief(raw)}")
        given = dict(raw)
        level, ahead, members = (_whole(given.pop(name)) for name in ("cache_level", "row_bytes_ahead", "members"))
        copies = given.pop("copies")
        if given or level not in (1, 2) or ahead > _MOST_AHEAD or members > _MOST_MEMBERS or type(copies) is not bool:
            raise ValueError(f"settings {brief(raw)}")
        return cls(level, ahead, members, copies)

    def __str__(self) -> str:
        threads = f", {self.members} threads a step" if self.members else ""
        ahead = f"{self.row_bytes_ahead / 1024:g} KB ahead"
        copies = ", matrices read from copies" if self.copies else ""
        return f"weights asked for {ahead} into cache level {self.cache_level}{threads}{copies}"


@dataclass(frozen=True)
class Tuned:
    """Settings and rates that were measured on a machine.

    Attributes:
        tuning: the settings that were best.
        gain: how much faster steps are than with `Tuning()`, a factor of at least 1.
        step_gb_per_second: weights and cache that a dense step read, in 10^9 bytes a second.
        plain_gb_per_second: plain reads of the weights between these steps, in the same unit.
        model: name of the model whose steps were timed.
        quick: whether it was measured at a load, in 1.5 to 3 seconds.
        created: date and time, ISO 8601.
        steady: whether the gains agreed from round to round. If not, an entry of `quick` serves for an hour.
    """

    tuning: Tuning
    gain: float
    step_gb_per_second: float
    plain_gb_per_second: float
    model: str
    quick: bool
    created: str
    steady: bool = True

    @property
    def rates(self) -> str:
        """The rate of a dense step, beside that of plain reads at the same time."""
        plain = f"plain reads of the weights at that time: {self.plain_gb_per_second:.1f} GB/s"
        return f"{self.step_gb_per_second:.1f} GB/s; {plain}"

    @property
    def expired(self) -> bool:
        """True for settings measured over an hour ago while other programs ran. Such settings are to be tried again."""
        return self.quick and not self.steady and not is_recent(self.created)


def machine_key(threads: int, library: Path) -> str:
    """Names the processor, the threads and the build of the operators."""
    return f"{processor_name()}, {threads} threads, {library_name(library, 'cpu')}"


def stored(key: str) -> Tuned | None:
    """Returns the measurement stored for a machine; None if there is none, or it is expired or damaged."""
    try:
        found = _read(_entries("machines")[key])
        return None if found.expired else found
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def save(key: str, tuned: Tuned) -> Path:
    """Keeps what was measured, and returns the file's path. Raises WriteError; an older file is then as it was."""
    return _write({**_entries("machines"), key: asdict(tuned)}, _entries("copies"))


def gains_of_copies(key: str) -> dict[str, float]:
    """Speedup of 4-bit steps by copies of a model's matrices, by the model's name; 1 where copies are not used."""
    found = _entries("copies").get(key)
    if not isinstance(found, dict):
        return {}
    known = {model: gain for model, gain in found.items() if type(gain) in (int, float)}
    return {model: float(gain) for model, gain in known.items() if 1 <= gain <= sys.float_info.max}


def save_gain_of_copies(key: str, model: str, gain: float) -> Path:
    """Keeps what copies of a model's matrices gain, and returns the file's path. Raises WriteError."""
    return _write(_entries("machines"), {**_entries("copies"), key: {**gains_of_copies(key), model: gain}})


def _write(machines: dict[str, Any], copies: dict[str, Any]) -> Path:
    path = home() / FILE
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, "machines": machines, "copies": copies}
    write_text(path, json.dumps(document, indent=1) + "\n")
    return path


def copied_bytes(tensors: Mapping[str, TensorEntry]) -> int:
    """Bytes that copies take: of 4-bit bases, scales and zero points, and of the LM head's 3-bit screen."""
    bases = [entry.bytes for name, entry in tensors.items() if entry.dtype == "uint4" and name.endswith(".base")]
    screen = [entry.bytes for name, entry in tensors.items() if is_of_screen(name) and entry.dtype == "uint8"]
    return sum(bases) * 19 // 16 + sum(screen)


def room_for_copies(tensors: Mapping[str, TensorEntry]) -> bool:
    """True if the copies would take a quarter of the free memory at most."""
    free = available_memory()
    return free is not None and 4 * copied_bytes(tensors) <= free


def now() -> str:
    """The time for `Tuned.created`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def is_recent(created: str) -> bool:
    """True if `created`, ISO 8601, is less than an hour ago. Noisy timings are kept that long, then measured again."""
    try:
        age = datetime.now(timezone.utc) - datetime.fromisoformat(created)
    except (ValueError, TypeError):
        return False
    return 0 <= age.total_seconds() <= _RECENT_SECONDS


def _entries(name: str) -> dict[str, Any]:
    """An object of the file; empty if it is not there or damaged."""
    try:
        raw = json.loads((home() / FILE).read_text(encoding="utf-8"))
        if raw["format"] != FORMAT or raw["format_version"] != FORMAT_VERSION or not isinstance(raw[name], dict):
            return {}
        return dict(raw[name])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _read(raw: Any) -> Tuned:
    return Tuned(
        Tuning.read(raw["tuning"]),
        _positive(raw["gain"]),
        _positive(raw["step_gb_per_second"]),
        _positive(raw["plain_gb_per_second"]),
        model=str(raw["model"])[:80],
        quick=raw["quick"] is True,
        created=str(raw["created"])[:40],
        steady=raw["steady"] is True,
    )


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{number} is not a positive number")
    return number


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value} is not a whole number")
    return value
