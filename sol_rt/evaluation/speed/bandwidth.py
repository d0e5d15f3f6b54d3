"""Measures the memory's read bandwidth, which limits a decode step, because a step reads every weight once.

`python -m sol_rt.evaluation.speed.bandwidth THREADS` prints the bandwidth in GB/s.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from sol_rt.engine.hardware.reads import PlainReads
from sol_rt.errors import SolError

BUFFER_BYTES = 512 << 20
"""Size of the buffer that is read: far larger than a last-level cache."""
_MEMORY_SHARE = 4  # at most a quarter of the free memory
_LEAST_BYTES = 1 << 20
_SECONDS = 1.0


def measure(threads: int, size: int = BUFFER_BYTES, seconds: float = _SECONDS) -> float:
    """Measures the rate, in 10^9 bytes per second, at which `threads` threads read `size` bytes, one slice each.

    Returns the best of at least three passes within `seconds`, because other work on the machine can only slow a pass
    down. Raises SolError if the native library was not built.
    """
    buffer = np.empty(size // 8, np.uint64)
    best, passes = 0.0, 0
    with PlainReads(buffer, threads) as reads:
        # write first: the system maps all untouched pages to a single page of zeros
        list(reads.pool.map(lambda part: part.fill(1), reads.slices))
        end = time.perf_counter() + seconds
        while passes < 3 or time.perf_counter() < end:
            best = max(best, reads.gb_per_second())
            passes += 1
    return best


def measure_apart(threads: int) -> float:
    """Runs `measure` in another process, so that its buffer does not add to this process's memory.

    Returns 10^9 bytes per second. Raises SolError if the measurement fails.
    """
    command = [sys.executable, "-m", "sol_rt.evaluation.speed.bandwidth", str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1:] or [f"exit code {run.returncode}"]
        raise SolError(f"read bandwidth not measured: {reason[0]}")
    return float(run.stdout)


def _buffer_size() -> int:
    """`BUFFER_BYTES`, or a quarter of the free memory if that is less, but at least 1 MiB; a multiple of 8."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return BUFFER_BYTES
    return min(BUFFER_BYTES, max(_LEAST_BYTES, free // _MEMORY_SHARE // 8 * 8))


if __name__ == "__main__":
    try:
        print(measure(int(sys.argv[1]), _buffer_size()))
    except SolError as error:
        sys.exit(str(error))
