"""Runs a program on a disk that is full from its n-th change on, by a small library in C that it preloads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .tools import preloaded


def environment(folder: Path, changes: int) -> dict[str, str]:
    """The environment of a program for which the disk of `folder` takes only so many more changes."""
    return {
        **os.environ,
        "LD_PRELOAD": str(preloaded("full_disk")),
        "FULL_DISK_FOLDER": str(folder.resolve()),
        "FULL_DISK_AFTER": str(changes),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(argv: Sequence[str], folder: Path, changes: int, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end. Its output is text; `settings` go to subprocess.run."""
    settings["env"] = {**environment(folder, changes), **settings.get("env", {})}
    return subprocess.run([*argv], capture_output=True, text=True, check=False, timeout=120, **settings)
