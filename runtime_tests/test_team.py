"""The team of threads behind a decode step, without ONNX Runtime: under the thread sanitizer and on an emulated Arm."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_ops_arm import COMPILER, EMULATOR, HIGHWAY, OPS

CHECK = Path(__file__).parent / "native" / "check_team.cc"
HOST = shutil.which("c++") or shutil.which("g++")
BUILDS = {
    "host": (HOST, [], []),
    "sanitizer": (HOST, ["-fsanitize=thread", "-g"], []),
    "arm": (COMPILER, ["-static"], [EMULATOR]),
}


@pytest.mark.skipif(HIGHWAY is None, reason="no Highway headers")
@pytest.mark.parametrize("build", BUILDS)
def test_members_go_through_phases_in_step(build: str, tmp_path: Path) -> None:
    compiler, flags, run = BUILDS[build]
    if compiler is None or None in run:
        pytest.skip("no compiler, or no emulator")
    (tmp_path / "hwy").symlink_to(f"{HIGHWAY}/hwy")  # alone: the host's other headers are not the target's
    program = tmp_path / "check"
    command = [compiler, "-std=c++17", "-O2", "-pthread", *flags, f"-I{OPS}", "-isystem", str(tmp_path), str(CHECK)]
    built = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    if build == "sanitizer" and "tsan" in built.stderr:
        pytest.skip("no thread sanitizer")
    assert built.returncode == 0, built.stderr[-3000:]
    command = [*(str(part) for part in run), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == "300 teams\n"
