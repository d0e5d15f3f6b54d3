"""Main memory: of this process, of the machine and of a container."""

from __future__ import annotations

import os
from pathlib import Path

from sol_rt.engine.hardware.control_group import group_folders, read_text

_FILES = (
    ("memory.max", "memory.current", "inactive_file "),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
)
"""Of a control group, version 2 and 1: its limit, what it uses, and what `memory.stat` calls cached pages in it."""


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, in 10^6 bytes; 0 where the system does not report it."""
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
    """Main memory that programs can still get; None where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def available_memory() -> int | None:
    """Main memory that programs can still get, of the machine or the container, whichever is less.

    None where the system reports neither.
    """
    known = [value for value in (_of_machine(), below_limits()) if value is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    free = free_memory_bytes()
    if free is not None:
        return free
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # not every system reports free pages
    except (ValueError, OSError, AttributeError):
        return None


def below_limits(root: Path = Path("/")) -> int | None:
    """Bytes that this process's control group, and the groups above it, may still use; None without a limit.

    Cached pages of files count as free. `root` is where `proc` and `sys` are mounted.
    """
    found = []
    for folder in group_folders("memory", root):
        stat = (read_text(folder / "memory.stat") or "").splitlines()
        for limit, used, cached in _FILES:
            try:
                reclaimable = next((int(line.split()[1]) for line in stat if line.startswith(cached)), 0)
                below = int(read_text(folder / limit) or "") - int(read_text(folder / used) or "") + reclaimable
            except (ValueError, IndexError):  # no such file, or "max"
                continue
            found.append(max(0, below))
    return min(found, default=None)
