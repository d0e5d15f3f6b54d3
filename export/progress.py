"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""Called with the step's name, what is done and what there is in total, in a unit of the step's own."""


def silent(step: str, done: float, total: float) -> None:
    """Tells nobody."""
