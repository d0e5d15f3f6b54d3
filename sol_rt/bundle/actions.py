"""Actions: what the policy picks for one decode step, written `k030-s050-q4`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sol_rt.errors import UsageError

_TAG = re.compile(r"k(\d{3})-s(\d{3})-q(\d{1,2})")


@dataclass(frozen=True, order=True)
class Action:
    """One way to run a decode step.

    Attributes:
        keep: percent of old KV pages that attention reads, 1 to 100.
        prune: percent of the layers' base-plane weights that are read, 1 to 100.
        bits: weight bits, of which 5 are a mix: `sol_rt.bundle.bits`.
    """

    keep: int
    prune: int
    bits: int

    @property
    def tag(self) -> str:
        return f"k{self.keep:03d}-s{self.prune:03d}-q{self.bits}"

    @property
    def variant(self) -> str:
        """Key of the graph that runs it."""
        return f"s{self.prune:03d}-q{self.bits}"

    @classmethod
    def parse(cls, tag: str) -> Action:
        """Reads a tag such as `k030-s050-q4`. Raises UsageError where it is malformed or out of range."""
        match = _TAG.fullmatch(tag)
        if not match:
            raise UsageError(f"action tag: got {tag!r}, expected kKKK-sSSS-qB, for example k030-s050-q4")
        keep, prune, bits = (int(group) for group in match.groups())
        if not (1 <= keep <= 100 and 1 <= prune <= 100 and 1 <= bits <= 16):
            raise UsageError(f"action tag {tag!r}: keep and channels must be 001 to 100 percent, bits 1 to 16")
        return cls(keep, prune, bits)

    def pages(self, context: int, page_size: int) -> int:
        """Old pages read by a step with `context` tokens before it (the value of the graph's `kv_pages`)."""
        old_pages = math.ceil((context + 1) / page_size) - 1
        return old_pages if self.keep == 100 else math.ceil(old_pages * self.keep / 100)
