"""The native core draws the random numbers that NumPy draws."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.core_build import core_program

_DRAWN = random.Random(7)
_SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.fixture(scope="module")
def program() -> Path:
    return core_program("numpy_random")


@pytest.mark.parametrize("seed", [*_SEEDS, *(_DRAWN.getrandbits(bits) for bits in range(20, 65, 2))])
def test_same_numbers_as_numpy(program: Path, seed: int) -> None:
    output = subprocess.run([program, str(seed), "500"], check=True, capture_output=True, text=True).stdout.split()

    assert int(output[0]) == np.random.SeedSequence(seed).generate_state(1)[0]
    assert [float(number) for number in output[1:]] == np.random.default_rng(seed).random(500).tolist()
