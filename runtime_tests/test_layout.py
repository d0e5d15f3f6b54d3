"""The folders of the packages: few entries in each, and a word in each about what it may import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [ROOT / name for name in ("sol_rt", "export", "train", "bindings/c")]
MOST_ENTRIES = 12
_BUILT = {".so", ".pyc"}
_ALWAYS_THERE = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}


def entries(folder: Path) -> list[str]:
    """Entries that a reader chooses from: no built file, and none that every package has."""
    return sorted(e.name for e in folder.iterdir() if e.name not in _ALWAYS_THERE and e.suffix not in _BUILT)


FOLDERS = [
    folder
    for package in PACKAGES
    for folder in (package, *sorted(package.rglob("*")))
    if folder.is_dir() and folder.name != "__pycache__"
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_has_few_entries(folder: Path) -> None:
    assert len(entries(folder)) <= MOST_ENTRIES, entries(folder)


@pytest.mark.parametrize(("package", "most"), [("sol_rt", 12), ("export", 8), ("train", 8)])
def test_few_modules_lie_at_the_top_of_a_package(package: str, most: int) -> None:
    assert len([name for name in entries(ROOT / package) if name.endswith(".py")]) <= most


@pytest.mark.parametrize(
    "folder",
    [folder for folder in FOLDERS if (folder / "__init__.py").exists() and folder.name != "sol_rt"],
    ids=lambda folder: str(folder.relative_to(ROOT)),
)
def test_a_folder_says_what_it_may_import(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert docstring
    assert "May import:" in docstring
