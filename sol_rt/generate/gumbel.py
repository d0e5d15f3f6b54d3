"""The Gumbel-max trick: the token with the largest `score + noise` is a draw from softmax(scores), if the noise of each
token is a Gumbel number of its own.

The noise of a token depends on seed, position and token id alone. Its logarithms are written out in additions,
multiplications and divisions of float64, which every host rounds alike; libraries differ in the last bit of theirs.
"""

from __future__ import annotations

import numpy as np

from sol_rt import philox

_SQRT_HALF = 0.7071067811865476
_LN2 = 0.6931471805599453
_CHUNK = 8192  # blocks at a time, so that the arrays stay in the cache of a core
_FEW = 512  # candidates whose noise is computed without bounds


def noisy_argmax(tokens: np.ndarray, scores: np.ndarray, vocab_size: int, seed: int, position: int) -> int:
    """Draws a token from softmax(scores). Of equal sums the smallest token id is taken.

    Args:
        tokens: the candidates, int64 [n].
        scores: logits of the candidates after the temperature, less the largest, float32 [n].
        vocab_size: size of the vocabulary.
        seed: of the generation.
        position: index that the token will have in its sequence, prompt included.
    """
    words = token_words(seed, position, tokens, vocab_size)
    if len(tokens) > _FEW:  # most can't win whatever their noise is: bounds are cheaper than logarithms
        most = scores + upper_bounds(words)
        guess = most.argmax()[None]
        least = scores[guess] + gumbel(words[guess])
        left = np.flatnonzero(~(most < least))
        tokens, scores, words = tokens[left], scores[left], words[left]
    sums = scores + gumbel(words)
    return int(tokens[~(sums < sums.max())].min())


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


def upper_bounds(words: np.ndarray) -> np.ndarray:
    """Upper bounds of `gumbel(words)`, float32 [n], in a tenth of its time.

    -log(-log(u)) <= -log(1 - u), and the bits of a float grow as its logarithm does, in a line between powers of two.
    """
    rest = (~words >> 8).astype(np.float32)  # 2^24 (1 - u), rounded down
    return np.float32(151.001 * _LN2) - rest.view(np.int32).astype(np.float32) * np.float32(_LN2 / 2**23)
