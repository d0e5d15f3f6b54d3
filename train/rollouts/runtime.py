"""Runs episodes in the ONNX Runtime engine, one schedule after the other, and rewinds the cache between them.

Policies are trained on the very steps that they will decide on. On a CPU this is the fast way, and for models whose
float32 weights do not fit into memory the only one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sol_rt.bundle.actions import Action
from sol_rt.engine.distribution import Distribution, Reference
from sol_rt.engine.engine import Engine
from sol_rt.engine.step import StepOutput
from sol_rt.train.rollouts.observation import (
    RowDistribution,
    StepResult,
    check_range,
    checked_text,
    dense_scalars,
    follow,
    joined,
    relative_costs,
    spread_budget,
)
from sol_rt.train.rollouts.rollout import Choose, DenseView, Episode, RolloutSpec, StepLosses

_BLOCK = 128  # rows of logits at once; a row of a large vocabulary takes half a megabyte


class RuntimeRollouts:
    """`Rollouts` in an engine, whose cache it takes over.

    It runs the text dense as far as a call needs, so calls at rising positions cost least.

    Args:
        engine: of the bundle.
        spec: actions, costs and scalars.
    """

    def __init__(self, engine: Engine, spec: RolloutSpec) -> None:
        self.spec = spec
        self._engine = engine
        self._tokens: list[int] = []
        self._dense = 0  # tokens of the text that the cache holds from dense steps

    def open(self, tokens: Sequence[int]) -> None:
        engine = self._engine
        self._tokens = checked_text(tokens, engine.bundle.config.model.vocab_size, engine.max_context)
        self._dense = 0

    def run(self, start: int, horizon: int, budget: float | Tensor, choose: Choose, schedules: int) -> Episode:
        check_range(start, horizon, self._tokens)
        engine, tokens, after = self._engine, self._tokens[start : start + horizon], start + horizon
        budgets = spread_budget(budget, schedules)
        before = self._result(self._run_dense(start - 1, start), tokens[0])
        references = _references(self._run_dense(start, after))

        def step(t: int, actions: Sequence[int]) -> StepResult:
            output = engine.forward((tokens[t],), self.spec.actions[actions[0]])
            return self._result(output, self._tokens[start + t + 1], references[t])

        episodes = []
        for row in range(schedules):
            self._rewind(start)
            one = slice(row, row + 1)
            episodes.append(follow(self.spec, start, tokens, budgets[one], one, before, choose, step))
        return joined(episodes)

    def losses(self, start: int, length: int, action: Action) -> StepLosses:
        check_range(start, length, self._tokens)
        blocks = [(first, min(first + _BLOCK, start + length)) for first in range(start, start + length, _BLOCK)]
        pairs = np.concatenate([self._block_losses(first, stop, action) for first, stop in blocks])
        cost = relative_costs(self.spec, (action,), range(start, start + length))[:, 0]
        loss, kl, costs = (torch.tensor(values, dtype=torch.float32) for values in (*pairs.T, cost))
        return StepLosses(loss, kl, costs)

    def view(self, start: int, length: int, budget: float) -> DenseView:
        check_range(start, length, self._tokens)
        hidden: list[np.ndarray] = []
        before: list[RowDistribution] = []
        for first in range(start - 1, start + length - 1, _BLOCK):
            stop = min(first + _BLOCK, start + length - 1)
            output = self._run_dense(first, stop)
            hidden.append(output.hidden.copy())
            nexts = self._tokens[first + 1 : stop + 1]
            before += [_row(Distribution(row), token) for row, token in zip(output.logits, nexts, strict=True)]
        tokens = self._tokens[start : start + length]
        scalars = dense_scalars(start, tokens, before, budget)
        return DenseView(torch.tensor(tokens), torch.from_numpy(np.concatenate(hidden)), scalars)

    def _block_losses(self, first: int, stop: int, action: Action) -> np.ndarray:
        """Loss and divergence of an action at positions `first` … `stop` - 1, float64 [n, 2], nats."""
        output = self._run_dense(first, stop)
        pairs = np.zeros((stop - first, 2))
        if action == self.spec.cost.dense_action:
            targets = self._tokens[first + 1 : stop + 1]
            pairs[:, 0] = [
                -Distribution(row).log_probability(token) for row, token in zip(output.logits, targets, strict=True)
            ]
            return pairs
        references = _references(output)
        # backwards, so that no step reads what another one left in the cache; going back through a state runs tokens
        # again, so that there each dense step is made anew
        places = range(first, stop) if self._engine.bundle.config.kv.convolving else range(stop - 1, first - 1, -1)
        for position in places:
            self._rewind(position)
            seen = self._engine.forward((self._tokens[position],), action).distribution
            loss = -seen.log_probability(self._tokens[position + 1])
            pairs[position - first] = loss, references[position - first].divergence(seen)
        return pairs

    def _run_dense(self, first: int, stop: int) -> StepOutput:
        """Runs positions `first` … `stop` - 1 dense, behind dense ones. The output has a row for each."""
        self._rewind(first)
        output = self._engine.forward(self._tokens[first:stop], self.spec.cost.dense_action, num_logits=stop - first)
        self._dense = stop
        return output

    def _rewind(self, length: int) -> None:
        """Makes the cache hold the first `length` tokens of the text, all from dense steps."""
        engine = self._engine
        if engine.owner is not self or engine.length < self._dense:
            engine.owner, self._dense = self, 0
        self._dense = min(self._dense, length)
        engine.truncate(self._dense)
        if self._dense < length:
            engine.forward(self._tokens[self._dense : length], self.spec.cost.dense_action)
            self._dense = length

    def _result(self, output: StepOutput, target: int, reference: Reference | None = None) -> StepResult:
        """Copies a step's output, which the next step overwrites. `reference` is None for a dense step."""
        kl = 0.0 if reference is None else reference.divergence(output.distribution)
        return StepResult(
            torch.from_numpy(output.hidden.copy()), [_row(output.distribution, target)], torch.tensor([kl])
        )


def _references(output: StepOutput) -> list[Reference]:
    """Each row of dense logits as the reference of divergences."""
    return [Reference(Distribution(row), np.float64) for row in output.logits]


def _row(distribution: Distribution, target: int) -> RowDistribution:
    """What is kept of a distribution whose true next token is `target`."""
    return RowDistribution(
        distribution.entropy,
        distribution.top_probability,
        distribution.margin,
        distribution.log_probability(target),
    )
