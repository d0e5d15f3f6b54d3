"""Main memory: of this process, of the machine and of a container."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, in 10^6 bytes; 0 where the system does not tell."""
    try:
        # of this program alone: getrusage also counts the program that started it
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def free_memory_bytes() -> int | None:
    """Main memory that programs can still get; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def available_memory() -> int | None:
    """Main memory that programs can still get, of the machine or the container, whichever is less.

    None where the system tells neither.
    """
    readings = (_of_machine, _of_container)
    known = [value for value in (reading() for reading in readings) if value is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    free = free_memory_bytes()
    if free is not None:
        return free
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # not every system reports free pages
    except (ValueError, OSError, AttributeError):
        return None


def _of_container() -> int | None:
    """Bytes below the limit of the control group, version 2 or 1. Cached file pages count as free."""
    old = _CGROUP / "memory"
    readings = (
        _below_limit(_CGROUP / "memory.max", _CGROUP / "memory.current", _CGROUP / "memory.stat", "inactive_file "),
        _below_limit(
            old / "memory.limit_in_bytes",
            old / "memory.usage_in_bytes",
            old / "memory.stat",
            "total_inactive_file ",
        ),
    )
    return next((reading for reading in readings if reading is not None), None)


def _below_limit(limit: Path, used: Path, stat: Path, key: str) -> int | None:
    try:
        reclaimable = next((int(line.split()[1]) for line in stat.read_text().splitlines() if line.startswith(key)), 0)
        return max(0, int(limit.read_text()) - int(used.read_text()) + reclaimable)
    except (OSError, ValueError):  # no such controller, or "max"
        return None
