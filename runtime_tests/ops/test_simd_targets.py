"""The choice of a SIMD target on x86, and that products have the same bits on all that fuse multiply-add."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import test_ops_codebook
from onnx import TensorProto
from test_ops_matmul import Array, Nested, matmul_model, model_of, run

from helpers.reference import Coded
from helpers.simd_targets import X86_TARGETS, with_targets
from sol_rt.ops import library_path

LIBRARY = library_path()
INFO = Path("/proc/cpuinfo")
EMULATOR = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")

pytestmark = [
    pytest.mark.skipif(LIBRARY is None, reason="the native operators are not built"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="names targets of x86"),
    pytest.mark.skipif(not INFO.exists(), reason="the system does not list the processor's features"),
]

_AVX2 = {"pclmulqdq", "fma", "sse4_2", "aes", "avx", "f16c", "bmi1", "avx2", "bmi2"}
_AVX3 = _AVX2 | {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"}
_AVX3_DL = {"avx512vbmi", "avx512_vbmi2", "gfni", "vpclmulqdq", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq"}
FEATURES = {
    "AVX3_DL": _AVX3 | _AVX3_DL,
    "AVX3": _AVX3,
    "AVX2_VNNI": _AVX2 | {"avx_vnni"},
    "AVX2": _AVX2,
    "SSE4": {"sse4_2"},
}
"""Names by Linux of the features that a target takes, the best target first."""


def here() -> set[str]:
    """The targets that this processor has."""
    flags = next(line for line in INFO.read_text(encoding="utf-8").splitlines() if line.startswith("flags"))
    return {name for name, features in FEATURES.items() if features <= set(flags.split())}


PROBE = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).SolOpsTarget; f.restype = ctypes.c_char_p; print(f())"
"""Prints the target that its process runs, as bytes."""


def products() -> Iterator[Array]:
    """Outputs at every width, of single tokens and of many, in both layouts, some of them in part of a vector."""
    rng = np.random.default_rng(1)
    for tokens, k, n in itertools.product((1, 2, 7), (64, 320), (32, 96, 352, 578)):
        x = rng.normal(size=(tokens, k)).astype(np.float32)
        for bits in (4, 6, 8):
            w = Nested.random(rng, k, n, bits)
            yield run(matmul_model(w), x)
            tensors = [*test_ops_codebook.counts(active=k * 3 // 4), *w.tensors("w.", channel_major=True).values()]
            yield run(model_of("PrunedMatMul", ["m", k], TensorProto.FLOAT, tensors, K=k, N=n, bits=bits), x)
        if n % 32 == 0:
            yield run(test_ops_codebook.matmul_model(Coded.random(rng, k, n, test_ops_codebook.TABLES)), x)


def test_the_mask_leaves_the_best_target_of_this_processor() -> None:
    bits = [1 << bit for bit in (7, 8, 9, 10)]
    for chosen in itertools.product((0, 1), repeat=len(bits)):
        mask = sum(bit for bit, used in zip(bits, chosen, strict=True) if used) | X86_TARGETS["SSE4"]
        expected = next(name for name in FEATURES if name in here() and X86_TARGETS[name] & ~mask == 0)
        found = with_targets([sys.executable, "-c", PROBE, str(LIBRARY)], mask)
        assert found.stdout.strip() == f"b'{expected}'", f"mask {mask}: {found.stderr}"


@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="no emulator (qemu-x86_64)")
@pytest.mark.parametrize("missing", [None, *sorted(_AVX2 - {"sse4_2", "bmi1"})])  # the C library itself takes bmi1
def test_a_processor_that_lacks_an_instruction_of_a_target_does_not_run_it(missing: str | None) -> None:
    processor = f"Haswell,-{missing}" if missing else "Haswell"
    command = [str(EMULATOR), "-cpu", processor, os.path.realpath(sys.executable), "-c", PROBE, str(LIBRARY)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == f"b'{'SSE4' if missing else 'AVX2'}'", found.stderr


@pytest.mark.slow
def test_products_have_the_same_bits_on_every_target_with_fused_multiply_add() -> None:
    fused = sorted(here() - {"SSE4"})
    if len(fused) < 2:
        pytest.skip(f"this processor has fewer than two such targets: {fused}")
    digests = {}
    for name in fused:
        done = with_targets([sys.executable, __file__], X86_TARGETS[name])
        assert done.returncode == 0, done.stderr[-3000:]
        digests[name] = done.stdout
    assert len(set(digests.values())) == 1, digests


if __name__ == "__main__":
    hashed = hashlib.sha256()
    for output in products():
        hashed.update(output.tobytes())
    print(hashed.hexdigest())
