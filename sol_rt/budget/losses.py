"""Expected loss of each action of a bundle, at any context.

The export measures losses at a few contexts (docs/reference/bundle-details.md section 4). Between two of them the loss
is interpolated linearly in the logarithm of the context; beyond the first and the last it stays the same. A loss in
nats per token raises perplexity by the factor exp(loss), so a share of perplexity, as `--max-loss` takes, is
exp(loss) - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig


class ActionLosses:
    """The measured losses of a bundle's actions.

    Args:
        config: the bundle's config. An action with a loss but none by context has that loss at every context.

    Attributes:
        measured: the actions that have a loss; empty if the export measured none.
    """

    def __init__(self, config: SolConfig) -> None:
        curves: dict[Action, Mapping[int, float]] = {}
        for entry in config.actions:
            if entry.losses:
                curves[entry.action] = entry.losses
            elif entry.loss is not None:
                curves[entry.action] = {1: entry.loss}
        if curves:
            curves[config.dense] = {1: 0.0}  # losses are relative to dense
        self._curves = {
            action: ([math.log(context) for context in sorted(curve)], [curve[context] for context in sorted(curve)])
            for action, curve in curves.items()
        }
        self.measured = frozenset(curves)

    def at(self, action: Action, context: int) -> float:
        """Expected added loss over dense in nats per token; NaN if the action was not measured."""
        curve = self._curves.get(action)
        if curve is None:
            return math.nan
        return float(np.interp(math.log(max(context, 1)), *curve))

    def table(self, actions: Sequence[Action], context: int) -> np.ndarray:
        """`at` for each of the actions, float64 [A]."""
        return np.array([self.at(action, context) for action in actions], np.float64)


def nats_of_share(share: float) -> float:
    """Nats per token that raise perplexity by `share`: 0.01 gives log(1.01)."""
    return math.log1p(share)


def share_of_nats(loss: float) -> float:
    """The share by which `loss` nats per token raise perplexity: 0.01 gives exp(0.01) - 1."""
    return math.expm1(loss)
