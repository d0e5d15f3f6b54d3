"""The policy as a torch module: the network of `sol_rt.export.policy_graph`, its parameters under the same names.

`network.state_dict()` as NumPy arrays is what `build_policy` takes. A whole episode runs in one call (`forward`, for
updates) or step by step with a state (`step`, for rollouts); both give the same logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sol_rt.export.policy_graph import PolicyShape


class PolicyNetwork(nn.Module):
    """A causal transformer of one layer over the steps of an episode.

    Inputs of both calls, with B episodes and T steps (`step` has no T):
        hidden: float32 [B, T, hidden], final norm output of the step that produced the current token.
        embedding: float32 [B, T, hidden], the current token's row of the embedding at its widest level, unscaled.
        scalars: float32 [B, T, n], in the order of the config's `policy.scalars`.
        previous: int64 [B, T], index of the last step's action, -1 at the start.

    Args:
        shape: sizes. Parameters are drawn by torch; the action heads start small, so that a new policy is near uniform.
    """

    def __init__(self, shape: PolicyShape) -> None:
        super().__init__()
        self.shape = shape
        width, small = shape.width, shape.scalar_size
        self.scalars = nn.Sequential(nn.Linear(shape.num_scalars, small), nn.GELU(), nn.Linear(small, small))
        self.previous = nn.Embedding(shape.num_actions + 1, shape.action_size)
        self.input = nn.Linear(2 * shape.hidden_size + small + shape.action_size, width)
        self.position = nn.Embedding(shape.horizon, width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)
        self.actions = nn.Linear(width, shape.num_actions)
        self.direct = nn.Sequential(nn.Linear(shape.num_scalars, small), nn.GELU(), nn.Linear(small, shape.num_actions))
        for name in ("actions", "direct.2"):
            nn.init.normal_(self.get_parameter(f"{name}.weight"), std=0.01)
            nn.init.zeros_(self.get_parameter(f"{name}.bias"))

    def forward(self, hidden: Tensor, embedding: Tensor, scalars: Tensor, previous: Tensor) -> Tensor:
        """Action logits float32 [B, T, A] of the first T steps of B episodes, T at most the horizon."""
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        x = self._observe(hidden, embedding, scalars, previous) + self.position(steps)
        q, k, v = self._heads(x)  # [B, heads, T, size]
        x = x + self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self._decide(x, scalars)

    def new_state(self, episodes: int) -> Tensor:
        """State of B episodes at their start: float32 [B, *state_shape], each as the graph's `past_state`."""
        return self.position.weight.new_zeros(episodes, *self.shape.state_shape)

    def step(
        self, hidden: Tensor, embedding: Tensor, scalars: Tensor, previous: Tensor, step: int, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Step `step` (0 … horizon - 1) of B episodes: action logits float32 [B, A] and the state after it."""
        x = self._observe(hidden, embedding, scalars, previous) + self.position.weight[step]
        q, k, v = self._heads(x.unsqueeze(1))  # [B, heads, 1, size]
        state = state.clone()
        state[:, 0, 0, :, step], state[:, 0, 1, :, step] = k[:, :, 0], v[:, :, 0]
        keys, values = state[:, 0, 0, :, : step + 1], state[:, 0, 1, :, : step + 1]
        x = x + self._merge(F.scaled_dot_product_attention(q, keys, values)).squeeze(1)
        return self._decide(x, scalars), state

    def _observe(self, hidden: Tensor, embedding: Tensor, scalars: Tensor, previous: Tensor) -> Tensor:
        parts = [hidden, embedding, self.scalars(scalars), self.previous(previous + 1)]
        x: Tensor = self.input(torch.cat(parts, dim=-1))
        return x

    def _heads(self, x: Tensor) -> list[Tensor]:
        """q, k, v of x [B, T, width], each [B, heads, T, size]."""
        parts = torch.chunk(self.qkv(self.norm1(x)), 3, dim=-1)
        return [torch.unflatten(part, -1, (self.shape.heads, -1)).transpose(1, 2) for part in parts]

    def _merge(self, y: Tensor) -> Tensor:
        merged: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return merged

    def _decide(self, x: Tensor, scalars: Tensor) -> Tensor:
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.actions(self.norm(x)) + self.direct(scalars)
        return logits
