"""Runs a program on a disk that is full from its n-th change on, by a small library in C that it preloads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

_SOURCE = Path(__file__).with_name("full_disk.c")


@cache
def library() -> Path:
    """The library, compiled once a run. Skips the test where it cannot be built."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("a full disk is simulated on Linux with a C compiler")
    built = Path(mkdtemp(prefix="full-disk-")) / "full_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, _SOURCE, "-ldl"], check=True)
    return built


def environment(folder: Path, changes: int) -> dict[str, str]:
    """The environment of a program for which the disk of `folder` takes only so many more changes."""
    return {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "FULL_DISK_FOLDER": str(folder.resolve()),
        "FULL_DISK_AFTER": str(changes),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(argv: Sequence[str], folder: Path, changes: int, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end. Its output is text; `settings` go to subprocess.run."""
    settings["env"] = {**environment(folder, changes), **settings.get("env", {})}
    return subprocess.run([*argv], capture_output=True, text=True, check=False, timeout=120, **settings)
