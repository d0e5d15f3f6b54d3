"""Actions: the ways to run a decode step, of which the policy picks one. An action is written `k030-s050-q4`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sol_rt.bundle.bits import MIXED, bits_tag, parse_bits_tag
from sol_rt.errors import UsageError, brief

_TAG = re.compile(r"k(\d{3})-s(\d{3})-q(\d{1,2}|[a-z]+)", re.ASCII)
_LARGEST_BITS = 16


@dataclass(frozen=True, order=True)
class Action:
    """One way to run a decode step.

    A density is the share that a step reads: 1.0 reads everything, as the dense step does. A tag writes densities in
    hundredths: `Action(0.3, 0.5, 4)` is `k030-s050-q4`. Raises UsageError for a density that is not a multiple of 0.01.

    Attributes:
        kv_density: share of the old cached tokens that attention reads, 0.01 to 1.
        channel_density: share of the layers' weights that are read because their input channels are active, 0.01 to 1.
        bits: weight bits, or MIXED (`sol_rt.bundle.bits`).
    """

    kv_density: float
    channel_density: float
    bits: int

    def __post_init__(self) -> None:
        for name in ("kv_density", "channel_density"):
            object.__setattr__(self, name, density(name, getattr(self, name)))

    @property
    def tag(self) -> str:
        return f"k{hundredths(self.kv_density):03d}-{self.variant}"

    @property
    def variant(self) -> str:
        """Key of the variant that runs the action, for example `s050-q4`."""
        return f"s{hundredths(self.channel_density):03d}-{bits_tag(self.bits)}"

    @classmethod
    def parse(cls, tag: str) -> Action:
        """Reads a tag such as `k030-s050-q4`. Raises UsageError if it is malformed or out of range."""
        match = _TAG.fullmatch(tag) if isinstance(tag, str) else None
        bits = None if match is None else parse_bits_tag(match[3])
        if match is None or bits is None:
            raise UsageError(f"action tag: got {brief(tag)}, expected kKKK-sSSS-qB, for example k030-s050-q4")
        kv, channels = int(match[1]), int(match[2])
        if match[3] == str(MIXED):
            now = f"k{match[1]}-s{match[2]}-{bits_tag(MIXED)}"
            raise UsageError(f"action tag {tag!r}: mixed bits are written {bits_tag(MIXED)}; use {now}")
        if not (1 <= kv <= 100 and 1 <= channels <= 100 and 1 <= bits <= _LARGEST_BITS):
            raise UsageError(
                f"action tag {brief(tag)}: densities must be 001 to 100 hundredths, bits 1 to {_LARGEST_BITS} or mix"
            )
        return cls(kv / 100, channels / 100, bits)

    def pages(self, context: int, page_size: int) -> int:
        """Number of old pages that a step reads after `context` tokens: the graph's input `kv_pages`."""
        old_pages = math.ceil((context + 1) / page_size) - 1
        kept = hundredths(self.kv_density)
        return old_pages if kept == 100 else math.ceil(old_pages * kept / 100)


def density(name: str, value: float) -> float:
    """Rounds a share to exactly a multiple of 0.01.

    Raises UsageError, which calls the share `name`, if it is not from 0.01 to 1 or not a multiple of 0.01.
    """
    try:
        share = round(float(value), 2)
        good = 0.01 <= share <= 1.0 and abs(share - value) < 1e-9
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise UsageError(f"{name}: got {brief(value)}, expected a share from 0.01 to 1 in hundredths, for example 0.3")
    return share


def hundredths(share: float) -> int:
    """A density in whole hundredths, 1 to 100, for tags and for exact arithmetic."""
    return round(100 * share)
