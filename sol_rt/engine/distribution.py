"""The distribution of the next token: the softmax sums of a step's logits, computed once for all who need them.

Those are the check for finite numbers, sampling, and the policy's scalars.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sol_rt.ops import library_path


class SoftmaxSums(NamedTuple):
    """Sums over logits x, of which m is the largest.

    Attributes:
        top: the likeliest token, the first of several; None if a logit is not finite: then the sums mean nothing.
        total: sum of exp(x - m).
        moment: sum of exp(x - m) (x - m).
        second: the second largest x; the lowest float32 in a vocabulary of one token.
        largest: m.
    """

    top: int | None
    total: float
    moment: float
    second: float
    largest: float


NOT_FINITE = SoftmaxSums(None, 1.0, 0.0, 0.0, 0.0)
_LOWEST = float(np.finfo(np.float32).min)


def numpy_sums(logits: np.ndarray) -> SoftmaxSums:
    """The softmax sums of `logits`, float32 [vocab], by NumPy."""
    largest, least = np.maximum.reduce(logits), np.minimum.reduce(logits)
    if not (math.isfinite(largest) and math.isfinite(least)):  # a NaN makes both of them NaN
        return NOT_FINITE
    centred = logits - largest
    exponentials = np.exp(centred)
    # einsum, as BLAS may wake threads for a product of this size, which then keep a core from the next step
    moment = float(np.einsum("i,i->", exponentials, centred))
    top = int(logits.argmax())
    second = max(float(np.maximum.reduce(part, initial=_LOWEST)) for part in (logits[:top], logits[top + 1 :]))
    return SoftmaxSums(top, float(np.add.reduce(exponentials)), moment, second, float(largest))


@functools.cache
def native_sums() -> Callable[[np.ndarray], SoftmaxSums]:
    """A function like `numpy_sums`, by the native library if it was built. Its `logits` have to be contiguous."""
    library = library_path()
    if library is None:
        return numpy_sums
    function: Any = ctypes.CDLL(str(library)).SolOpsSoftmaxSums
    function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    triple = ctypes.c_float * 3

    def native(logits: np.ndarray) -> SoftmaxSums:
        sums = triple()  # one for each call: other threads may be in theirs
        top = function(logits.__array_interface__["data"][0], logits.size, ctypes.addressof(sums))
        if top < 0:
            return NOT_FINITE
        total, moment, second = sums
        return SoftmaxSums(top, total, moment, second, logits.item(top))

    return native


class Distribution:
    """The probabilities of the next token.

    Args:
        logits: float32 [vocab]; the distribution is valid until they are overwritten.
        sums: computes the softmax sums when they are first asked for.
    """

    def __init__(self, logits: np.ndarray, sums: Callable[[np.ndarray], SoftmaxSums] = numpy_sums) -> None:
        self._logits, self._compute = logits, sums

    @functools.cached_property
    def _sums(self) -> SoftmaxSums:
        return self._compute(self._logits)

    @property
    def logits(self) -> np.ndarray:
        """The logits that the distribution was made of, float32 [vocab]."""
        return self._logits

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits."""
        return self._logits.shape

    @property
    def finite(self) -> bool:
        """True if all logits are finite. Every other property is valid only then."""
        return self._sums.top is not None

    @property
    def top(self) -> int:
        """The likeliest token; the first one if several are."""
        assert self._sums.top is not None
        return self._sums.top

    @property
    def top_probability(self) -> float:
        """Probability of the likeliest token."""
        return 1.0 / self._sums.total

    @property
    def margin(self) -> float:
        """Probability of the likeliest token minus that of the second likeliest; 1 in a vocabulary of one token."""
        return -math.expm1(self._sums.second - self._sums.largest) / self._sums.total

    @property
    def entropy(self) -> float:
        """Entropy of the distribution, in nats."""
        return math.log(self._sums.total) - self._sums.moment / self._sums.total

    @property
    def log_sum(self) -> float:
        """log of the sum of exp(logits). A token's log-probability is its logit minus this."""
        return self._sums.largest + math.log(self._sums.total)

    def log_probability(self, token: int) -> float:
        """Log-probability of a token, in nats."""
        return self.logits.item(token) - self.log_sum

    def log_probability_under(self, probabilities: np.ndarray) -> float:
        """Expected log-probability, in nats, of a token drawn with `probabilities` (floats [vocab], their sum is 1)."""
        largest = np.float32(self._sums.largest)  # float32 sums of terms near 0 err less
        return float(np.einsum("i,i->", probabilities, self.logits - largest)) + float(largest) - self.log_sum


class Reference:
    """A distribution that others are compared with; it outlives the logits that it was made from.

    Args:
        distribution: the distribution to keep, as a rule the dense action's.
        dtype: type of the probabilities that are kept, [vocab], and so of sums over them.

    Attributes:
        top: the likeliest token of the distribution.
    """

    def __init__(self, distribution: Distribution, dtype: type[np.floating[Any]]) -> None:
        exact = distribution.logits.astype(np.float64) - distribution.log_sum
        probabilities = np.exp(exact)
        self.top = distribution.top
        self._probabilities = probabilities.astype(dtype)
        # einsum, as a product of this size may wake threads of BLAS, which then keep cores from the next step
        self._negative_entropy = float(np.einsum("i,i->", probabilities, exact))

    def divergence(self, other: Distribution) -> float:
        """Kullback-Leibler divergence KL(reference || other) = sum p (log p - log q), in nats."""
        return self._negative_entropy - other.log_probability_under(self._probabilities)
