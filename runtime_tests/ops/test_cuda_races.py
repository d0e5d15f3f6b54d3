"""Races and wild accesses of the CUDA kernels, emulated on the host.

What orders accesses, and what doesn't, is in native/cuda_races.h. compute-sanitizer
looks for the same on a device, in test_cuda_device.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.emulated_build import COMPILER, INCLUDE, MACHINE, NATIVE, RACES, build, compiled
from helpers.places import TESTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMPILER is None or INCLUDE is None, reason="the emulation needs a C++ compiler and ONNX Runtime's headers"
    ),
]

RIGHT = [
    "atomic count",
    "barrier",
    "barrier before a write",
    "last block",
    "last block reads a count",
    "last block, written out",
    "neighbouring bytes",
    "read-only load",
    "syncwarp",
]
WRONG = {
    "blocks read what one writes": "device",
    "count in shared memory": "device",
    "last block reads a count without fences": "device",
    "no barrier": "shared",
    "no barrier before a write": "shared",
    "no barrier before the count": "device",
    "no fence after": "device",
    "no fence before": "device",
    "no syncwarp": "shared",
    "one block reads a count": "device",
    "one block reads and all count": "device",
    "one thread reads and others count": "shared",
    "one word": "device",
    "own fences": "device",
    "plain count": "device",
    "read of a count": "device",
    "syncwarp for two warps": "shared",
    "two warps read": "shared",
    "write after the count": "device",
    "write before the count": "device",
}
READ_ONLY = [f"read-only load {of}" for of in ("of what is written", "after a write", "after a count")]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small kernels with and without races."""
    folder = tmp_path_factory.mktemp("races")
    objects = compiled([NATIVE / "check_races.cu", *MACHINE], folder, [], RACES)
    assert COMPILER is not None
    subprocess.run([COMPILER, "-o", str(folder / "check"), *map(str, objects), "-ldl"], check=True)
    return folder / "check"


def run(program: Path, *arguments: str, order: str = "ascending") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SOL_CUDA_EMULATION_ORDER": order}
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_every_small_kernel_is_tried(program: Path) -> None:
    assert run(program).stdout.splitlines() == sorted([*RIGHT, *WRONG, *READ_ONLY])


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("name", RIGHT)
def test_ordered_accesses_are_no_race(program: Path, name: str, order: str) -> None:
    done = run(program, name, order=order)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("name", WRONG)
def test_a_race_is_found(program: Path, name: str, order: str) -> None:
    done = run(program, name, order=order)
    assert done.returncode != 0
    assert done.stderr.startswith(f"CUDA emulation: a race in {WRONG[name]} memory: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("name", READ_ONLY)
def test_written_bytes_may_not_be_loaded_as_read_only(program: Path, name: str, order: str) -> None:
    done = run(program, name, order=order)
    assert done.returncode != 0
    assert "__ldg" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_kernels_have_no_races(tmp_path: Path) -> None:
    """Steps, batches and a prompt, of all bits, dense and sparse; many blocks whose last one adds up.

    Prompts of 70 tokens run for two of the kinds of layer only. All tests of the emulation look for races where
    SOL_RT_EMULATION_RACES is set, which takes some 20 minutes.
    """
    library = build(tmp_path, races=True)
    file = TESTS / "ops" / "test_cuda_emulation.py"
    few = [f"test_fixed_attention[case{i}]" for i in (2, 4, 5, 7, 11, 12, 15, 18)]
    few += ["test_fixed_layers", "test_parts_of_the_channels_add_up", "test_codes_of_16_bits_are_exact"]
    few += ["test_many_channels_are_shared_by_blocks", "test_pruned_rows_of_many_channels"]
    few += ["test_ties_keep_the_lower_index", "test_among_equal_tokens"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    prompts = [
        f"({trait}-4 and 70)" for trait in ("layer-norm", "no-window", "around", "cap", "head", "after-rope", "row")
    ]
    shapes = ["32-20-513", "32-9760-2", "1056-2-6", "1056-2-4", "1056-1-6", "300-3-6"]
    long = " or ".join(["phi", "qwen2", *prompts, *shapes])
    command += [*(f"{file}::{name}" for name in few), "-k", f"not ({long})"]
    environment = os.environ | {"SOL_RT_EMULATED_LIBRARY": str(library)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
