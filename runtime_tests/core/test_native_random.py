"""The native core draws the random numbers that Python draws, to the last bit."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.core_build import core_program
from helpers.gumbel import gumbel, token_words
from helpers.philox_answers import ANSWERS, EXAMPLES

_SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.fixture(scope="module")
def program() -> Path:
    return core_program("random_numbers")


def asked(program: Path, lines: list[str]) -> list[list[str]]:
    done = subprocess.run([program], input="\n".join(lines), check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_known_answers(program: Path) -> None:
    lines = ["philox " + " ".join(f"{word:x}" for word in (*counter, *key)) for counter, key, _ in ANSWERS]
    found = [tuple(int(word, 16) for word in line) for line in asked(program, lines)]
    assert found == [answer for _, _, answer in ANSWERS]


def test_examples(program: Path) -> None:
    lines = [f"tokens {seed} {position} {token + 1} {token}" for seed, position, token, _, _ in EXAMPLES]
    for line, (*_, word, noise) in zip(asked(program, lines), EXAMPLES, strict=True):
        for place in (-2, -4):  # drawn alone, and as the last of many
            assert (int(line[place]), float.fromhex(line[place + 1])) == (word, noise)


@pytest.mark.parametrize("seed", _SEEDS)
def test_same_numbers_as_python(program: Path, seed: int) -> None:
    pick = random.Random(seed)
    for count in (1, 3, 255, 256, 257, 5000):
        position, first = pick.choice([0, 1, pick.randrange(5000), pick.getrandbits(31)]), pick.randrange(count)
        line = asked(program, [f"tokens {seed} {position} {count} {first}"])[0]
        tokens = np.array([*range(count), *range(first, count)])
        words = token_words(seed, position, tokens, count)
        assert [int(word) for word in line[::2]] == words.tolist()
        assert [float.fromhex(noise) for noise in line[1::2]] == gumbel(words).tolist()
