"""docs/reference/decode-loop.md section 5, written down once more: the numbers that all hosts draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import philox
from helpers.gumbel import gumbel, portable_log, token_words
from helpers.philox_answers import ANSWERS, EXAMPLES

seeds = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**200))
positions = st.integers(0, 2**32 - 1)


def mixed(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q // 2**32 ^ b ^ k, q % 2**32, p // 2**32 ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def word(seed: int, stream: int, position: int, index: int) -> int:
    key = seed % 2**32, seed // 2**32 % 2**32
    return mixed((index // 4, position, stream, 0), key)[index % 4]


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    found = philox.philox(np.array(counter, np.uint64)[:, None], key[0] + 2**32 * key[1])
    assert found[0].tolist() == list(answer)
    assert mixed(counter, key) == answer  # type: ignore[arg-type]


@given(seeds, positions, st.integers(0, 1), st.lists(st.integers(0, 2**30), min_size=1, max_size=5))
def test_words_of_a_position(seed: int, position: int, stream: int, blocks: list[int]) -> None:
    found = philox.words(seed, stream, position, np.array(blocks))
    expected = [[word(seed, stream, position, 4 * block + lane) for lane in range(4)] for block in blocks]
    assert found.tolist() == expected


@given(seeds, positions, st.integers(1, 300), st.sets(st.integers(0, 299), min_size=1))
def test_the_word_of_a_token_is_the_same_among_any_others(
    seed: int, position: int, size: int, chosen: set[int]
) -> None:
    tokens = np.array(sorted(token for token in chosen if token < size) or [0])
    expected = [word(seed, philox.TOKENS, position, token) for token in tokens.tolist()]
    assert token_words(seed, position, tokens, size).tolist() == expected
    assert token_words(seed, position, tokens, 10**6).tolist() == expected


@given(st.floats(2.0**-40, 2.0**10))
def test_portable_log_is_a_logarithm(value: float) -> None:
    assert portable_log(np.array([value]))[0] == pytest.approx(math.log(value), rel=4e-16, abs=1e-17)


words = st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 600), st.integers(2**32 - 600, 2**32 - 1))


@given(words)
def test_gumbel_numbers(value: int) -> None:
    found = float(gumbel(np.array([value], np.uint32))[0])
    assert found == pytest.approx(-math.log(-math.log((value + 0.5) / 2**32)), rel=1e-14, abs=1e-14)


@pytest.mark.parametrize(("seed", "position", "token", "found", "noise"), EXAMPLES)
def test_examples_of_seeds_and_positions(seed: int, position: int, token: int, found: int, noise: float) -> None:
    assert word(seed, philox.TOKENS, position, token) == found
    assert float(gumbel(np.array([found], np.uint32))[0]) == noise
