"""Programs that tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest


def find_tool(name: str) -> str | None:
    """Path of a program: of the environment, where pip installs CMake and Ninja, or else of the system."""
    return shutil.which(
        name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    )


@cache
def preloaded(name: str) -> Path:
    """Compiles helpers/NAME.c into a library for LD_PRELOAD, once a run. Skips the test where it cannot be built."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip(f"{name}.c needs Linux and a C compiler")
    built = Path(mkdtemp(prefix=f"{name}-")) / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, source, "-ldl"], check=True)
    return built
