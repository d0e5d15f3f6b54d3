"""The policy network in torch. `sol_rt.export.graphs.policy_graph` has the same network as a graph, with equal names.

A whole episode runs in one call (`forward`, for updates) or step by step with a state (`step`, for rollouts). Both give
the same logits. Training standardises the inputs; the graph does not, so `exported` multiplies means and deviations
into the matrices that follow.
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

_LEAST_DEVIATION = 1e-3  # an input that varies less is constant, and is not standardised


class PolicyNetwork(nn.Module):
    """A causal transformer of one layer over the steps of an episode, plus two linear layers of the step's scalars.

    With width 0 there are those two layers alone; they read hidden state and embedding beside the scalars.

    Inputs of `forward`, for B episodes of T steps; those of `step` lack T:
        hidden: float32 [B, T, H], final norm output of the step that produced the current token.
        embedding: float32 [B, T, H], the current token's row of the embedding with all its bits, unscaled.
        scalars: float32 [B, T, n], in the order of the config's `policy.scalars`.
        previous: int64 [B, T], index of the last step's action, -1 at the start.

    torch draws the parameters. The layers that give logits start small, so that a new policy is near uniform.

    Args:
        shape: sizes, and which inputs the network reads.
    """

    def __init__(self, shape: PolicyShape) -> None:
        super().__init__()
        self.shape = shape
        width, small = shape.width, shape.scalar_size
        if width:
            self.scalars = nn.Sequential(nn.Linear(shape.num_scalars, small), nn.GELU(), nn.Linear(small, small))
            self.previous = nn.Embedding(shape.num_actions + 1, shape.action_size)
            self.input = nn.Linear(shape.observed_size + small + shape.action_size, width)
            self.position = nn.Embedding(shape.horizon, width)
            self.norm1 = nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width)
            self.output = nn.Linear(width, width)
            self.norm2 = nn.LayerNorm(width)
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)
            self.norm = nn.LayerNorm(width)
            self.actions = nn.Linear(width, shape.num_actions)
        direct = shape.num_scalars + (0 if width else shape.observed_size)
        self.direct = nn.Sequential(nn.Linear(direct, small), nn.GELU(), nn.Linear(small, shape.num_actions))
        for name in ("direct.2", "actions") if width else ("direct.2",):
            nn.init.normal_(self.get_parameter(f"{name}.weight"), std=0.01)
            nn.init.zeros_(self.get_parameter(f"{name}.bias"))
        for name, size in (("observed", shape.observed_size), ("told", shape.num_scalars)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    @torch.no_grad()
    def standardise(self, hidden: Tensor, embedding: Tensor, scalars: Tensor) -> None:
        """Sets mean and standard deviation of each input, by which the network standardises it from then on.

        An input that hardly varies among the examples stays as it is.

        Args:
            hidden, embedding: float32 [n, H], examples of these inputs.
            scalars: float32 [n, number of scalars].
        """
        for name, examples in (("observed", self._read(hidden, embedding)), ("told", scalars)):
            if not examples.shape[-1]:
                continue
            deviation = examples.std(dim=0)
            varies = deviation > _LEAST_DEVIATION
            self.get_buffer(f"{name}_mean").copy_(torch.where(varies, examples.mean(dim=0), 0.0))
            self.get_buffer(f"{name}_scale").copy_(torch.where(varies, 1 / deviation, 1.0))

    @torch.no_grad()
    def begin_at(self, logits: Tensor) -> None:
        """Sets the last bias so that a new network's logits are about these, float32 [A], at every step."""
        self.get_parameter("direct.2.bias").copy_(logits - logits.mean())

    @torch.no_grad()
    def take_units(self, weight: Tensor, bias: Tensor) -> None:
        """Makes the first units of a network of width 0 these, which read inputs that are not standardised.

        Args:
            weight: float32 [units, scalars + observed].
            bias: float32 [units].
        """
        mean, scale = (
            torch.cat([self.get_buffer(f"{name}_{part}") for name in ("told", "observed")])
            for part in ("mean", "scale")
        )
        self.get_parameter("direct.0.weight")[: len(bias)] = weight / scale
        self.get_parameter("direct.0.bias")[: len(bias)] = bias + weight @ mean

    @torch.no_grad()
    def fit_units(self, count: int, scalars: Tensor, hidden: Tensor, embedding: Tensor, wanted: Tensor) -> None:
        """Sets the last layer so that logits are about the wanted ones, by least squares on the first `count` units.

        Args:
            count: number of units; others count for nothing at first.
            scalars, hidden, embedding: float32 [n, …], as `forward` takes them.
            wanted: float32 [n, A].
        """
        inputs = torch.cat([self._standardised("told", scalars), self._observed(hidden, embedding)], dim=-1)
        units = self.direct[:2](inputs)[:, :count].double()
        means = units.mean(0), wanted.double().mean(0)
        found = torch.linalg.lstsq((units - means[0]).cpu(), (wanted - means[1]).cpu(), driver="gelsd").solution
        weight = self.get_parameter("direct.2.weight")
        weight.zero_()
        weight[:, :count] = found.T
        self.get_parameter("direct.2.bias").copy_(means[1] - found.T.to(means[0]) @ means[0])

    @torch.no_grad()
    def exported(self) -> dict[str, npt.NDArray[np.float32]]:
        """The graph's parameters, as `build_policy` takes them, with the standardisation multiplied in (in float64)."""
        values = {name: self.get_parameter(name).double() for name, _ in self.named_parameters()}
        layers = {"direct.0": ["told", "observed"]}
        if self.shape.width:
            layers = {"input": ["observed"], "scalars.0": ["told"], "direct.0": ["told"]}
        for name, inputs in layers.items():
            mean, scale = (
                torch.cat([self.get_buffer(f"{each}_{part}").double() for each in inputs]) for part in ("mean", "scale")
            )
            weight = values[f"{name}.weight"]
            scaled = weight[:, : scale.numel()] * scale
            values[f"{name}.bias"] = values[f"{name}.bias"] - scaled @ mean
            values[f"{name}.weight"] = torch.cat([scaled, weight[:, scaled.shape[1] :]], dim=1)
        return {name: value.float().cpu().numpy() for name, value in values.items()}

    def forward(
        self, hidden: Tensor, embedding: Tensor, scalars: Tensor, previous: Tensor, shown: Tensor | None = None
    ) -> Tensor:
        """Action logits, float32 [B, T, A], of the first T steps of B episodes, where T is at most the horizon.

        Args:
            hidden, embedding, scalars, previous: as the class says.
            shown: dropout's factors for what is read of hidden state and embedding, broadcast to [B, T, their size];
                None without dropout.
        """
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        scalars, observed = self._standardised("told", scalars), self._observed(hidden, embedding, shown)
        if not self.shape.width:
            return self._direct(scalars, observed)
        x = self._joined(observed, scalars, previous) + self.position(steps)
        q, k, v = self._heads(x)  # [B, heads, T, size]
        x = x + self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self._decide(x) + self._direct(scalars)

    def new_state(self, episodes: int) -> Tensor:
        """State of B episodes at their start: float32 [B, *state_shape], each row as the graph's `past_state`."""
        return self.get_buffer("told_mean").new_zeros(episodes, *self.shape.state_shape)

    def step(
        self, hidden: Tensor, embedding: Tensor, scalars: Tensor, previous: Tensor, step: int, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Step `step`, 0 … horizon - 1, of B episodes: action logits, float32 [B, A], and the state after it."""
        scalars, observed = self._standardised("told", scalars), self._observed(hidden, embedding)
        if not self.shape.width:
            return self._direct(scalars, observed), state
        x = self._joined(observed, scalars, previous) + self.position.weight[step]
        q, k, v = self._heads(x.unsqueeze(1))  # [B, heads, 1, size]
        state = state.clone()
        state[:, 0, 0, :, step], state[:, 0, 1, :, step] = k[:, :, 0], v[:, :, 0]
        keys, values = state[:, 0, 0, :, : step + 1], state[:, 0, 1, :, : step + 1]
        x = x + self._merge(F.scaled_dot_product_attention(q, keys, values)).squeeze(1)
        return self._decide(x) + self._direct(scalars), state

    def _standardised(self, name: str, inputs: Tensor) -> Tensor:
        return (inputs - self.get_buffer(f"{name}_mean")) * self.get_buffer(f"{name}_scale")

    def _read(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        inputs = ((hidden, self.shape.use_hidden), (embedding, self.shape.use_embedding))
        return torch.cat([each if read else each[..., :0] for each, read in inputs], dim=-1)

    def _observed(self, hidden: Tensor, embedding: Tensor, shown: Tensor | None = None) -> Tensor:
        observed = self._standardised("observed", self._read(hidden, embedding))
        return observed if shown is None else observed * shown

    def _direct(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.direct(torch.cat(inputs, dim=-1))
        return logits

    def _joined(self, observed: Tensor, scalars: Tensor, previous: Tensor) -> Tensor:
        x: Tensor = self.input(torch.cat([observed, self.scalars(scalars), self.previous(previous + 1)], dim=-1))
        return x

    def _heads(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values of x [B, T, width], each [B, heads, T, width / heads]."""
        parts = torch.chunk(self.qkv(self.norm1(x)), 3, dim=-1)
        return [torch.unflatten(part, -1, (self.shape.heads, -1)).transpose(1, 2) for part in parts]

    def _merge(self, y: Tensor) -> Tensor:
        merged: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return merged

    def _decide(self, x: Tensor) -> Tensor:
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.actions(self.norm(x))
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
        config.use_hidden,
        config.use_embedding,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PolicyNetwork(shape)
