"""Programs that tests run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def find_tool(name: str) -> str | None:
    """Path of a program: of the environment, where pip installs CMake and Ninja, or else of the system."""
    return shutil.which(
        name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    )
