"""Number of threads for a decode step: the processors that this process may use and that speed up the step."""

from __future__ import annotations

import ctypes
import os

from sol_rt.errors import UsageError, brief
from sol_rt.ops import core_path

_MOST_THREADS = 1024


def check_threads(threads: int | None) -> None:
    """Raises UsageError for anything but None or a whole number of threads that a pool may have."""
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MOST_THREADS):
        raise UsageError(f"threads: got {brief(threads)}, expected a whole number from 1 to {_MOST_THREADS}")


def allowed_cores() -> frozenset[int]:
    """The numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """The number of processors that a step's threads should have, at least 1.

    The core counts those of this process's affinity, without the slow ones of a hybrid processor, and no more than the
    quota of the process's control group.
    """
    path = core_path()
    return len(allowed_cores()) if path is None else int(ctypes.CDLL(str(path)).sol_usable_cores())
