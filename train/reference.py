"""The reference's own setting (arXiv 2605.10875): its arithmetic, its action grid, its nominal costs.

Nothing is saved there: weights stay in full precision, attention is masked, pruned channels are zeroes of a dense
product, and bits are those of a fake quantization of the MLP's output. Costs are kept shares. A policy trained so runs
on this twin alone, for no bundle has these actions.

To the letter: attention over the best Quest pages of 8 tokens, by the sum over channels of max(q min, q max) of each
page's keys, up to ceil(keep * T) tokens; of the MLP's input, the ceil(prune * hidden) channels of largest size; the
MLP's output quantized symmetrically by token, with 2^(bits - 1) - 1 steps either side; the grid, keep x prune x bits;
three budgets and three penalties. Weights are those of the bundle's widest level, dequantized. Not told there, chosen
here: each query head ranks pages for itself, pages are taken whole, and the newest one always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sol_rt.actions import Action
from sol_rt.config import CONFIG_NAME, SolConfig
from sol_rt.train.kv_cache import Cache, Slots
from sol_rt.train.twin import UNROUNDED, Batch, Twin, by_rows
from sol_rt.train.weights import FloatMatrix, ModelWeights, read_bundle
from sol_rt.widths import Widths

PAGE = 8
FULL_BITS = 16
AXIS_COLUMNS = ("keep_budget", "prune_budget", "bits_budget", "keep_deviation", "prune_deviation", "bits_deviation")
"""What `axis_scalars` tells."""


def grid(keep: Sequence[int], prune: Sequence[int], bits: Sequence[int]) -> tuple[Action, ...]:
    """Every combination, from dense to sparse; percent, percent and bits."""
    levels = [sorted(axis, reverse=True) for axis in (keep, prune, bits)]
    return tuple(Action(k, p, b) for b in levels[2] for p in levels[1] for k in levels[0])


def shares(actions: Sequence[Action]) -> Tensor:
    """What each action keeps on the axes, as shares of dense: float32 [A, 3]."""
    return torch.tensor([(a.keep / 100, a.prune / 100, a.bits / FULL_BITS) for a in actions])


class NominalCost:
    """The mean of an action's three kept shares, whatever it takes: the reference's net keep. A CostModel."""

    unit = "kept share"
    name = "nominal"
    note = ""

    def __init__(self, dense: Action) -> None:
        self.dense_action = dense

    def step(self, action: Action, context: int) -> float:
        return float(shares((action,)).mean())

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        costs = shares(actions).double().mean(-1).numpy()
        return lambda contexts: np.broadcast_to(costs, (len(contexts), len(costs)))

    def dense(self, context: int) -> float:
        return self.step(self.dense_action, context)

    def policy(self) -> float:
        return 0.0


class ReferenceWeights(ModelWeights):
    """Weights of which every action reads all, and of which the MLP's input alone is pruned."""

    def keep_counts(self, action: Action) -> tuple[tuple[int, ...], ...]:
        kept = math.ceil(action.prune / 100 * self.decoder.hidden_size)
        return tuple((count,) * self.decoder.num_layers for count in (kept, 0, 0, 0))

    def widths(self, action: Action) -> Widths:
        return Widths(action.bits, action.bits)


