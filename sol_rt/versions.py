"""Versions of installed packages, compared as numbers."""

from __future__ import annotations

import re


def release(version: str) -> tuple[int, ...]:
    """The numbers a version begins with: (1, 24, 4) of "1.24.4.dev1+cu13"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()
