"""The costs of all actions at a context, computed for a block of contexts at once.

Computed for one context, most of the time would go into the calls to NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sol_rt.budget.cost.bytes_model import CostModel
from sol_rt.bundle.actions import Action

_BLOCK = 64  # contexts


class StepCosts(NamedTuple):
    """Costs of A actions at one context, in the cost model's unit. All but `dense` include the policy's run.

    Attributes:
        context: tokens in the cache before the step.
        costs: float64 [A].
        relative: `costs` in dense steps, float64 [A].
        useful: bool [A], the dense action and every cheaper one. Other actions cost more than dense for less quality.
        low, high: least and largest of `costs`.
        dense: cost of the dense step, without the policy.
    """

    context: int
    costs: np.ndarray
    relative: np.ndarray
    useful: np.ndarray
    low: float
    high: float
    dense: float


class StepCostTable:
    """`StepCosts` by context; keeps the block of contexts that the run is in.

    Args:
        actions: the A actions; the dense one is among them.
        cost: the cost model.
        policy_cost: cost of the policy's run that every step pays for, in the cost model's unit.
    """

    def __init__(self, actions: Sequence[Action], cost: CostModel, policy_cost: float) -> None:
        self._costs = cost.table(actions)
        self._is_dense = np.array([action == cost.dense_action for action in actions], bool)
        self._policy_cost = policy_cost
        self._block: list[StepCosts] = []

    def at(self, context: int) -> StepCosts:
        """The costs of a step with `context` tokens in the cache before it."""
        if not self._block or not 0 <= context - self._block[0].context < _BLOCK:
            self._block = self._compute(context // _BLOCK * _BLOCK)
        return self._block[context - self._block[0].context]

    def _compute(self, first: int) -> list[StepCosts]:
        """Costs at the _BLOCK contexts from `first` on."""
        contexts = np.arange(first, first + _BLOCK)
        costs = self._costs(contexts)
        dense = costs[:, self._is_dense][:, :1]
        costs = costs + self._policy_cost
        useful = (costs < dense + self._policy_cost) | self._is_dense
        low, high = costs.min(axis=1), costs.max(axis=1)
        numbers = (column.ravel().tolist() for column in (low, high, dense))
        return [StepCosts(*row) for row in zip(contexts.tolist(), costs, costs / dense, useful, *numbers, strict=True)]
