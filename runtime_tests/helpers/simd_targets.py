"""Running tests, or any program, with the native library held to one SIMD target."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence

X86_TARGETS = {"SSE4": 1 << 11, "AVX2": 1 << 9, "AVX2_VNNI": 1 << 9 | 1 << 10, "AVX3": 1 << 8, "AVX3_DL": 1 << 7}
"""Names and masks for SOL_RT_SIMD_TARGETS, from the least to the best. AVX2_VNNI is ours, the others are Highway's."""
_IS_ARM = platform.machine().lower() in ("aarch64", "arm64")
MASKS = (1 << 26, 1 << 28, 1 << 29) if _IS_ARM else tuple(X86_TARGETS.values())
"""Of all targets that the library may have on this kind of processor; one that it lacks runs the baseline."""


def with_targets(command: Sequence[str], mask: int) -> subprocess.CompletedProcess[str]:
    """Runs `command` with the library held to `mask`; a Python program finds the modules that this process finds."""
    environment = os.environ | {"SOL_RT_SIMD_TARGETS": str(mask), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def run_tests(file: str, select: str, mask: int) -> subprocess.CompletedProcess[str]:
    """Runs the tests of a file that pytest's `-k` selects, in a process of their own."""
    return with_targets([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", select], mask)
