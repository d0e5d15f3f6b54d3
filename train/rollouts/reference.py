"""Runs episodes in the torch reference model, on any torch device: all schedules in one batch, one action per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sol_rt.bundle.actions import Action
from sol_rt.train.reference_model.branch_cache import BranchCache, Prefix
from sol_rt.train.reference_model.model import ReferenceModel
from sol_rt.train.rollouts.observation import (
    RowDistribution,
    StepResult,
    check_range,
    checked_text,
    dense_scalars,
    row_distributions,
    run_episode,
    spread_budget,
)
from sol_rt.train.rollouts.rollout import Choose, Episode, PolicyView, RolloutSpec, StepLosses

_CHUNK = 256  # tokens at once in the dense pass
_ROWS = 64  # positions at once whose losses are measured


class ReferenceRollouts:
    """`Rollouts` in a reference model. All schedules share the text's keys and values, which are held once, in float32.

    Args:
        reference: the reference model of the bundle. Episodes lie on its device.
        spec: actions, costs and scalars.
    """

    def __init__(self, reference: ReferenceModel, spec: RolloutSpec) -> None:
        self.spec, self.products = spec, str(reference.arithmetic.products).removeprefix("torch.")
        self._reference = reference
        table = reference.weights.vector("rope.cos")
        self._device, self._longest = table.device, len(table)
        self._tokens: list[int] = []
        self._before: list[RowDistribution] = []  # [p]: distribution after position p, with token p + 1

    def open(self, tokens: Sequence[int]) -> None:
        self._tokens = checked_text(tokens, self._reference.decoder.vocab_size, self._longest)
        self._ids = ids = torch.tensor(self._tokens, dtype=torch.int64, device=self._device)
        self._before = []
        cache = self._reference.new_cache(1)
        cache.reserve(len(ids), step=1)
        hidden = []
        for first in range(0, len(ids), _CHUNK):
            chunk = ids[None, first : first + _CHUNK]
            logits, states = self._reference(chunk, self.spec.cost.dense_action, cache)
            hidden.append(states[0])
            targets = ids[first + 1 : first + _CHUNK + 1]
            self._before += row_distributions(logits[0, : len(targets)], targets)
        self._hidden = torch.cat(hidden) if hidden else torch.empty(0, device=self._device)
        self._prefix = Prefix.of(cache)

    def run(self, start: int, horizon: int, budget: float | Tensor, choose: Choose, schedules: int) -> Episode:
        check_range(start, horizon, self._tokens)
        tokens = self._tokens[start : start + horizon]
        cache = self._branches(torch.full((schedules,), start), horizon)
        before = StepResult(
            self._hidden[start - 1].expand(schedules, -1),
            [self._before[start - 1]] * schedules,
            torch.zeros(schedules, device=self._device),
        )
        reference = self._log_probabilities(start, horizon)

        def step(t: int, actions: Sequence[int]) -> StepResult:
            token, target = self._ids[start + t : start + t + 2].unsqueeze(1).expand(2, schedules)
            logits, hidden = self._reference.step(token, [self.spec.actions[action] for action in actions], cache)
            return StepResult(hidden, row_distributions(logits, target), _divergence(reference[t], logits))

        budgets = spread_budget(budget, schedules)
        return run_episode(self.spec, start, tokens, budgets, slice(0, schedules), before, choose, step)

    def losses(self, start: int, length: int, actions: Sequence[Action]) -> StepLosses:
        check_range(start, length, self._tokens)
        stop = start + length
        blocks = [(first, min(first + _ROWS, stop)) for first in range(start, stop, _ROWS)]
        parts = [self._block_losses(first, last, actions) for first, last in blocks]
        loss, kl = (torch.cat(of_blocks) for of_blocks in zip(*parts, strict=True))
        return StepLosses(loss, kl)

    def policy_inputs(self, start: int, length: int, budget: float) -> PolicyView:
        check_range(start, length, self._tokens)
        tokens = self._tokens[start : start + length]
        scalars = dense_scalars(start, tokens, self._before[start - 1 : start - 1 + length], budget)
        return PolicyView(
            self._ids[start : start + length],
            self._hidden[start - 1 : start - 1 + length],
            scalars.to(self._device),
        )

    def losses_along_run(self, start: int, taken: Sequence[int], budget: float) -> tuple[PolicyView, StepLosses]:
        check_range(start, len(taken), self._tokens)
        actions = self.spec.actions
        cache = self._branches(torch.full((len(actions),), start), len(taken))
        reference = self._log_probabilities(start, len(taken))
        hidden, before = [self._hidden[start - 1]], [self._before[start - 1]]
        losses, divergences = [], []
        for at, run in enumerate(taken):
            token, target = self._ids[start + at : start + at + 2].unsqueeze(1).expand(2, len(actions))
            logits, states = self._reference.step(token, actions, cache)
            losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
            divergences.append(_divergence(reference[at], logits))
            hidden.append(states[run])
            before += row_distributions(logits[run : run + 1], target[:1])
            cache.follow(run)
        ids = self._ids[start : start + len(taken)]
        scalars = dense_scalars(start, ids.tolist(), before[:-1], budget).to(self._device)
        return PolicyView(ids, torch.stack(hidden[:-1]), scalars), StepLosses(
            torch.stack(losses), torch.stack(divergences)
        )

    def _block_losses(self, first: int, stop: int, actions: Sequence[Action]) -> tuple[Tensor, Tensor]:
        """Loss and divergence of A actions at positions `first` … `stop` - 1, float32 [n, A] each, nats.

        Every position is a row of the batch with a prefix of its own.
        """
        ids = self._ids[first : stop + 1]
        reference = self._log_probabilities(first, stop - first)
        dense = torch.tensor([-row.log_likelihood for row in self._before[first:stop]], device=self._device)
        losses, divergences = [], []
        for action in actions:
            if action == self.spec.cost.dense_action:
                losses.append(dense)
                divergences.append(torch.zeros_like(dense))
                continue
            cache = self._branches(torch.arange(first, stop), 1)
            logits, _ = self._reference.step(ids[:-1], [action] * (stop - first), cache)
            losses.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
            divergences.append(_divergence(reference, logits))
        return torch.stack(losses, -1), torch.stack(divergences, -1)

    def _branches(self, starts: Tensor, capacity: int) -> BranchCache:
        return BranchCache(self._prefix, starts, self._reference.decoder, self._reference.arithmetic.kv_dtype, capacity)

    def _log_probabilities(self, start: int, length: int) -> Tensor:
        """Log-probabilities of the dense steps at `length` positions from `start` on, float32 [length, vocab]."""
        hidden = self._hidden[start : start + length]
        return torch.log_softmax(self._reference.logits(hidden.unsqueeze(1), self.spec.cost.dense_action)[:, 0], dim=-1)


def _divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || other) in nats, float32 [B].

    Args:
        reference: log-probabilities, [vocab] or [B, vocab].
        logits: of the other, [B, vocab].
    """
    return (reference.exp() * (reference - torch.log_softmax(logits, dim=-1))).sum(-1)
