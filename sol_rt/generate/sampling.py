"""Picks the next token from logits. The order is that of llama.cpp and transformers: logit bias, repetition penalty,
presence and frequency penalty, temperature, top_k, top_p, min_p.

After top_k and top_p only the candidates that are left are looked at, so a large vocabulary costs a few passes over the
logits, and no sort.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sol_rt.engine.distribution import Distribution
from sol_rt.errors import UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.gumbel import noisy_argmax

_NUCLEUS_GUESS = 512  # candidates that top_p looks at first; most nuclei are smaller
_LARGEST_LOGIT = 1e30  # sums and products of smaller ones stay finite in float32
_FLOAT = np.finfo(np.float32)


class Sampler:
    """Draws tokens by the settings of a GenerationConfig.

    A draw depends on seed, position and scores alone, not on the draws before it. But the sampler counts its tokens for
    the presence and the frequency penalty, so each generation has a sampler of its own.

    Args:
        config: the settings.
        vocab_size: size of the vocabulary.

    Raises UsageError for a logit bias of a token outside the vocabulary.
    """

    def __init__(self, config: GenerationConfig, vocab_size: int) -> None:
        self._config = config
        self._vocab_size = vocab_size
        self._all = np.arange(vocab_size)
        config.check_vocabulary(vocab_size)
        self._bias = _biases(config, vocab_size)
        self._counts: Counter[int] = Counter()
        # what presence and frequency penalty add to each logit; only the entry of the last token changes
        self._penalties = np.zeros(vocab_size, np.float32) if _counts_tokens(config) else None
        self._seed = secrets.randbits(32) if config.seed is None else config.seed

    def sample(self, distribution: Distribution, history: Sequence[int] | np.ndarray) -> tuple[int, float]:
        """Picks a token.

        Args:
            distribution: the distribution of a step's raw logits, [vocab].
            history: tokens of the prompt and the text so far. Their number is the position of the token, on which the
                noise depends; the tokens are read only for the repetition penalty.

        Returns the token and its log-probability, in nats, under the raw distribution. Raises UsageError for logits of
        another shape.
        """
        shape = distribution.shape
        if shape != (self._vocab_size,):
            raise UsageError(f"sampling: got logits of shape {list(shape)}, expected [{self._vocab_size}]")
        if self._config.greedy and not self._changes(history):  # logits that lie on a GPU need not be fetched
            token = distribution.top
        else:
            scores = self._changed(distribution.logits, history)
            if self._config.greedy:
                token = int(scores.argmax())
            else:
                token = noisy_argmax(*self.candidates(scores), self._vocab_size, self._seed, len(history))
        self._count(token)
        return token, distribution.log_probability(token)

    def candidates(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that may be drawn, int64 [n], and their scores after the temperature, less the largest, float32
        [n]; the probabilities are the softmax of these.

        `scores` are the logits after bias and penalties, float32 [vocab].
        """
        config = self._config
        scaled = scores if config.temperature == 1.0 else _divided(scores, config.temperature)
        if 0 < config.top_k < self._vocab_size:
            # as in transformers, tokens that tie with the last of the k stay
            least = np.partition(scaled, self._vocab_size - config.top_k)[self._vocab_size - config.top_k]
            tokens = np.flatnonzero(scaled >= least)
            values = scaled[tokens]
        else:
            tokens, values = self._all, scaled
        values = values - values.max()
        if config.top_p == 1.0 and not config.min_p:
            return tokens, values
        weights = _exponentials(values)
        kept = np.arange(len(tokens)) if config.top_p == 1.0 else _nucleus(weights, config.top_p)
        if config.min_p:
            kept = kept[weights[kept] >= np.float32(config.min_p)]
        return tokens[kept], values[kept]

    def _changes(self, history: Sequence[int] | np.ndarray) -> bool:
        """True if bias or penalties change the logits."""
        repeats = self._config.repetition_penalty != 1.0 and len(history) > 0
        return repeats or self._bias is not None or bool(self._counts)

    def _changed(self, logits: np.ndarray, history: Sequence[int] | np.ndarray) -> np.ndarray:
        """The logits after bias and penalties, float32 [vocab]."""
        if not self._changes(history):
            return logits
        scores = logits.copy() if self._bias is None else logits + self._bias
        penalty = self._config.repetition_penalty
        if penalty != 1.0 and len(history) > 0:
            seen = np.asarray(history, np.int64)
            values = scores[seen]
            factor = _float32(penalty)
            with np.errstate(over="ignore"):
                changed = np.where(values < 0, values * factor, values / factor)
            scores[seen] = np.clip(changed, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        if self._penalties is not None:
            scores += self._penalties
        return scores

    def _count(self, token: int) -> None:
        """Counts a token that was drawn, if a penalty depends on how often it was."""
        if self._penalties is None:
            return
        self._counts[token] += 1
        config = self._config
        self._penalties[token] = -(config.presence_penalty + config.frequency_penalty * self._counts[token])


def _counts_tokens(config: GenerationConfig) -> bool:
    return config.presence_penalty != 0 or config.frequency_penalty != 0


def _biases(config: GenerationConfig, vocab_size: int) -> np.ndarray | None:
    """The logit bias of every token, float32 [vocab]; None if there is none."""
    if not any(config.logit_bias.values()):
        return None
    biases = np.zeros(vocab_size, np.float32)
    biases[list(config.logit_bias)] = list(config.logit_bias.values())
    return biases


def _float32(value: float) -> np.float32:
    """A positive setting as the nearest normal number of float32, so that one may divide by it."""
    return np.float32(min(max(value, float(_FLOAT.tiny)), float(_FLOAT.max)))


def _divided(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Logits over the temperature, float32 [vocab]."""
    largest = float(scores.max())
    with np.errstate(over="ignore"):  # -inf is a token that is never drawn
        if abs(largest) < _LARGEST_LOGIT * temperature:
            return scores / _float32(temperature)
        return (scores - np.float32(largest)) / _float32(temperature)  # the quotient would overflow


def _exponentials(values: np.ndarray) -> np.ndarray:
    """exp of float32 values, rounded from float64: those of float32 differ from processor to processor."""
    return np.exp(values, dtype=np.float64).astype(np.float32)


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the likeliest of `weights` [n]: each one before which the likelier ones hold less than `top_p` of the
    sum. There is at least one.
    """
    wanted = float(weights.sum(dtype=np.float64)) * top_p
    size = _NUCLEUS_GUESS
    while True:
        if size < len(weights):
            top = np.flatnonzero(weights >= np.partition(weights, len(weights) - size)[len(weights) - size])
        else:
            top = np.arange(len(weights))
        order = top[np.argsort(-weights[top], kind="stable")]  # equal ones by id, on every host
        mass = np.cumsum(weights[order], dtype=np.float64)
        if mass[-1] >= wanted or len(top) == len(weights):
            return np.asarray(order[: max(1, int(np.searchsorted(mass, wanted, side="left")) + 1)])
        size *= 8
