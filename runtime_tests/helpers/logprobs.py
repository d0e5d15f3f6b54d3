"""Log-probabilities worked out from the logits of one batch, for what a runtime scores step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sol_rt.generate.native.session import Session


def full_logprobs(engine: Session, tokens: Sequence[int]) -> np.ndarray:
    """Log-probabilities of each token after the first, of one dense batch, float64."""
    engine.owner = None  # whoever scored last finds that its cache is gone
    engine.reset()
    logits = engine.forward(tokens, engine.bundle.config.dense, num_logits=len(tokens)).logits.astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.asarray(logprobs[np.arange(len(tokens) - 1), tokens[1:]])
