"""Instructions a weight of the kernels on emulated Arm processors, beside those of llama.cpp's for the same width.

    python benchmarks operators.arm.counts [--llama FOLDER] [--keep FOLDER]

Cross-builds both (Debian's g++-aarch64-linux-gnu, libhwy-dev) and counts executed instructions with qemu-user, one
a block of code. A count is the difference between two calls of a kernel and one. llama.cpp comes from the source
package of llama-cpp-python, downloaded with pip unless --llama names its unpacked folder. Prints Markdown. At 3 bits
our kernels are channel-major and stand alone: llama.cpp has no kernel of that width for several rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OPS = HERE.parents[2] / "core" / "ops"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
LLAMA = "llama-cpp-python==0.3.36"
CHANNELS, OUTPUTS, TILE, TOKENS = 128, 512, 64, 128  # as in sol_kernels.cc

# The emulated processor, what it has, and the flags that llama.cpp is built with for it.
PROCESSORS = [("cortex-a76", "dot product", "+dotprod+fp16"), ("neoverse-v1", "i8mm", "+dotprod+fp16+i8mm")]
ROWS = [("row_block_major", "gemv"), ("row_channel_major", "gemv")]
TILES = [("tile_block_major", "gemm"), ("tile_channel_major", "gemm")]


def run(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(str(part) for part in command)} failed: {result.stderr[-2000:]}")
    return result.stdout


def build_ours(folder: Path) -> Path:
    """Our kernels for every target, as the library has them."""
    include = folder / "include"
    include.mkdir(exist_ok=True)
    link = include / "hwy"
    if not link.exists():
        link.symlink_to("/usr/include/hwy")  # alone: the host's other headers are not the target's
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "-fno-math-errno", "-static", "-pthread"]
    flags.append("-DHWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
    sources = [HERE / "sol_kernels.cc", OPS / "cpu/matmul/matmul_kernels.cc", OPS / "cpu/simd/target.cc"]
    program = folder / "sol_kernels"
    run(COMPILER, *flags, f"-I{OPS}", "-isystem", include, *sources, "-o", program)
    return program


def build_llama(source: Path, march: str, folder: Path) -> Path:
    ggml = next(source.rglob("ggml/src/ggml-cpu/arch/arm/repack.cpp")).parents[4]
    include = [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]
    program = folder / f"llama_kernels{march}"
    sources = [HERE / "llama_kernels.cc", ggml / "src/ggml-cpu/arch/arm/repack.cpp"]
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "-static", f"-march=armv8.2-a{march}"]
    run(COMPILER, *flags, *include, *sources, "-o", program)
    return program


def download_llama(folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", folder, LLAMA)
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder


def executed(processor: str, program: Path, *arguments: str) -> int | None:
    """Instructions that a run of a program takes; None where the program has no such kernel."""
    trace = [EMULATOR, "-cpu", processor, "-one-insn-per-tb", "-d", "exec,nochain", str(program), *arguments]
    with subprocess.Popen(trace, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        count = sum(line.startswith(b"Trace ") for line in process.stderr)
    return count if process.returncode == 0 else None


def per_product(processor: str, program: Path, kernel: str, bits: int) -> float | None:
    """Instructions for a product of a weight and a token's activation."""
    once = executed(processor, program, kernel, str(bits), "1")
    twice = executed(processor, program, kernel, str(bits), "2")
    if once is None or twice is None:
        return None
    products = TILE * TOKENS if kernel.startswith(("tile", "gemm")) else OUTPUTS
    return (twice - once) / (CHANNELS * products)


def best_of_llama(processor: str, program: Path, kind: str, bits: int) -> tuple[float, str]:
    counts = [(per_product(processor, program, f"{kind}_{layout}", bits), layout) for layout in ("4x4", "4x8")]
    return min((count, f"{kind}_q{bits}_0_{layout}") for count, layout in counts if count is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Instructions a weight on Arm, beside llama.cpp's.")
    parser.add_argument("--llama", type=Path, help="unpacked source package of llama-cpp-python, or of llama.cpp")
    parser.add_argument("--keep", type=Path, help="folder for what is built (default: a temporary one)")
    parser.add_argument("--bits", type=int, nargs="*", default=[3, 4, 8], choices=[3, 4, 8])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = None if arguments.bits == [3] else arguments.llama or download_llama(folder)
        ours = build_ours(folder)
        print("| processor | kernel | bits | ours | llama.cpp | its best kernel | ratio |")
        print("|---|---|--:|--:|--:|---|--:|")
        for processor, has, march in PROCESSORS:
            theirs = build_llama(source, march, folder) if source else None
            for kernel, kind in ROWS + TILES:
                for bits in arguments.bits:
                    if bits == 3 and "block" in kernel:
                        continue
                    count = per_product(processor, ours, kernel, bits)
                    assert count is not None
                    rival = ["", "", ""]
                    if theirs and bits > 3:  # without llama.cpp there are 3 bits alone
                        best, name = best_of_llama(processor, theirs, kind, bits)
                        rival = [f"{best:.3f}", name, f"{count / best:.2f}"]
                    cells = [f"{processor} ({has})", kernel, str(bits), f"{count:.3f}", *rival]
                    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
