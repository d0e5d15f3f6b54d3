"""Losses as shares of perplexity.

A loss in nats per token raises perplexity by the factor exp(loss), so a share of perplexity, as `--max-loss` takes, is
exp(loss) - 1.
"""

from __future__ import annotations

import math


def nats_of_share(share: float) -> float:
    """Nats per token that raise perplexity by `share`: 0.01 gives log(1.01)."""
    return math.log1p(share)


def share_of_nats(loss: float) -> float:
    """The share by which `loss` nats per token raise perplexity: 0.01 gives exp(0.01) - 1."""
    return math.expm1(loss)
