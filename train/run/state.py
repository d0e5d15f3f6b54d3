"""Everything that changes in a training: what a checkpoint holds, and a killed training goes on from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sol_rt.train.multipliers import Multipliers
from sol_rt.train.policy_network import PolicyNetwork

WARM_START, GRPO, DONE = "warm start", "grpo", "done"
"""The stages of a training, in order."""


@dataclass
class Best:
    """The network of a stage that gained most on the held-out windows so far.

    Attributes:
        network: its state; before the first measurement that of the network in training itself.
        gain: over static actions (stage 1) or over both rivals (stage 2), nats per step.
        since: measurements since then.
        update: after which it was measured.
    """

    network: dict[str, Tensor]
    gain: float = -math.inf
    since: int = 0
    update: int = 0

    def measured(self, network: PolicyNetwork, gain: float, update: int) -> None:
        """Keeps a copy of the network where its gain is the largest so far."""
        if gain > self.gain:
            state = {name: value.clone() for name, value in network.state_dict().items()}
            self.network, self.gain, self.since, self.update = state, gain, 0, update
        else:
            self.since += 1


class TrainingState:
    """The state of a training. It begins at the warm start.

    Args:
        network: the policy.
        multipliers: by length of window, in the order of `Windows.lengths`.

    Attributes:
        stage: one of the stages above.
        update: updates of this stage so far.
        step: updates of all stages so far.
        measured: training windows that have counterfactuals.
        optimizer: AdamW of the network's parameters, new with each stage. Every update sets its learning rate.
        best: the network that the stage will end with.
    """

    def __init__(self, network: PolicyNetwork, multipliers: Sequence[Multipliers]) -> None:
        self.network, self.multipliers = network, multipliers
        self.stage, self.update, self.step, self.measured = WARM_START, 0, 0, 0
        self.optimizer = self._new_optimizer()
        self.best = Best(network.state_dict())
        self._earlier, self._began = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock time, over all runs of the training."""
        return self._earlier + time.monotonic() - self._began

    def begin(self, stage: str) -> None:
        """Begins a stage."""
        self.stage, self.update = stage, 0
        self.optimizer, self.best = self._new_optimizer(), Best(self.network.state_dict())

    def count_update(self) -> None:
        """Counts an update of the stage."""
        self.update, self.step = self.update + 1, self.step + 1

    def to_dict(self) -> dict[str, Any]:
        """The state as `save_checkpoint` takes it."""
        return {
            "stage": self.stage,
            "update": self.update,
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "multipliers": torch.from_numpy(np.stack([each.logarithms for each in self.multipliers])),
            "best": vars(self.best),
            "measured": self.measured,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state. Raises RuntimeError or ValueError where it is of another network."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for multipliers, logarithms in zip(self.multipliers, state["multipliers"].numpy(), strict=True):
            multipliers.logarithms[:] = logarithms
        self.stage, self.update, self.step = state["stage"], state["update"], state["step"]
        self._earlier, self.measured, self.best = state["seconds"], state["measured"], Best(**state["best"])

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=0.0)
