"""The CPU operators under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Three ways to run them: their kernels and their threads alone (native/check_*.cc), whole operators on any inputs without
ONNX Runtime (fuzz/operators.cc), and the tests of the operators in the real ONNX Runtime, which itself is not checked.
Built for the best SIMD target of this processor and for the baseline. The threads run on the baseline alone: the team
and the split of the work are the same for every target.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from helpers.places import TESTS
from helpers.sanitized_build import ADDRESS, BASELINE, CORPUS, THREAD, Build, MissingError, best_target, build
from helpers.simd_targets import X86_TARGETS

CHECKS = ("check_attention", "check_elementwise", "check_matmul", "check_team")
OPERATOR_TESTS = ("test_ops_matmul.py", "test_ops_codebook.py", "test_ops_attention.py", "test_ops_layer.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="sanitizers are run on Linux alone"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
]


@pytest.fixture(scope="module")
def address() -> Build:
    try:
        return build(ADDRESS, best_target())
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def thread() -> Build:
    try:
        best_target()
        return build(THREAD)
    except MissingError as error:
        pytest.skip(str(error))


def assert_clean(run: Build, program: str, *arguments: object, target: str | None = None) -> str:
    try:
        done = run.run(program, *arguments, target=target)
    except MissingError as error:
        pytest.skip(str(error))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize("target", [None, BASELINE], ids=["best", "baseline"])
@pytest.mark.parametrize("program", CHECKS)
def test_kernels_stay_within_their_arrays(address: Build, program: str, target: str | None) -> None:
    assert_clean(address, program, target=target)


@pytest.mark.parametrize("target", [None, BASELINE], ids=["best", "baseline"])
def test_operators_take_every_size(address: Build, target: str | None) -> None:
    """Sound calls of random sizes, bits and densities, whatever their numbers are, on one thread and on three."""
    assert assert_clean(address, "operators", "check", 600, 1, 3, target=target) == "600 calls\n"


@pytest.mark.parametrize("target", [None, BASELINE], ids=["best", "baseline"])
def test_operators_refuse_what_broke_them_once(address: Build, target: str | None) -> None:
    corpus = sorted(CORPUS.iterdir())
    assert corpus
    printed = assert_clean(address, "operators", "replay", *corpus, target=target)
    assert printed.startswith(f"{len(corpus)} calls, ")


def test_fuzzed_operators_run_or_refuse(address: Build, tmp_path: Path) -> None:
    """A short run, of the same strings at every time: `fuzz/operators.py` runs for longer."""
    assert_clean(address, "operators", "fuzz", 5, 1, tmp_path, *sorted(CORPUS.iterdir()))


@pytest.mark.parametrize("program", CHECKS)
def test_threads_of_kernels_do_not_race(thread: Build, program: str) -> None:
    assert_clean(thread, program)


def test_threads_of_operators_do_not_race(thread: Build) -> None:
    assert assert_clean(thread, "operators", "check", 150, 2, 4) == "150 calls\n"


@pytest.mark.parametrize(
    ("target", "select"), [(None, "not test_thread_count"), (BASELINE, "fixed or bad or damaged or refused")]
)
def test_operators_in_onnx_runtime(address: Build, target: str | None, select: str) -> None:
    """On all threads for the best target, on one for the baseline."""
    environment = {"SOL_RT_TEST_OPS": str(address.library), "PYTHONPATH": str(TESTS)}
    if target is not None:
        environment |= {"SOL_RT_SIMD_TARGETS": str(X86_TARGETS[target]), "SOL_RT_TEST_ONE_THREAD": "1"}
    # --capture=sys lets a sanitizer's report through.
    plugins = ["--capture=sys", "-p", "no:cacheprovider", "-p", "helpers.sanitized_library"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "-m", "not slow", "-k", select]
    done = address.preloaded([*command, *(str(TESTS / "ops" / name) for name in OPERATOR_TESTS)], **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert " passed" in done.stdout
