"""docs/reference/decode-loop.md section 5, written down once more: all hosts draw the numbers that NumPy draws."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.places import ROOT
from sol_rt.budget.schedules.random_schedule import drawn

_PAGE = ROOT / "docs/reference/decode-loop.md"
_WORD, _LONG, _STATE = (1 << 32) - 1, (1 << 64) - 1, (1 << 128) - 1
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def pool(seed: int) -> list[int]:
    words = [seed & _WORD]
    while seed := seed >> 32:
        words.append(seed & _WORD)
    constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & _WORD
        value = value * constant & _WORD
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        result = 0xCA01F9DD * x - 0x4973F715 * y & _WORD
        return result ^ result >> 16

    found = [hashed(word) for word in (words + [0] * 4)[:4]]
    for source, target in itertools.product(range(4), repeat=2):
        if source != target:
            found[target] = mixed(found[target], hashed(found[source]))
    for word in words[4:]:
        for target in range(4):
            found[target] = mixed(found[target], hashed(word))
    return found


def state32(seed: int) -> Iterator[int]:
    constant = 0x8B51F9DD
    for word in itertools.cycle(pool(seed)):
        value = word ^ constant
        constant = constant * 0x58F38DED & _WORD
        value = value * constant & _WORD
        yield value ^ value >> 16


def numbers(seed: int) -> Iterator[float]:
    words = list(itertools.islice(state32(seed), 8))

    def joined(*places: int) -> int:
        value = 0
        for place in places:
            value = value << 32 | words[place]
        return value

    increment = 2 * joined(5, 4, 7, 6) + 1 & _STATE
    state = (increment + joined(1, 0, 3, 2)) * _MULTIPLIER + increment & _STATE
    while True:
        state = state * _MULTIPLIER + increment & _STATE
        value, turn = (state >> 64) ^ (state & _LONG), state >> 122
        value = (value >> turn | value << (64 - turn)) & _LONG
        yield (value >> 11) * 2.0**-53


@given(st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 2**200)))
def test_the_documented_generator_is_numpys(seed: int) -> None:
    assert list(itertools.islice(numbers(seed), 20)) == np.random.default_rng(seed).random(20).tolist()


@given(st.integers(0, 2**63 - 1))
def test_the_schedule_random_has_a_generator_of_its_own(seed: int) -> None:
    derived = int(np.random.SeedSequence(seed).generate_state(1)[0])
    assert next(state32(seed)) == derived
    assert next(numbers(derived)) == np.random.default_rng(derived).random()


@pytest.mark.parametrize("seed", [0, 2**40 + 7])
def test_the_page_has_the_first_numbers(seed: int) -> None:
    first = ", ".join(map(repr, itertools.islice(numbers(seed), 3)))
    assert f"gives {first}" in re.sub(r"\s+", " ", _PAGE.read_text(encoding="utf-8"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_a_drawn_action_is_that_at_which_the_running_sum_passes_the_number(shares: list[float], number: float) -> None:
    if sum(shares) == 0:
        return
    index = drawn(np.array(shares), number)
    sums = list(itertools.accumulate(shares))
    assert sums[index] > number * sums[-1] or index == len(shares) - 1
    assert index == 0 or sums[index - 1] <= number * sums[-1]
