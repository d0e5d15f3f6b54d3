"""Training in several processes, as torchrun starts them: each takes its share of the windows of every update."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes: which one this is, of how many."""

    rank: int = 0
    size: int = 1

    def mine(self, count: int) -> range:
        """This process' numbers of 0 … count - 1: every size-th from its rank on."""
        return range(self.rank, count, self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def from_first(self, value: float) -> float:
        """The first process' value, which all go by."""
        held = torch.tensor([value], dtype=torch.float64)
        if self.size > 1:
            dist.broadcast(held, 0)
        return float(held)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun's environment names; a group of one without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    dist.init_process_group("gloo")
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
