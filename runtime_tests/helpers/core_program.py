"""Builds small programs from the sources of the native core (bindings/c), with the sanitizers on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "bindings/c"
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    '-DSOL_RT_VERSION="0"',
)


def build(folder: Path, program: str, sources: Sequence[str]) -> Path:
    """Compiles tests/`program` with the core's `sources`, globs relative to src, into `folder`. Returns the program.

    Skips the test where there is no g++ or no utf8proc.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    if not Path("/usr/include/utf8proc.h").exists():
        pytest.skip("no utf8proc (libutf8proc-dev)")
    files = [CORE / "tests" / program, *(path for source in sources for path in sorted((CORE / "src").glob(source)))]
    built = folder / Path(program).stem
    include = [f"-I{CORE / part}" for part in ("src", "include")]
    objects = []
    launcher = [found] if (found := shutil.which("ccache")) else []
    for index, file in enumerate(files):
        objects.append(folder / f"{index}-{file.stem}.o")
        command = [*launcher, compiler, *_FLAGS, *include, "-c", str(file), "-o", str(objects[-1])]
        subprocess.run(command, check=True, env=os.environ | {"CCACHE_NOHASHDIR": "1"})
    subprocess.run([compiler, *_FLAGS, *map(str, objects), "-o", str(built), "-lutf8proc"], check=True)
    return built
