"""The window arithmetic of both controllers: what was spent, what was allowed, and how far the two may be apart.

docs/reference/decode-loop.md section 2 proves that a spend inside the window keeps the promise |achieved - requested|
<= 0.02 at every step from the 64th on.
"""

from __future__ import annotations

WINDOW_STEPS = 1.25
"""Half width of the window for the first WINDOW_FROM steps, in dense steps: 1.25 / 64 < 0.02."""
WINDOW_FROM = 64
"""Steps after which the window grows."""
WINDOW_GROWTH = 0.0075
"""Dense steps that each further step adds to the half width: less than 0.02, so long runs end closer."""


class SpendWindow:
    """The spend of one quantity over the steps so far. All numbers are in the quantity's own unit.

    Attributes:
        steps: steps so far.
        spent: what they spent.
        allowed: what they were allowed to spend.
        full: what dense steps would have spent.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.spent = 0.0
        self.allowed = 0.0
        self.full = 0.0

    @property
    def deviation(self) -> float:
        """spent - allowed; negative where less was spent than allowed."""
        return self.spent - self.allowed

    def half_width(self, full: float) -> float:
        """Largest allowed |deviation| after one more step, which would spend `full` if it were dense."""
        count, total = self.steps + 1, self.full + full
        return total / count * (WINDOW_STEPS + WINDOW_GROWTH * max(0, count - WINDOW_FROM))

    def add(self, spent: float, allowed: float, full: float) -> None:
        """Books one step."""
        self.steps += 1
        self.spent += spent
        self.allowed += allowed
        self.full += full
