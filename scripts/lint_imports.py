"""Checks the contracts on imports that pyproject.toml holds: `python scripts/lint_imports.py FOLDER`.

FOLDER holds the package sol_rt as it is installed, with export and train inside: `make lint` has the type checker's.
An editable installation maps those folders by an import hook that import-linter can't follow, so this program removes
the hook first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from importlinter import cli

CONFIG = Path(__file__).resolve().parents[1] / "pyproject.toml"


def main() -> int:
    sys.meta_path = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
    os.chdir(sys.argv[1])  # where import-linter looks first
    return cli.lint_imports(config_filename=str(CONFIG), no_cache=True, no_logo=True)


if __name__ == "__main__":
    sys.exit(main())
