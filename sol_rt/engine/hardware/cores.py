"""Number of threads for a decode step: the processors that this process may use and that speed up the step.

A step waits for its slowest thread. So processors that are much slower than the others are left out, and so is what a
container's quota would take away again.
"""

from __future__ import annotations

import os
from pathlib import Path

from sol_rt.engine.hardware.control_group import group_folders, read_text
from sol_rt.errors import UsageError, brief

_MOST_THREADS = 1024
_SLOW = 0.5
"""Processors below this share of the fastest one's capacity are left out."""


def check_threads(threads: int | None) -> None:
    """Raises UsageError for anything but None or a whole number of threads that a pool may have."""
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MOST_THREADS):
        raise UsageError(f"threads: got {brief(threads)}, expected a whole number from 1 to {_MOST_THREADS}")


def allowed_cores() -> frozenset[int]:
    """The numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores(root: Path = Path("/"), allowed: frozenset[int] | None = None) -> int:
    """The number of processors that a step's threads should have, at least 1.

    It counts those of this process's affinity, without the efficient cores of a hybrid processor, and no more than the
    quota of the process's control group.

    Args:
        root: where `proc` and `sys` are mounted.
        allowed: numbers of the processors that may be used; `allowed_cores` by default.
    """
    if allowed is None:
        allowed = allowed_cores()
    cores = len(_fast(root / "sys/devices", allowed))
    quota = _quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def _fast(devices: Path, allowed: frozenset[int]) -> frozenset[int]:
    """The processors of `allowed` that are not much slower than the fastest one."""
    efficient = _listed(devices / "cpu_atom/cpus")  # Intel's hybrid processors
    if efficient and allowed - efficient:
        return allowed - efficient
    capacities = {number: _number(devices / f"system/cpu/cpu{number}/cpu_capacity") for number in allowed}  # Arm's
    known = [capacity for capacity in capacities.values() if capacity is not None]
    if not known:
        return allowed
    least = _SLOW * max(known)
    return frozenset(number for number, capacity in capacities.items() if capacity is None or capacity >= least)


def _quota(root: Path) -> float | None:
    """Processors that the control group of this process, and the groups above it, may use; None without a limit."""
    found = []
    for folder in group_folders("cpu", root):
        newer = (read_text(folder / "cpu.max") or "").split()
        older = [read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        quota, period = newer if len(newer) == 2 else older
        try:
            share = float(quota or "max") / float(period or "0")
        except (ValueError, ZeroDivisionError):  # "max": no limit
            continue
        if share > 0:  # -1 in the older form: no limit
            found.append(share)
    return min(found, default=None)


def _listed(path: Path) -> frozenset[int]:
    """The numbers of a list such as `16-23,30`; none if the file is missing."""
    found: set[int] = set()
    for part in (read_text(path) or "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text is not None and text.isdecimal() else None
