"""Loss against cost of a bundle's actions: as points, and as a plot in plain text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sol_rt.budget.hull import lower_hull
from sol_rt.bundle.actions import Action
from sol_rt.bundle.selection import Selection

_WIDTH, _HEIGHT = 66, 16

RelativeCost = Callable[[Action, int], float | None]
"""Cost of an action at a context (tokens) in dense steps; None for one whose cost is not known."""


@dataclass(frozen=True)
class FrontierPoint:
    """A candidate action at one context.

    Attributes:
        tag: tag of the action.
        kept: whether the action is in the bundle.
        reason: why it was kept or dropped.
        bytes: bytes that a step reads, by the bytes model.
        cost: share of the dense step's cost, in bytes unless `frontier` was given other costs.
        loss: added loss over the dense action, in nats.
        stderr: standard error of the loss, in nats.
    """

    tag: str
    kept: bool
    reason: str
    bytes: float
    cost: float
    loss: float
    stderr: float


def frontier(selection: Selection, context: int, relative_cost: RelativeCost | None = None) -> list[FrontierPoint]:
    """Every candidate that was measured at this context (tokens), in ascending order of cost.

    With `relative_cost`, those whose cost it knows.
    """
    found = [(candidate, candidate.at[context]) for candidate in selection.candidates if context in candidate.at]
    dense = next(point.bytes for candidate, point in found if candidate.action == selection.dense)
    points = []
    for candidate, point in found:
        cost = point.bytes / dense if relative_cost is None else relative_cost(candidate.action, context)
        if cost is not None:
            told = candidate.action.tag, candidate.kept, candidate.reason
            points.append(FrontierPoint(*told, point.bytes, cost, point.loss, point.stderr))
    return sorted(points, key=lambda point: (point.cost, point.loss))


def text_plot(points: Sequence[FrontierPoint], unit: str) -> str:
    """A plot of the kept actions at one context, _HEIGHT + 2 lines: numbers from 1, the cheapest; dots for the hull.

    `unit` ends the line of costs, as in `in bytes`.
    """
    kept = [point for point in points if point.kept]
    low, high = min(point.cost for point in kept), max(point.cost for point in kept)
    bottom, top = min(point.loss for point in kept), max(point.loss for point in kept)
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]

    def column(cost: float) -> int:
        return round((cost - low) / (high - low or 1.0) * (_WIDTH - 3))

    def row(loss: float) -> int:
        return round((top - loss) / (top - bottom or 1.0) * (_HEIGHT - 1))

    hull = lower_hull((point.cost, point.loss) for point in kept)
    for (x, y), (next_x, next_y) in itertools.pairwise(hull):
        for at in range(column(x), column(next_x) + 1):
            share = (at - column(x)) / max(column(next_x) - column(x), 1)
            cells[row(y + share * (next_y - y))][at] = "·"
    for number, point in enumerate(kept, 1):
        for offset, digit in enumerate(str(number)):
            cells[row(point.loss)][column(point.cost) + offset] = digit
    labels = {0: f"{top:.3f}", _HEIGHT - 1: f"{bottom:.3f}"}
    lines = [f"{labels.get(index, ''):>8} │{''.join(cells[index]).rstrip()}" for index in range(_HEIGHT)]
    ends = f"{low:.2f}", f"{high:.2f} of dense, {unit}"
    return "\n".join([*lines, f"{'nats':>8} └{'─' * _WIDTH}", f"{'':>10}{ends[0]}{ends[1]:>{_WIDTH - len(ends[0])}}"])
