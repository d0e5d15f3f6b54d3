"""The policy as a torch module: the network of sol_rt.export.graphs.policy_graph, its parameters under the same names.

A whole episode runs in one call (`forward`, for updates) or step by step with a state (`step`, for rollouts); both give
the same logits. Only training needs standardised inputs. They are linear in front of a matrix of the graph: `exported`
multiplies them in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sol_rt.export.graphs.policy_graph import PolicyShape
from sol_rt.train.config import PolicyConfig

Embed = Callable[[Tensor], Tensor]
"""Looks up rows of the model's embedding: float32 [..., H] of tokens int64 [...]."""

_LEAST_DEVIATION = 1e-3  # an input that varies less says nothing


class PolicyNetwork(nn.Module):
    """A causal transformer of one layer over the steps of an episode.

    Inputs of both calls, with B episodes and T steps (`step` has no T):
        hidden: float32 [B, T, hidden], final norm output of the step that produced the current token.
        embedding: float32 [B, T, hidden], the current token's row of the embedding at its widest level, unscaled.
        scalars: float32 [B, T, n], in the order of the config's `policy.scalars`.
        previous: int64 [B, T], index of the last step's action, -1 at the start.

    Args:
        shape: sizes. Parameters are drawn by torch; the action heads start small, so that a new policy is near uniform.
        use_hidden, use_embedding: whether these inputs count.
    """

    def __init__(self, shape: PolicyShape, *, use_hidden: bool = True, use_embedding: bool = True) -> None:
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
        used = torch.tensor([float(use_hidden), float(use_embedding)]).repeat_interleave(shape.hidden_size)
        for name, used_inputs in (("observed", used), ("told", torch.ones(shape.num_scalars))):
            self.register_buffer(f"{name}_used", used_inputs, persistent=False)
            self.register_buffer(f"{name}_mean", torch.zeros_like(used_inputs))
            self.register_buffer(f"{name}_scale", used_inputs.clone())

    @torch.no_grad()
    def standardise(self, hidden: Tensor, embedding: Tensor, scalars: Tensor) -> None:
        """Takes mean and deviation of each input from examples [n, hidden], [n, hidden], [n, scalars]: from then on
        inputs are measured from that mean in that deviation. One that hardly varies among them stays as it is.
        """
        for name, examples in (("observed", torch.cat([hidden, embedding], dim=-1)), ("told", scalars)):
            deviation = examples.std(dim=0)
            varies = deviation > _LEAST_DEVIATION
            self.get_buffer(f"{name}_mean").copy_(torch.where(varies, examples.mean(dim=0), 0.0))
            scale = torch.where(varies, 1 / deviation, 1.0)
            self.get_buffer(f"{name}_scale").copy_(scale * self.get_buffer(f"{name}_used"))

    @torch.no_grad()
    def begin_at(self, logits: Tensor) -> None:
        """Sets the last bias so that, other parameters still near 0, every step's logits are about these [A]."""
        self.actions.bias.copy_(logits - logits.mean())

    @torch.no_grad()
    def exported(self) -> dict[str, npt.NDArray[np.float32]]:
        """The parameters of the graph, as `build_policy` takes them, in float64 until the end."""
        values = {name: self.get_parameter(name).double() for name, _ in self.named_parameters()}
        for name, inputs in (("input", "observed"), ("scalars.0", "told"), ("direct.0", "told")):
            mean, scale = (self.get_buffer(f"{inputs}_{part}").double() for part in ("mean", "scale"))
            weight = values[f"{name}.weight"]
            scaled = weight[:, : scale.numel()] * scale
            values[f"{name}.bias"] = values[f"{name}.bias"] - scaled @ mean
            values[f"{name}.weight"] = torch.cat([scaled, weight[:, scaled.shape[1] :]], dim=1)
        return {name: value.float().cpu().numpy() for name, value in values.items()}

    def forward(
        self, hidden: Tensor, embedding: Tensor, scalars: Tensor, previous: Tensor, shown: Tensor | None = None
    ) -> Tensor:
        """Action logits float32 [B, T, A] of the first T steps of B episodes, T at most the horizon.

        `shown`, broadcast over [B, T, 2 hidden], multiplies hidden state and embedding: dropout.
        """
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        scalars = self._standardised("told", scalars)
        x = self._observe(hidden, embedding, scalars, previous, shown) + self.position(steps)
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
        scalars = self._standardised("told", scalars)
        x = self._observe(hidden, embedding, scalars, previous) + self.position.weight[step]
        q, k, v = self._heads(x.unsqueeze(1))  # [B, heads, 1, size]
        state = state.clone()
        state[:, 0, 0, :, step], state[:, 0, 1, :, step] = k[:, :, 0], v[:, :, 0]
        keys, values = state[:, 0, 0, :, : step + 1], state[:, 0, 1, :, : step + 1]
        x = x + self._merge(F.scaled_dot_product_attention(q, keys, values)).squeeze(1)
        return self._decide(x, scalars), state

    def _standardised(self, name: str, inputs: Tensor) -> Tensor:
        return (inputs - self.get_buffer(f"{name}_mean")) * self.get_buffer(f"{name}_scale")

    def _observe(
        self, hidden: Tensor, embedding: Tensor, scalars: Tensor, previous: Tensor, shown: Tensor | None = None
    ) -> Tensor:
        observed = self._standardised("observed", torch.cat([hidden, embedding], dim=-1))
        if shown is not None:
            observed = observed * shown
        x: Tensor = self.input(torch.cat([observed, self.scalars(scalars), self.previous(previous + 1)], dim=-1))
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


def new_network(config: PolicyConfig, seed: int, hidden_size: int, num_scalars: int, num_actions: int) -> PolicyNetwork:
    """An untrained network. The seed fixes its parameters; torch's global generator is left as it was."""
    shape = PolicyShape(
        hidden_size,
        num_scalars,
        num_actions,
        config.horizon,
        config.width,
        config.heads,
        config.scalar_size,
        config.action_size,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PolicyNetwork(shape, use_hidden=config.use_hidden, use_embedding=config.use_embedding)
