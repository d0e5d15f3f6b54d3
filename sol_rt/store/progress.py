"""The progress callback of long work: exports, downloads, training."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""Called with the step's name, the amount done and the total, in a unit of the step's own."""


def silent(step: str, done: float, total: float) -> None:
    """A progress callback that reports nothing."""
