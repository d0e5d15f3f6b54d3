"""Options that take a list: given several times, with commas between the values, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sol_rt.errors import UsageError

Number = TypeVar("Number", int, float)


def parts(values: Sequence[str] | None) -> list[str]:
    """The values of an option that was given several times or with commas."""
    return [part.strip() for value in values or () for part in value.split(",")]


def numbers(flag: str, values: Sequence[str] | None, kind: type[Number]) -> list[Number]:
    """The values of such an option as numbers of type `kind`. Raises UsageError for any other text."""
    try:
        return [kind(part) for part in parts(values)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        got = ",".join(values or ())
        raise UsageError(f"{flag}: got {got!r}, expected {what} separated by commas") from None
