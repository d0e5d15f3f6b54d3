"""The library of the CUDA operators with its kernels emulated on the host: native/cuda_emulation.h."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from helpers.places import ROOT

OPS = ROOT / "core" / "ops"
NATIVE = ROOT / "runtime_tests" / "native"
SOURCES = [*(OPS / "cuda").rglob("*.cu"), *(OPS / "cuda").rglob("*.cc"), OPS / "common" / "onnx" / "register.cc"]
MACHINE = [NATIVE / "cuda_machine.cc", NATIVE / "cuda_races.cc"]
COMPILER = shutil.which("c++")
CCACHE = shutil.which("ccache")
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-w", "-DSOL_CUDA_EMULATION", f"-I{NATIVE}", f"-I{OPS}"]
RACES = ["-fsanitize=thread", "-g1"]  # native/cuda_races.cc stands in for the sanitizer's library
_HEADERS = [Path("/usr/include/onnxruntime"), Path("/usr/include/onnxruntime/core/session")]
INCLUDE = next((path for path in _HEADERS if (path / "onnxruntime_c_api.h").is_file()), None)


def compiled(sources: list[Path], folder: Path, flags: list[str], kernel_flags: list[str]) -> list[Path]:
    """The sources' object files. `kernel_flags` are for those with kernels, .cu."""
    assert COMPILER is not None

    def compile_one(source: Path) -> Path:
        built = folder / f"{source.name}.o"
        own = kernel_flags if source.suffix == ".cu" else []
        compiler = [CCACHE, COMPILER] if CCACHE else [COMPILER]
        command = [*compiler, *FLAGS, *flags, *own, "-isystem", INCLUDE, "-x", "c++", "-c", source, "-o", built]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return built

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def build(folder: Path, *, races: bool = False) -> Path:
    """The library of the CUDA operators for the CPU provider, kernels emulated, and their races looked for."""
    assert COMPILER is not None
    flags = os.environ.get("SOL_RT_EMULATION_FLAGS", "").split()
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / "emulated.lock"):  # ccache compiles twice what two ask for at once
        objects = compiled(sorted([*SOURCES, *MACHINE]), folder, flags, RACES if races else [])
    library = folder / "libsol_ops_cuda_emulated.so"
    sanitizer = [flag for flag in flags if flag.startswith("-fsanitize")]
    subprocess.run(
        [COMPILER, "-shared", "-Wl,--no-undefined", *sanitizer, "-o", str(library), *map(str, objects), "-ldl"],
        check=True,
    )
    return library
