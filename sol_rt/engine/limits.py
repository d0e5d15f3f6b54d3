"""Checks of what a caller asks of an engine, the same for both cores. Imports nothing that takes long to load."""

from __future__ import annotations

from sol_rt.bundle.config import ModelDims
from sol_rt.errors import UsageError, brief

_MOST_THREADS = 1024


def check_threads(threads: int | None) -> None:
    """Raises UsageError for anything but None or a whole number of threads that a pool may have."""
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MOST_THREADS):
        raise UsageError(f"threads: got {brief(threads)}, expected a whole number from 1 to {_MOST_THREADS}")


def context_limit(model: ModelDims, wanted: int | None) -> int:
    """Tokens that the cache may hold: `wanted`, at most what the model takes. Raises UsageError for another type."""
    if wanted is not None and (type(wanted) is not int or wanted < 1):
        raise UsageError(f"context size: got {brief(wanted)}, expected 1 or more tokens")
    return min(model.max_context, wanted or model.max_context)
