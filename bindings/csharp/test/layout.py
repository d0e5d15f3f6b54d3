"""Asks the C compiler for the layout of every struct in sol_rt.h.

`layout.py sol_rt.h OUT` writes lines `struct field offset`, and `struct - size`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

_STRUCT = re.compile(r"typedef struct (\w+) \{(.*?)\n\} \1;", re.DOTALL)
_FIELD = re.compile(r"(\w+)(?:\[\d+\])?;")


def main(header: Path, out: Path) -> None:
    lines = []
    for name, body in _STRUCT.findall(header.read_text(encoding="utf-8")):
        plain = re.sub(r"//.*", "", body)
        lines += [f'printf("{name} {field} %zu\\n", offsetof({name}, {field}));' for field in _FIELD.findall(plain)]
        lines.append(f'printf("{name} - %zu\\n", sizeof({name}));')
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "layout.c"
        program = [f'#include "{header.resolve()}"', "#include <stdio.h>", "int main(void) {", *lines, "return 0;", "}"]
        source.write_text("\n".join(program) + "\n", encoding="utf-8")
        subprocess.run(["cc", "-o", f"{folder}/layout", source], check=True)
        out.write_bytes(subprocess.run([f"{folder}/layout"], check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
