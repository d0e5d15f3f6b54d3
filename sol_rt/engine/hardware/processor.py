"""The processor of this machine: its name, and the mask of what operators may use of it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from sol_rt.errors import UsageError, brief

_MASK = re.compile("0[0-7]*|[1-9][0-9]*|0x[0-9a-f]+", re.IGNORECASE)


def release(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version: (1, 24, 4) for "1.24.4.dev1+cu13"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def is_older(version: str, other: str) -> bool:
    """True if `version` comes before `other`."""
    return release(version) < release(other)


def processor_name() -> str:
    """The processor's model, as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def check_simd_targets() -> None:
    """Raises UsageError for a `SOL_RT_SIMD_TARGETS` that the operators, which take it as C's `strtoll`, cannot read."""
    mask = os.environ.get("SOL_RT_SIMD_TARGETS", "")
    if not mask:
        return
    if not _MASK.fullmatch(mask) or len(mask) > 30 or int(re.sub("^0(?=[0-7])", "0o", mask), 0) >= 1 << 63:
        raise UsageError(
            f"SOL_RT_SIMD_TARGETS: got {brief(mask)}, expected a number from 0 to 2^63 - 1, such as 2560 or 0xA00; "
            "unset it, or see docs/reference/cli.md"
        )
