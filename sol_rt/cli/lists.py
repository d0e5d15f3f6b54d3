"""Options that take a list: given several times, or with commas between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sol_rt.errors import UsageError

Number = TypeVar("Number", int, float)


def parts(values: Sequence[str] | None) -> list[str]:
    """What an option holds, given several times or with commas between."""
    return [part.strip() for value in values or () for part in value.split(",")]


def numbers(flag: str, values: Sequence[str] | None, kind: type[Number]) -> list[Number]:
    """The same as numbers. Raises UsageError for anything else."""
    try:
        return [kind(part) for part in parts(values)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        got = ",".join(values or ())
        raise UsageError(f"{flag}: got {got!r}, expected {what} with commas between") from None
