"""Random numbers from a counter: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3", 2011).

A number depends on seed, stream, position and index alone: no state is kept, and the order of the draws has no effect.
docs/reference/decode-loop.md section 5 has the formulas; every host computes the same words.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

TOKENS: Final = 0
"""Stream of the noise on tokens."""
SCHEDULE: Final = 1
"""Stream of the schedule `random`."""

_ROUNDS = 10
_WORD = (1 << 32) - 1
_FACTORS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)


def words(seed: int, stream: int, position: int, blocks: np.ndarray) -> np.ndarray:
    """The random words 4b to 4b + 3 of a position for each block b, uint32 [n, 4].

    Args:
        seed: from 0; its lowest 64 bits count.
        stream: TOKENS or SCHEDULE.
        position: index of a token in its sequence, prompt included.
        blocks: integers from 0, [n].
    """
    counters = np.empty((4, len(blocks)), np.uint64)
    counters[0] = blocks
    counters[1:] = [[position & _WORD], [stream], [0]]
    return philox(counters, seed & (1 << 64) - 1)


def philox(counters: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10, uint32 [n, 4], of counters of four words, uint64 [4, n], under a key of 64 bits."""
    factors, others = counters[::2], counters[1::2]
    for round_key in _round_keys(key):
        products = factors * _FACTORS
        factors = (products >> 32)[::-1] ^ (others ^ round_key)
        others = products[::-1] & _WORD
    found = np.empty((counters.shape[1], 4), np.uint32)
    found[:, ::2], found[:, 1::2] = factors.T, others.T
    return found


@lru_cache(64)
def _round_keys(key: int) -> np.ndarray:
    """The key's two words, the lower first, in each round: uint64 [rounds, 2, 1]."""
    first = np.array([[key & _WORD], [key >> 32]], np.uint64)
    return np.stack([(first + round_ * _KEY_STEPS) & _WORD for round_ in np.arange(_ROUNDS, dtype=np.uint64)])


def uniform(random_words: np.ndarray) -> np.ndarray:
    """Words as numbers between 0 and 1, float64 [n]: (word + 0.5) / 2^32, never 0 and never 1."""
    return np.asarray((random_words + 0.5) * 2.0**-32)
