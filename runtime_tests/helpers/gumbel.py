"""The noise of tokens as docs/reference/decode-loop.md section 5 defines it: the core has to draw the same bits.

Logarithms are written out in additions, multiplications and divisions of float64, which every host rounds alike.
"""

from __future__ import annotations

import numpy as np

from helpers import philox

_SQRT_HALF = 0.7071067811865476
_LN2 = 0.6931471805599453
_CHUNK = 8192  # blocks at a time, so that the arrays stay in the cache of a core


def token_words(seed: int, position: int, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The random words of tokens at a position, uint32 [n]."""
    if 4 * len(tokens) < vocab_size:
        return philox.words(seed, philox.TOKENS, position, tokens >> 2)[np.arange(len(tokens)), tokens & 3]
    blocks = np.arange((vocab_size + 3) // 4)
    parts = [
        philox.words(seed, philox.TOKENS, position, blocks[first : first + _CHUNK])
        for first in range(0, len(blocks), _CHUNK)
    ]
    return np.concatenate(parts).ravel()[tokens]


def gumbel(words: np.ndarray) -> np.ndarray:
    """Gumbel numbers, float64 [n], -log(-log(u)) with u = (word + 0.5) / 2^32; from -3.2 to 22.9."""
    return -portable_log(-portable_log(philox.uniform(words)))


def portable_log(values: np.ndarray) -> np.ndarray:
    """Natural logarithms of positive normal numbers, float64 [n]: the same bits on every host."""
    mantissa, exponent = np.frexp(values)
    small = mantissa < _SQRT_HALF
    mantissa = np.where(small, mantissa + mantissa, mantissa)
    share = (mantissa - 1.0) / (mantissa + 1.0)  # log(mantissa) = 2 atanh(share), |share| < 0.172
    square = share * share
    series = np.zeros_like(share)
    for odd in range(19, 1, -2):
        series = square * (series + 1.0 / odd)
    twice = share + share
    return np.asarray((exponent - small) * _LN2 + (twice + twice * series))
