"""Writes what a fuzz target begins with, mostly files that tests keep: `seeds.py TARGET FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[4] / "runtime_tests"
GOLDEN = TESTS / "golden" / "tiny"


def seeds(target: str) -> list[bytes]:
    """Inputs of a target. The target `bundle` chooses its reader by the first byte."""
    if target == "bundle":
        configs = [*sorted((TESTS / "corpus" / "config").iterdir()), GOLDEN / "sol_config.json"]
        graphs = [*sorted((TESTS / "corpus" / "graph").iterdir()), *sorted(GOLDEN.glob("*.onnx"))]
        tags = [b"k030-s050-q4", b"k100-s100-qmix", b"k100-s100-q5"]
        return [
            *(b"\0" + path.read_bytes() for path in configs),
            *(b"\1" + path.read_bytes() for path in graphs),
            *(b"\2" + tag for tag in tags),
        ]
    folder = Path(__file__).parent / "corpus" / target
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def main() -> None:
    target, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds(target)):
        (folder / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
