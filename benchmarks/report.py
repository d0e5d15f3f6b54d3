"""Names the machine, sums up repeated measurements, and writes pages: what benchmarks of all rooms share.

Tables are made in a page's file, and go into the pages of docs/results by hand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.atomic_write import write_text
from sol_rt.engine.hardware import processor_name

BENCHMARKS = Path(__file__).resolve().parent
"""Folder that a benchmark runs under Python to start itself again in another process."""
FOLDER = Path("build/results")
"""Default folder of pages, below the working directory."""


def machine() -> str:
    """The processor by name, family and model: virtual machines often hide what the name would say."""
    facts = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    known = {name.strip(): value.strip() for name, _, value in facts}
    return f"{processor_name()} (family {known.get('cpu family', '?')}, model {known.get('model', '?')})"


def facts(form: str, model: str, file: Path | None, threads: int) -> dict[str, Any]:
    """The head of a JSON document `form`, version 1: model, text, date, machine and threads."""
    return {
        "format": form,
        "format_version": 1,
        "model": model,
        "file": None if file is None else file.name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor_name(),
        "threads": threads,
    }


def quartiles(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    """Median and, in brackets, the quartiles, linearly interpolated."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def rotated(items: Sequence[Any], turn: int) -> list[Any]:
    """All items in their order, beginning with another one in each turn."""
    first = turn % len(items)
    return [*items[first:], *items[:first]]


def write_page(path: Path, text: str) -> None:
    """Writes text as UTF-8, and makes the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
