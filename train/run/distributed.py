"""Training in several processes, as torchrun starts them, on one host or several.

Each takes its share of the windows of every update. The policy is small and stays on the CPU; the frozen model of a
process has a GPU of its own where the host has GPUs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sol_rt.errors import CheckpointError, NumericError, SolError, UsageError

_Value = TypeVar("_Value")
_LONGEST_WAIT = timedelta(hours=6)  # one process exports a large model while the others wait


@dataclass(frozen=True)
class Group:
    """The processes of a training.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its host, from 0.
        local_size: how many there are on its host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        """Raises UsageError where the numbers contradict each other."""
        if not (0 <= self.local_rank <= self.rank < self.size and self.local_rank < self.local_size <= self.size):
            raise UsageError(
                f"processes: got rank {self.rank} of {self.size}, on its host {self.local_rank} of {self.local_size}, "
                "expected ranks below their sizes, and no host larger than the whole; start with torchrun"
            )

    def mine(self, count: int) -> range:
        """Numbers out of 0 … count - 1 that belong to this process: every size-th from its rank on."""
        return range(self.rank, count, self.size)

    def threads(self, cores: int) -> int:
        """Threads of this process: its share of the host's `cores`, at least 1."""
        return max(cores // self.local_size, 1)

    def device(self, gpus: int) -> torch.device:
        """The device of this process's model on a host with so many GPUs: the GPU of its number, or the CPU.

        Raises UsageError where the host has GPUs, but fewer than processes.
        """
        if gpus == 0:
            return torch.device("cpu")
        if self.local_size > gpus:
            raise UsageError(
                f"torchrun: got {self.local_size} processes on a host with {gpus} GPUs, expected at most one a GPU; "
                f"give --nproc-per-node {gpus}, or --rollouts runtime, which needs none"
            )
        return torch.device("cuda", self.local_rank)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes. Each must call this."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: _Value) -> list[_Value]:
        """The value of every process, by rank. Each must call this."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_process(self, rank: int, make: Callable[[], _Value]) -> _Value:
        """Shares the result of `make` in the process of this rank. Each must call this.

        Raises, in all processes, the UsageError or CheckpointError that `make` raises in that one.
        """
        made: list[_Value | SolError | None] = [None]
        if self.rank == rank:
            try:
                made[0] = make()
            except (UsageError, CheckpointError) as error:
                made[0] = error
        if self.size > 1:
            dist.broadcast_object_list(made, rank)
        if isinstance(made[0], SolError):
            raise made[0]
        return made[0]  # type: ignore[return-value]

    def require_same(self, values: Mapping[str, object]) -> None:
        """Raises UsageError, in all processes, where a value of some process differs from the first one's."""
        first, *others = self.gather(dict(values))
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise UsageError(
                        f"{name}: process {rank} got {str(other[name])[:60]}, expected {str(value)[:60]}, as process "
                        "0 has; give every host the same bundle, text and config"
                    )

    def wait(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun's environment variables describe. Without them, a group of one process.

    Raises UsageError where some of them are missing, and SolError where another process is lost or can't be joined.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Group()
        return
    group = Group(*(_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    try:
        dist.init_process_group("gloo", timeout=_LONGEST_WAIT)
    except RuntimeError as error:
        raise SolError(
            f"process {group.rank} of {group.size}: can't join the others ({' '.join(str(error).split())[:120]}); "
            "check torchrun's --master-addr, and GLOO_SOCKET_IFNAME where a host's name does not resolve"
        ) from None
    try:
        yield group
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise SolError(
            f"process {group.rank} of {group.size}: lost another process ({' '.join(str(error).split())[:120]}); see "
            "what that one said, and go on with --resume"
        ) from None
    finally:
        dist.destroy_process_group()


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise UsageError(f"{name}: got {value or 'nothing'}, expected a number beside WORLD_SIZE; start with torchrun")
    return int(value)


def require_finite(loss: Tensor, gradient_norm: float, group: Group, where: str) -> None:
    """Raises NumericError, in all processes, where loss or gradient of any process is not finite.

    `where` names stage and update for the message.
    """
    value = float(loss.detach())
    if float(group.sum(torch.tensor(float(not math.isfinite(gradient_norm + value))))):
        raise NumericError(f"{where}: got loss {value:g} with gradient norm {gradient_norm:g}, expected finite numbers")
