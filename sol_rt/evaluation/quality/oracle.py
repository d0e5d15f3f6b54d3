"""The best choice of actions in hindsight: how much of a loss any policy could avoid at a cost.

The choice knows what every action loses at every token. At each token it takes the action of least divergence +
multiplier * cost, with the multiplier at which all tokens together cost the budget (Lagrangian relaxation; Everett,
Operations Research 11(3), 1963).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_HALVINGS = 80
_LARGEST = 1e9  # chooses the cheapest actions, even if costs are almost equal


def hindsight(losses: npt.NDArray[np.float64], costs: npt.NDArray[np.float64], budget: float) -> npt.NDArray[np.int64]:
    """The actions, int64 [n], of least total loss whose mean cost is the budget or just below.

    Where the budget is below the cheapest actions, it returns these.

    Args:
        losses: loss of every action at every token, [n, A].
        costs: relative cost of every action at every token, [n, A].
        budget: requested relative cost.
    """
    low, high = 0.0, _LARGEST
    rows = np.arange(len(losses))
    if float(costs[rows, losses.argmin(1)].mean()) <= budget:
        return losses.argmin(1)
    for _ in range(_HALVINGS):
        multiplier = (low + high) / 2
        chosen = (losses + multiplier * costs).argmin(1)
        if float(costs[rows, chosen].mean()) > budget:
            low = multiplier
        else:
            high = multiplier
    return (losses + high * costs).argmin(1)
