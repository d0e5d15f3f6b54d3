"""Runs a benchmark by the name of its room and of itself: `python benchmarks speed.gpu BUNDLE`. README.md lists them.

`python -m` would import the sources of sol_rt beside this folder in place of an installed wheel.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    parts = name.split(".")
    if not all(map(str.isidentifier, parts)) or not HERE.joinpath(*parts).with_suffix(".py").is_file():
        got = name or "no name"
        sys.exit(f"error: benchmarks: got {got}, expected ROOM.NAME of {HERE / 'README.md'}, such as speed.gpu")
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
