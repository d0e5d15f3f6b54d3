"""The team of threads of a decode step, without ONNX Runtime: here and on an emulated Arm.

test_sanitizers.py runs it under the thread sanitizer.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_ops_arm import COMPILER, EMULATOR, HIGHWAY, OPS

from helpers.emulated_build import INCLUDE
from helpers.places import TESTS

CHECKS = TESTS / "native"
HOST = shutil.which("c++") or shutil.which("g++")
BUILDS = {
    "host": (HOST, [], []),
    "arm": (COMPILER, ["-static"], [EMULATOR]),
}


def build(compiler: str | None, flags: list[str], sources: list[Path], folder: Path) -> Path:
    """The program of the sources. Skips the test where there is no such compiler."""
    if compiler is None:
        pytest.skip("no compiler")
    # Alone: the host's other headers are not the target's.
    (folder / "hwy").symlink_to(f"{HIGHWAY}/hwy")
    if INCLUDE is not None:
        for header in INCLUDE.glob("onnxruntime*.h"):
            (folder / header.name).symlink_to(header)
    program = folder / "check"
    command = [compiler, "-std=c++17", "-O2", "-DNDEBUG", "-pthread", *flags, f"-I{OPS}", "-isystem", str(folder)]
    built = subprocess.run(
        [*command, *map(str, sources), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return program


@pytest.mark.slow
@pytest.mark.skipif(HIGHWAY is None, reason="no Highway headers")
@pytest.mark.skipif(INCLUDE is None, reason="no header of ONNX Runtime")
@pytest.mark.parametrize("name", BUILDS)
def test_members_go_through_phases_in_step(name: str, tmp_path: Path) -> None:
    compiler, flags, run = BUILDS[name]
    if None in run:
        pytest.skip("no emulator")
    program = build(compiler, flags, [CHECKS / "check_team.cc"], tmp_path)
    command = [*(str(part) for part in run), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == "300 teams\n"
