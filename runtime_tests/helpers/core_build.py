"""The native core (core/) and its test programs, built once for all tests of a run."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import sol_rt  # noqa: F401  turns ONNX Runtime's telemetry off, so it is imported first

import onnxruntime

from .packages import missing_packages
from .places import ROOT
from .tools import find_tool

CORE = ROOT / "core"
ADDRESS = "address,undefined"
THREAD = "thread"
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": f"halt_on_error=1:report_mutex_bugs=0:suppressions={CORE / 'tests' / 'thread.supp'}",
}


def ort_library() -> Path:
    """ONNX Runtime's shared library in the installed package."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    found = [
        *folder.glob("libonnxruntime.so.1*"),
        *folder.glob("libonnxruntime*.dylib"),
        *folder.glob("onnxruntime.dll"),
    ]
    if not found:
        pytest.skip("the package onnxruntime has no shared library")
    return found[0]


slow = False
"""True in runs that have slow tests; conftest.py sets it."""

PROGRAMS = ("cores", "plan_calls", "bundle_check", "random_numbers")
"""Test programs that run under sanitizers in runs that have slow tests."""


def core_program(name: str) -> Path:
    """Builds one of PROGRAMS and returns its path.

    Under sanitizers only where slow tests run, too: the instrumented core takes minutes to compile.
    """
    return (core_build(name, sanitize=ADDRESS, operators=False) if slow else core_build(name)) / name


@functools.cache
def core_build(*targets: str, sanitize: str = "", operators: bool = True) -> Path:
    """Builds libraries and programs into build/, or what is out of date of them. Returns the folder.

    Operators under sanitizers take minutes to compile. Skips the test where the system lacks a package for it: nothing
    is fetched. Waits for another process that builds there: native_builds.py.

    Args:
        targets: what to build; all by default.
        sanitize: ADDRESS or THREAD.
        operators: whether the native operators are built in.
    """
    if sys.platform == "win32":
        pytest.skip("the core's test programs are built on Linux and macOS")
    cmake = find_tool("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    if lacking := missing_packages():
        pytest.skip(f"the core is not built: the system lacks {' '.join(lacking)}")
    kind = "-".join(["core", *sanitize.split(",")[:1], *([] if operators else ["plain"])]).rstrip("-")
    folder = ROOT / "build" / kind
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tests.lock"):
        _build(cmake, folder, targets, sanitize, operators)
    return folder


def _build(cmake: str, folder: Path, targets: tuple[str, ...], sanitize: str, operators: bool) -> None:
    options = ["-DSOL_RT_TESTS=ON", f"-DSOL_SANITIZE={sanitize}", f"-DSOL_RT_OPERATORS={'ON' if operators else 'OFF'}"]
    configure = [cmake, "-S", str(CORE), "-B", str(folder), *options]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    build = [cmake, "--build", str(folder), "--parallel", "2", *(["--target", *targets] if targets else [])]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def valgrind() -> tuple[str, ...]:
    """The beginning of a command under valgrind, which ends with code 9 at an error. Skips the test without it."""
    program = shutil.which("valgrind")
    if program is None:
        pytest.skip("no valgrind")
    return program, "--error-exitcode=9", "--leak-check=no", "--undef-value-errors=no", "-q"


def skip_without_room(errors: str) -> None:
    """Skips the test if the thread sanitizer could not start, as some kernels place memory where it wants to be."""
    if "unexpected memory mapping" in errors:
        pytest.skip("the thread sanitizer finds no room in the address space")


def run_lines(program: list[str], lines: list[str], **environment: str) -> list[str]:
    """Gives a program lines on stdin and returns the lines that it prints. It must end by itself, without a report."""
    done = subprocess.run(
        program,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=os.environ | SANITIZER_OPTIONS | environment,
        timeout=900,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-4000:])
    return done.stdout.splitlines()
