"""Packages of the system that tests use and this machine lacks: scripts/install-packages.sh looks for them."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "install-packages.sh"


@functools.cache
def missing_packages(*groups: str) -> tuple[str, ...]:
    """Names of Debian's packages that the native core and the script's `groups` need and this machine lacks.

    Empty where there is no shell to run the script.
    """
    try:
        command = ["sh", str(_SCRIPT), "--list", *groups]
        unfetched = os.environ | {"SOL_RT_FETCH": "OFF"}  # no test downloads anything
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=unfetched)
    except OSError:
        return ()
    return tuple(run.stdout.split())
