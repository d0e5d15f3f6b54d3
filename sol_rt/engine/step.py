"""`StepOutput`: the results of a run of tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sol_rt.engine.distribution import Distribution


class StepOutput(NamedTuple):
    """The result of `Session.forward`, in arrays of its own.

    Attributes:
        logits: float32 [num_logits, vocab].
        hidden: float32 [num_logits, hidden], the output of the final norm.
        distribution: the probabilities of the next token, from the last row of logits.
    """

    logits: np.ndarray
    hidden: np.ndarray
    distribution: Distribution
