"""Writes what a benchmark found to a file. Tables are made there, and go into the pages of docs/results by hand."""

from __future__ import annotations

from pathlib import Path

from sol_rt.atomic_write import write_text

FOLDER = Path("build/results")
"""Default folder of pages, below the working directory."""


def write_page(path: Path, text: str) -> None:
    """Writes text as UTF-8, and makes the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