class ReferenceTwin(Twin):
    """A decoder under the reference's actions; `bits` of an action are those of the MLP's output."""

    def __init__(self, weights: ReferenceWeights) -> None:
        super().__init__(weights, UNROUNDED, page_size=PAGE, sinks=0)

    @classmethod
    def from_bundle(cls, path: Path | str) -> ReferenceTwin:
        """With the weights of a bundle's widest level, all of them, as float32. Raises BundleError."""
        read = read_bundle(path)
        matrices, vectors = read.parts()
        config = SolConfig.from_json(Path(path) / CONFIG_NAME)
        widths = config.variants[config.dense.variant].widths
        rows = torch.arange(read.decoder.vocab_size)
        plain = {
            name: FloatMatrix(matrix.at(widths.of(name)) if name.startswith("layers.") else matrix.rows(rows))
            for name, matrix in matrices.items()
        }
        return cls(ReferenceWeights(read.decoder, plain, vectors))

    def _mlp(self, x: Tensor, layer: int, batch: Batch) -> Tensor:
        y = super()._mlp(x, layer, batch)
        return by_rows(batch.widths, y, lambda part, group: fake_quantized(part, group.widths.bits))

    def _pages(self, actions: Sequence[Action], past: Cache) -> Tensor | None:
        if all(action.keep == 100 for action in actions):
            return None
        held = (past.lengths + 1).tolist()
        tokens = [math.ceil(action.keep * length / 100) for action, length in zip(actions, held, strict=True)]
        return torch.tensor([math.ceil(count / PAGE) for count in tokens], device=past.lengths.device)

    def _read(self, q: Tensor, past: Cache, layer: int, pages: Tensor, slots: Slots) -> Tensor:
        keys = past.read_keys(layer, slots)  # [B, Hk, T, D]
        seen = torch.arange(slots.longest, device=q.device) <= slots.positions  # [B, T]
        unseen = ~seen[:, None, :, None]
        low, high = (_by_page(keys.masked_fill(unseen, -sign * math.inf), sign) for sign in (-1, 1))  # [B, Hk, P, D]
        query = torch.unflatten(q[:, :, 0], 1, (keys.shape[1], -1)).unsqueeze(3)  # [B, Hk, G, 1, D]
        score = torch.maximum(query * low.unsqueeze(2), query * high.unsqueeze(2)).sum(-1).flatten(1, 2)  # [B, H, P]
        page = torch.arange(score.shape[-1], device=q.device)
        newest = slots.positions // PAGE  # [B, 1]
        score = score.masked_fill((page > newest).unsqueeze(1), -math.inf)
        score = score.masked_fill((page == newest).unsqueeze(1), math.inf)
        order = score.argsort(dim=-1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(-1, order, page.expand_as(order))
        kept = (rank < pages[:, None, None]) & (page <= newest).unsqueeze(1)
        return kept.repeat_interleave(PAGE, dim=-1)[..., : slots.longest]


def _by_page(keys: Tensor, sign: int) -> Tensor:
    """Largest (sign 1) or smallest (-1) key of each page by channel: [B, Hk, P, D] of keys [B, Hk, T, D]."""
    missing = -keys.shape[2] % PAGE
    pages = torch.unflatten(F.pad(keys, (0, 0, 0, missing), value=-sign * math.inf), 2, (-1, PAGE))
    return pages.amax(3) if sign > 0 else pages.amin(3)


def fake_quantized(x: Tensor, bits: int) -> Tensor:
    """x [..., K] rounded symmetrically to 2^bits - 1 values, their step by token: max |x| / (2^(bits - 1) - 1)."""
    most = 2 ** (bits - 1) - 1
    step = x.abs().amax(-1, keepdim=True) / most
    return torch.where(step > 0, torch.round(x / step) * step, 0.0)


def axis_scalars(kept: Tensor, budgets: Tensor, previous: Tensor) -> Tensor:
    """What a policy is told of the axes at each step: three budgets, then three mean kept shares so far less the budget
    (0 at the first step): float32 [K, T, 6].

    Args:
        kept: float32 [A, 3], `shares` of the actions. budgets: float32 [K, 3]. previous: int64 [K, T], -1 at step 0.
    """
    taken = kept[previous.clamp_min(0)] * (previous >= 0).unsqueeze(-1)  # [K, T, 3]
    steps = torch.arange(previous.shape[1], device=previous.device).unsqueeze(-1)
    so_far = torch.where(steps > 0, taken.cumsum(1) / steps.clamp_min(1) - budgets.unsqueeze(1), 0.0)
    return torch.cat([budgets.unsqueeze(1).expand_as(so_far), so_far], dim=-1)
