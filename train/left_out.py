"""What cheap steps of the twin leave out, as shares: whether they hint at coming losses can be studied with it."""

from __future__ import annotations

import torch
from torch import Tensor


class LeftOut:
    """Shares left out by one step of B rows, added up over layers; a new one each step.

    Args:
        rows: B.
        device: of the twin.
    """

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        self._attention = torch.zeros(rows, device=device)
        self._activation = torch.zeros(rows, device=device)

    def add_attention(self, logits: Tensor, read: Tensor) -> None:
        """Of a layer's attention logits [..., B, ..., T], scaled, those of tokens to come -inf, `read` says which were
        read. Both are [B, H, T].
        """
        kept = logits.masked_fill(~read, -torch.inf).logsumexp(-1) - logits.logsumexp(-1)
        self._attention += (1 - kept.exp()).mean(-1)

    def add_pruned(self, before: Tensor, after: Tensor) -> None:
        """Of a matrix's input [B, 1, K] and what pruning left of it."""
        whole = before.abs().sum(-1)
        self._activation += torch.where(whole > 0, 1 - after.abs().sum(-1) / whole, 0.0).squeeze(-1)

    def columns(self, layers: int) -> Tensor:
        """float32 [B, 2], the columns `sol_rt.train.rollout.LEFT_OUT`; four matrices a layer."""
        return torch.stack([self._attention / layers, self._activation / (4 * layers)], dim=-1)
