"""Plain reads of memory by the native library: what limits a decode step, because a step reads every weight once."""

from __future__ import annotations

import ctypes
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from sol_rt.errors import SolError
from sol_rt.ops import HOW_TO_INSTALL, library_path


def read_bytes(data: np.ndarray) -> int:
    """Reads a contiguous array once. The native library does this without holding Python's global lock.

    Returns the sum of the array's 64-bit words modulo 2^64; an incomplete last word is padded with zeros. Raises
    SolError if the library was not built.
    """
    return int(_native()(data.ctypes.data, data.nbytes))


class PlainReads:
    """Reads an array with several threads, a slice each. A context manager: its end ends the threads.

    Args:
        data: the array, contiguous and of one dimension.
        threads: number of threads, at least 1.
    """

    def __init__(self, data: np.ndarray, threads: int) -> None:
        self.slices = np.array_split(data, threads)
        self.pool = ThreadPoolExecutor(threads)
        self._bytes = data.nbytes

    def __enter__(self) -> PlainReads:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pool.shutdown()

    def gb_per_second(self) -> float:
        """Reads everything once, and returns the rate in 10^9 bytes a second. Raises SolError without the library."""
        start = time.perf_counter()
        list(self.pool.map(read_bytes, self.slices))
        return self._bytes / (time.perf_counter() - start) / 1e9


@functools.cache
def _native() -> Any:
    library = library_path()
    if library is None:
        raise SolError(f"the native operators are not built; {HOW_TO_INSTALL}")
    function = ctypes.CDLL(str(library)).SolOpsReadBytes
    function.restype, function.argtypes = ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_size_t)
    return function
