"""Compilation of loops by numba. The loops run without Python's global lock, so threads can share the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# A product and a sum may become one operation, but sums keep their order: results do not depend on the SIMD width.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function at its first call. Machine code is kept for later processes where a folder can be written:

    beside the function's file, else in the user's cache folder, or in the one that NUMBA_CACHE_DIR names.
    """
    return _compiled(function, _OPTIONS)


def compiled_exactly(function: Callable[..., Any]) -> Any:
    """Compiles like `compiled`, but every operation rounds by itself, as in numpy."""
    return _compiled(function, {"error_model": "numpy"})


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # numba found no such folder
        return numba.njit(nogil=True, **options)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compiles a function as a part of those that call it."""
    return numba.njit(forceinline=True, **_OPTIONS)(function)


def inlined_exactly(function: Callable[..., Any]) -> Any:
    """Compiles a function as a part of those that `compiled_exactly` compiles."""
    return numba.njit(forceinline=True, error_model="numpy")(function)
