"""Settings of the CPU's operators that depend on the processor. No setting changes a result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Settings of the operators on a processor.

    Attributes:
        cache_level: the cache that memory is asked for into before it is read, 1 or 2.
        row_bytes_ahead: how far ahead of its use a row of weights is asked for, in bytes.
        members: threads of a decode step at most; 0 means all of the pool's.
        copies: whether the layers' 4-bit matrices and the 3-bit one that screens the LM head are copied into the order
            in which a step reads them. The copies are memory of this process, each made at the first step that
            reads it.
    """

    cache_level: int = 2
    row_bytes_ahead: int = 12288
    members: int = 0
    copies: bool = False

    def __str__(self) -> str:
        threads = f", {self.members} threads a step" if self.members else ""
        ahead = f"{self.row_bytes_ahead / 1024:g} KB ahead"
        copies = ", matrices read from copies" if self.copies else ""
        return f"weights asked for {ahead} into cache level {self.cache_level}{threads}{copies}"
