"""The name of this machine's processor, and versions of what runs on it."""

from __future__ import annotations

import platform
import re
from pathlib import Path


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
