"""Checks the import contracts in pyproject.toml with import-linter: `python scripts/lint_imports.py FOLDER`.

FOLDER holds the package sol_rt in its installed layout, with export and train inside; `make lint` passes the type
checker's folder. An editable installation maps those folders by an import hook that import-linter cannot follow, so
this program removes the hook first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from importlinter import cli

CONFIG = Path(__file__).resolve().parents[1] / "pyproject.toml"


def main() -> int:
    sys.meta_path = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
    os.chdir(sys.argv[1])  # import-linter searches the current folder first
    return cli.lint_imports(config_filename=str(CONFIG), no_cache=True, no_logo=True)


if __name__ == "__main__":
    sys.exit(main())
