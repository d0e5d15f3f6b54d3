"""Every folder of the packages says what it may import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from helpers.places import ROOT

PACKAGES = [ROOT / name for name in ("sol_rt", "export", "train")]
FOLDERS = [file.parent for package in PACKAGES for file in sorted(package.rglob("__init__.py"))]


@pytest.mark.parametrize(
    "folder",
    [folder for folder in FOLDERS if folder.name != "sol_rt"],
    ids=lambda folder: str(folder.relative_to(ROOT)),
)
def test_a_folder_says_what_it_may_import(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert docstring
    assert "May import:" in docstring
