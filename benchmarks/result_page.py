"""Writes what a benchmark found to a file. Tables are made there, and go into the pages of docs/results by hand."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path("build/results")
"""Default folder of pages, below the working directory."""


def write_page(path: Path, text: str) -> None:
    """Writes text as UTF-8, and makes the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
