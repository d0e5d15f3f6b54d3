"""The native operators' arithmetic on an emulated Arm: cross-built, and checked against scalar references there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.places import ROOT, TESTS

COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
HIGHWAY = next((root for root in map(Path, ("/usr/include", "/usr/local/include")) if (root / "hwy").is_dir()), None)
OPS = ROOT / "core" / "ops"
TARGET = OPS / "cpu" / "simd" / "target.cc"


def _fuses() -> bool:
    """True if this processor has fused multiply-add, as Arm does."""
    info = Path("/proc/cpuinfo")
    return (
        shutil.which("g++") is not None
        and info.exists()
        and {"fma", "avx2", "aes"} <= set(info.read_text(encoding="utf-8").split())
    )


pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no cross compiler (aarch64-linux-gnu-g++)"),
    pytest.mark.skipif(EMULATOR is None, reason="no emulator (qemu-aarch64)"),
    pytest.mark.skipif(HIGHWAY is None, reason="no Highway headers"),
]


@pytest.fixture(scope="module", params=["matmul", "attention", "elementwise"])
def check(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A check program, built as the library is: one binary for every Arm target."""
    folder = tmp_path_factory.mktemp("arm")
    (folder / "include").mkdir()
    assert HIGHWAY is not None
    (folder / "include" / "hwy").symlink_to(HIGHWAY / "hwy")  # alone: the host's other headers are not the target's
    kernels = f"{request.param}_kernels.cc"
    sources = [TESTS / "native" / f"check_{kernels}", OPS / "cpu" / request.param / kernels, TARGET]
    disabled = "-DHWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)"
    flags = ["-std=c++17", "-O2", "-DNDEBUG", "-static", "-pthread", disabled]
    include = [f"-I{OPS}", "-isystem", str(folder / "include")]
    program = folder / "check"
    built = subprocess.run(
        [str(COMPILER), *flags, *include, *map(str, sources), "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return program


PROCESSORS = [
    ("cortex-a57", "NEON_WITHOUT_AES"),
    ("cortex-a76", "NEON_DOT"),
    ("neoverse-v1", "NEON_I8MM"),
    ("max", "NEON_I8MM"),
]


def run(command: list[str]) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SOL_RT_SIMD_TARGETS"}
    result = subprocess.run([*command, "bits"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.split()


@pytest.mark.slow
def test_arithmetic_on_arm(check: Path) -> None:
    outputs = set()
    for processor, target in PROCESSORS:
        name, *bits = run([str(EMULATOR), "-cpu", processor, str(check)])
        assert name == target, processor
        outputs.add(tuple(bits))
    assert len(outputs) == 1, "the bits of products depend on the processor"


@pytest.mark.slow
@pytest.mark.skipif(not _fuses(), reason="this processor rounds between a product and a sum")
@pytest.mark.parametrize("check", ["matmul"], indirect=True)
def test_products_on_arm_have_the_bits_of_this_processor(check: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    kernels = [OPS / "cpu" / name for name in ("matmul/matmul_kernels.cc", "simd/matmul_avx_vnni.cc")]
    sources = [TESTS / "native" / "check_matmul_kernels.cc", *kernels, TARGET]
    flags = ["-std=c++17", "-O2", "-DNDEBUG", "-pthread", "-march=native", "-DHWY_COMPILE_ONLY_STATIC"]
    built = subprocess.run(
        ["g++", *flags, f"-I{OPS}", *map(str, sources), "-o", str(here)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert run([str(EMULATOR), "-cpu", "neoverse-v1", str(check)])[1:] == run([str(here)])[1:]
