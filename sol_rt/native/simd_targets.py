"""The mask of the SIMD targets that operators may use."""

from __future__ import annotations

import os
import re

from sol_rt.errors import UsageError, brief

_MASK = re.compile("0[0-7]*|[1-9][0-9]*|0x[0-9a-f]+", re.IGNORECASE)


def check_simd_targets() -> None:
    """Raises UsageError for a `SOL_RT_SIMD_TARGETS` that the operators, which take it as C's `strtoll`, cannot read."""
    mask = os.environ.get("SOL_RT_SIMD_TARGETS", "")
    if not mask:
        return
    if not _MASK.fullmatch(mask) or len(mask) > 30 or int(re.sub("^0(?=[0-7])", "0o", mask), 0) >= 1 << 63:
        raise UsageError(
            f"SOL_RT_SIMD_TARGETS: got {brief(mask)}, expected a number from 0 to 2^63 - 1, such as 2560 or 0xA00; "
            "unset it, or see docs/reference/cli.md"
        )
