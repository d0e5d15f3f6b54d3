"""The native operators for the CPU built with a sanitizer, and the programs that run them without ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from helpers.places import ROOT
from helpers.simd_targets import X86_TARGETS
from helpers.tools import find_tool
from sol_rt.ops import library_path

CORPUS = ROOT / "runtime_tests" / "corpus" / "operators"
"""Byte strings for the program `operators`: each broke an operator once, or leads to one of its checks."""
BASELINE = "SSE4"
"""Target of the operators that every processor runs."""
ADDRESS = "address,undefined"
THREAD = "thread"
_RUNTIMES = {ADDRESS: ("libasan.so", "libubsan.so"), THREAD: ("libtsan.so",)}
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


class MissingError(Exception):
    """This machine can't build or run programs with the sanitizer; the text says why."""


def runtimes(sanitize: str) -> list[Path]:
    """The compiler's shared libraries for a sanitizer.

    Raises:
        MissingError: There is no g++, or it comes without them.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise MissingError("no g++")
    found = []
    for name in _RUNTIMES[sanitize]:
        asked = [compiler, f"-print-file-name={name}"]
        path = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
        if not path.is_absolute() or not path.exists():
            raise MissingError(f"g++ has no {name}")
        found.append(path)
    return found


@dataclass(frozen=True)
class Build:
    """A build folder."""

    folder: Path
    sanitize: str

    @property
    def library(self) -> Path:
        return self.folder / "core" / "ops" / "cpu" / "libsol_ops_cpu.so"

    def run(
        self, program: str, *arguments: object, target: str | None = None, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of runtime_tests/native's programs; `target` is a SIMD target, None the best one.

        Raises:
            MissingError: The thread sanitizer doesn't run on this system.
        """
        command = [str(self.folder / "core" / "ops" / "native" / program), *map(str, arguments)]
        masked = {} if target is None else {"SOL_RT_SIMD_TARGETS": str(X86_TARGETS[target])}
        done = subprocess.run(
            command, env=os.environ | _OPTIONS | masked, capture_output=True, text=True, check=False, timeout=timeout
        )
        if "unexpected memory mapping" in done.stderr:
            raise MissingError("the thread sanitizer finds no room in the address space")
        return done

    def preloaded(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a program that loads the library, and was built without the sanitizer."""
        preload = os.pathsep.join(str(path) for path in runtimes(self.sanitize))
        everything = os.environ | _OPTIONS | {"LD_PRELOAD": preload} | environment
        return subprocess.run(command, env=everything, capture_output=True, text=True, check=False, timeout=1200)


def best_target() -> str:
    """This processor's best SIMD target.

    Raises:
        MissingError: The native operators are not built, or not for x86-64.
    """
    library = library_path()
    if library is None:
        raise MissingError("the native operators are not built")
    function = ctypes.CDLL(str(library)).SolOpsTarget
    function.restype = ctypes.c_char_p
    name = str(function().decode())
    if name not in X86_TARGETS:
        raise MissingError("only SIMD targets of x86-64 are built with sanitizers")
    return name


def build(sanitize: str, *targets: str) -> Build:
    """Builds for some SIMD targets and the baseline: each takes its time to compile. The build folder is kept.

    Waits for another process that builds there: native_builds.py.

    Raises:
        MissingError: Something that it takes is not here.
        RuntimeError: The build failed; the text is what it printed at last.
    """
    runtimes(sanitize)
    folder = ROOT / "build" / "sanitized" / sanitize.partition(",")[0]
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    if cmake is None:
        raise MissingError("no cmake")
    kept = {BASELINE, *(name.removesuffix("_VNNI") for name in targets)}  # to Highway AVX2_VNNI is AVX2
    others = [f"HWY_{name}" for name in X86_TARGETS if name not in kept and name != "AVX2_VNNI"]
    others = ["HWY_SSSE3", *others, "HWY_AVX3_ZEN4", "HWY_AVX3_SPR"]
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    options = [f"-DSOL_SANITIZE={sanitize}", f"-DSOL_DISABLED_TARGETS={';'.join(others)}", "-DSOL_NATIVE=ON"]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tests.lock"):
        _checked([cmake, "-S", str(ROOT), "-B", str(folder), *generator, *options, "-DCMAKE_CXX_COMPILER=g++"])
        _checked([cmake, "--build", str(folder), "--parallel", str(len(os.sched_getaffinity(0)))])
    return Build(folder, sanitize)


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "were not found" in done.stderr or "was not found" in done.stderr:
        raise MissingError("the headers of Highway or ONNX Runtime are missing")
    raise RuntimeError((done.stdout + done.stderr)[-3000:])
