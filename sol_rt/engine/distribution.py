"""softmax of a step's logits, worked out once for all who read it: the check of the numbers, sampling, the policy."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sol_rt.ops import library_path


class SoftmaxSums(NamedTuple):
    """Of logits x with the largest one m.

    Attributes:
        top: the likeliest token, the first of several; None where a logit is not finite, and sums then mean nothing.
        total: sum of exp(x - m).
        moment: sum of exp(x - m) (x - m).
    """

    top: int | None
    total: float
    moment: float


def numpy_sums(logits: np.ndarray) -> SoftmaxSums:
    """`logits` float32 [vocab]."""
    largest, least = np.maximum.reduce(logits), np.minimum.reduce(logits)
    if not (math.isfinite(largest) and math.isfinite(least)):  # NaN is both
        return SoftmaxSums(None, 1.0, 0.0)
    centred = logits - largest
    exponentials = np.exp(centred)
    # einsum, as BLAS may wake threads for a product of this size, which then keep a core from the next step
    moment = float(np.einsum("i,i->", exponentials, centred))
    return SoftmaxSums(int(logits.argmax()), float(np.add.reduce(exponentials)), moment)


@functools.cache
def native_sums() -> Callable[[np.ndarray], SoftmaxSums]:
    """As `numpy_sums`, by the native library where it was built; `logits` contiguous."""
    library = library_path()
    if library is None:
        return numpy_sums
    function: Any = ctypes.CDLL(str(library)).SolOpsSoftmaxSums
    function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    sums = (ctypes.c_float * 2)()
    address = ctypes.addressof(sums)

    def native(logits: np.ndarray) -> SoftmaxSums:
        top = function(logits.__array_interface__["data"][0], logits.size, address)
        return SoftmaxSums(top, *sums) if top >= 0 else SoftmaxSums(None, 1.0, 0.0)

    return native


class Distribution:
    """The probabilities of the next token.

    Args:
        logits: float32 [vocab]; the object holds while they do.
        sums: how they are summed.
    """

    def __init__(self, logits: np.ndarray, sums: Callable[[np.ndarray], SoftmaxSums] = numpy_sums) -> None:
        self._logits = logits
        self._sums = sums(logits)

    @property
    def logits(self) -> np.ndarray:
        """float32 [vocab]."""
        return self._logits

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the logits."""
        return self._logits.shape

    @property
    def finite(self) -> bool:
        """Whether all logits are; what else is told holds only then."""
        return self._sums.top is not None

    @property
    def top(self) -> int:
        """The likeliest token; the first of several."""
        assert self._sums.top is not None
        return self._sums.top

    @property
    def top_probability(self) -> float:
        return 1.0 / self._sums.total

    @property
    def margin(self) -> float:
        """Probability of the likeliest token less that of the second likeliest; of a single token 1."""
        others = self.logits[: self.top], self.logits[self.top + 1 :]
        second = max(float(np.maximum.reduce(part, initial=-math.inf)) for part in others)
        return -math.expm1(second - self.logits.item(self.top)) / self._sums.total

    @property
    def entropy(self) -> float:
        """Nats."""
        return math.log(self._sums.total) - self._sums.moment / self._sums.total

    @property
    def log_sum(self) -> float:
        """log of the sum of exp(logits): what a logit exceeds its log-probability by."""
        return self.logits.item(self.top) + math.log(self._sums.total)

    def log_probability(self, token: int) -> float:
        """Nats."""
        return self.logits.item(token) - self.log_sum

    def log_probability_under(self, probabilities: np.ndarray) -> float:
        """Mean log-probability in nats where tokens come with `probabilities`, floats [vocab], which sum to one."""
        return float(np.einsum("i,i->", probabilities, self.logits)) - self.log_sum


class Reference:
    """A distribution that others are compared with, kept when its logits are gone.

    Args:
        distribution: of the dense model, for one.
        dtype: of the probabilities that are kept, [vocab], and so of the sums with them.

    Attributes:
        top: its likeliest token.
    """

    def __init__(self, distribution: Distribution, dtype: type[np.floating[Any]]) -> None:
        exact = distribution.logits.astype(np.float64) - distribution.log_sum
        probabilities = np.exp(exact)
        self.top = distribution.top
        self._probabilities = probabilities.astype(dtype)
        # einsum, as a product of this size may wake threads of BLAS, which then keep cores from the next step
        self._negative_entropy = float(np.einsum("i,i->", probabilities, exact))

    def divergence(self, other: Distribution) -> float:
        """KL(reference || other) in nats: sum p (log p - log q), where log q is the logit less that of the sum."""
        return self._negative_entropy - other.log_probability_under(self._probabilities)
