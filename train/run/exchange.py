"""Exchange of counterfactuals between the hosts of a training, which may have a folder in common or not."""

from __future__ import annotations

from collections.abc import Sequence

from sol_rt.atomic_write import write_bytes
from sol_rt.bundle.bundle import sha256
from sol_rt.train.rollouts.counterfactuals import CounterfactualStore
from sol_rt.train.run.distributed import Group


def missing_everywhere(store: CounterfactualStore, windows: Sequence[str], group: Group) -> list[int]:
    """Numbers of the windows that no process finds in its folder. Each process must call this."""
    held = group.gather([store.has(window) for window in windows])
    return [number for number in range(len(windows)) if not any(row[number] for row in held)]


def exchange(store: CounterfactualStore, windows: Sequence[str], group: Group) -> int:
    """Makes the windows of all folders the same, up to the first window that none has. Each process must call this.

    Where folders differ, all get the file of the first process that has one. One process a host writes, each file as a
    whole. Returns how many windows these are.
    """
    group.wait()  # for what is being written
    digests = group.gather([sha256(store.path(window)) if store.has(window) else "" for window in windows])
    for number, window in enumerate(windows):
        held = [row[number] for row in digests]
        if not any(held):
            break
        if len(set(held)) > 1:
            source = next(rank for rank, digest in enumerate(held) if digest)
            content = group.from_process(source, store.path(window).read_bytes)
            if group.local_rank == 0 and held[group.rank] != held[source]:
                write_bytes(store.path(window), content)
    else:
        number = len(windows)
    group.wait()
    return number
