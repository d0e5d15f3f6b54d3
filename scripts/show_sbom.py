"""Prints the SHA-256 of each wheel in a folder, and what is compiled into it: `python scripts/show_sbom.py dist`.

The bill of materials lies in the wheel itself, where PEP 770 has it: in `.dist-info/sboms/`. Needs only Python.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any


def bill_of_materials(wheel: Path) -> dict[str, Any] | None:
    """The CycloneDX document in a wheel; None if it has no compiled parts, and so no document."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".dist-info/sboms/sol-rt.cdx.json"):
                return dict(json.loads(archive.read(name)))
    return None


def main(folder: str = "dist") -> int:
    for wheel in sorted(Path(folder).glob("*.whl")):
        print(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel}")
        found = bill_of_materials(wheel)
        for part in [] if found is None else found["components"]:
            print(f"  {part['name']} {part['version']}  {part['licenses'][0]['expression']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
