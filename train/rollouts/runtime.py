"""Runs episodes in the ONNX Runtime engine, one schedule after the other, and rewinds the cache between them.

Policies are trained on the very steps that they will decide on. On a CPU this is the fast way, and for models whose
float32 weights do not fit into memory the only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sol_rt.bundle.actions import Action
from sol_rt.engine.distribution import Distribution, Reference
from sol_rt.engine.step import StepOutput
from sol_rt.generate.native.engine import Engine
from sol_rt.train.rollouts.observation import (
    RowDistribution,
    StepResult,
    check_range,
    checked_text,
    dense_scalars,
    joined,
    run_episode,
    spread_budget,
)
from sol_rt.train.rollouts.rollout import Choose, Episode, PolicyView, RolloutSpec, StepLosses

_BLOCK = 128  # rows of logits at once; a row of a large vocabulary takes half a megabyte
_STEPS = 16  # tokens of a call that get the bits that each has in a step of its own (kFewTokens of the core)


class RuntimeRollouts:
    """`Rollouts` in an engine, whose cache it takes over.

    It runs the text dense as far as a call needs, so calls at rising positions cost least. What lies before a call's
    positions is run as a prompt, the positions themselves with the bits of dense steps.

    Args:
        engine: of the bundle.
        spec: actions, costs and scalars.
    """

    def __init__(self, engine: Engine, spec: RolloutSpec) -> None:
        self.spec, self.products = spec, "float32"
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
        references = _references(self._run_dense(start, after), np.float64)

        def step(t: int, actions: Sequence[int]) -> StepResult:
            output = engine.forward((tokens[t],), self.spec.actions[actions[0]])
            return self._result(output, self._tokens[start + t + 1], references[t])

        episodes = []
        for row in range(schedules):
            self._rewind(start)
            one = slice(row, row + 1)
            episodes.append(run_episode(self.spec, start, tokens, budgets[one], one, before, choose, step))
        return joined(episodes)

    def losses(self, start: int, length: int, actions: Sequence[Action]) -> StepLosses:
        check_range(start, length, self._tokens)
        blocks = [(first, min(first + _BLOCK, start + length)) for first in range(start, start + length, _BLOCK)]
        pairs = np.concatenate([self._block_losses(first, stop, actions) for first, stop in blocks])
        return StepLosses(*torch.tensor(pairs, dtype=torch.float32).unbind(-1))

    def policy_inputs(self, start: int, length: int, budget: float) -> PolicyView:
        check_range(start, length, self._tokens)
        hidden: list[np.ndarray] = []
        before: list[RowDistribution] = []
        for first in range(start - 1, start + length - 1, _BLOCK):
            stop = min(first + _BLOCK, start + length - 1)
            output = self._run_dense(first, stop)
            hidden.append(output.hidden)
            nexts = self._tokens[first + 1 : stop + 1]
            before += [_row(Distribution(row), token) for row, token in zip(output.logits, nexts, strict=True)]
        tokens = self._tokens[start : start + length]
        scalars = dense_scalars(start, tokens, before, budget)
        return PolicyView(torch.tensor(tokens), torch.from_numpy(np.concatenate(hidden)), scalars)

    def losses_along_run(self, start: int, taken: Sequence[int], budget: float) -> tuple[PolicyView, StepLosses]:
        check_range(start, len(taken), self._tokens)
        stop = start + len(taken)
        before = self._run_dense(start - 1, start)
        references = [
            reference
            for first in range(start, stop, _BLOCK)
            for reference in _references(self._run_dense(first, min(first + _BLOCK, stop)), np.float32)
        ]
        self._rewind(start)
        hidden, rows = np.empty((len(taken), before.hidden.shape[-1]), np.float32), []
        pairs = np.zeros((len(taken), len(self.spec.actions), 2))
        for at, run in enumerate(taken):
            token, target = self._tokens[start + at : start + at + 2]
            hidden[at] = before.hidden[-1]
            rows.append(_row(before.distribution, token))
            for place in [*(other for other in range(pairs.shape[1]) if other != run), run]:  # the cache keeps the last
                self._engine.truncate(start + at)
                before = self._engine.forward((token,), self.spec.actions[place])
                seen = before.distribution
                pairs[at, place] = -seen.log_probability(target), references[at].divergence(seen)
        tokens = self._tokens[start:stop]
        view = PolicyView(torch.tensor(tokens), torch.from_numpy(hidden), dense_scalars(start, tokens, rows, budget))
        return view, StepLosses(*torch.tensor(pairs, dtype=torch.float32).unbind(-1))

    def _block_losses(self, first: int, stop: int, actions: Sequence[Action]) -> np.ndarray:
        """Loss and divergence of A actions at positions `first` … `stop` - 1, float64 [n, A, 2], nats."""
        output = self._run_dense(first, stop)
        references = _references(output, np.float64)
        targets = self._tokens[first + 1 : stop + 1]
        dense = [-Distribution(row).log_probability(token) for row, token in zip(output.logits, targets, strict=True)]
        pairs = np.zeros((stop - first, len(actions), 2))
        # backwards, so that no step reads what another one left in the cache; going back through a state runs tokens
        # again, so that there each dense step is made anew
        places = range(stop - first)
        for at in places if self._engine.bundle.config.kv.convolving else reversed(places):
            for place, action in enumerate(actions):
                if action == self.spec.cost.dense_action:
                    pairs[at, place, 0] = dense[at]
                    continue
                self._rewind(first + at)
                seen = self._engine.forward((self._tokens[first + at],), action).distribution
                pairs[at, place] = -seen.log_probability(targets[at]), references[at].divergence(seen)
        return pairs

    def _run_dense(self, first: int, stop: int) -> StepOutput:
        """Runs positions `first` … `stop` - 1 as dense steps, after dense ones. The output has a row for each."""
        self._rewind(first)
        outputs = []
        for at in range(first, stop, _STEPS):
            tokens = self._tokens[at : min(at + _STEPS, stop)]
            outputs.append(self._engine.forward(tokens, self.spec.cost.dense_action, num_logits=len(tokens)))
        self._dense = stop
        logits, hidden = (np.concatenate([getattr(of, name) for of in outputs]) for name in ("logits", "hidden"))
        return StepOutput(logits, hidden, outputs[-1].distribution)

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
        """Result of a step. `reference` is None for a dense step."""
        kl = 0.0 if reference is None else reference.divergence(output.distribution)
        return StepResult(torch.from_numpy(output.hidden), [_row(output.distribution, target)], torch.tensor([kl]))


def _references(output: StepOutput, dtype: type[np.floating[Any]]) -> list[Reference]:
    """Each row of dense logits as the reference of divergences, which keeps probabilities in `dtype`."""
    return [Reference(Distribution(row), dtype) for row in output.logits]


def _row(distribution: Distribution, target: int) -> RowDistribution:
    """Summary of a distribution whose true next token is `target`."""
    return RowDistribution(
        distribution.entropy,
        distribution.top_probability,
        distribution.margin,
        distribution.log_probability(target),
    )
