"""Training in several processes, as torchrun starts them. Each takes its share of the windows of every update."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sol_rt.errors import NumericError


@dataclass(frozen=True)
class Group:
    """The processes of a training.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def mine(self, count: int) -> range:
        """Numbers out of 0 … count - 1 that belong to this process: every size-th from its rank on."""
        return range(self.rank, count, self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes. Each must call this."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def from_first(self, value: float) -> float:
        """The value that the first process passes. Each process must call this."""
        held = torch.tensor([value], dtype=torch.float64)
        if self.size > 1:
            dist.broadcast(held, 0)
        return float(held)

    def wait(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun's environment variables describe. Without them, a group of one process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    dist.init_process_group("gloo")
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def require_finite(loss: Tensor, gradient_norm: float, group: Group, where: str) -> None:
    """Raises NumericError, in all processes, where loss or gradient of any process is not finite.

    `where` names stage and update for the message.
    """
    value = float(loss.detach())
    if float(group.sum(torch.tensor(float(not math.isfinite(gradient_norm + value))))):
        raise NumericError(f"{where}: got loss {value:g} with gradient norm {gradient_norm:g}, expected finite numbers")
