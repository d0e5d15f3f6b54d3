"""Places the labels of a chart's points so that they cover neither each other nor anything else that is drawn.

The charts of the HTML pages, the PNG picture and benchmarks/ladder_figure.py use it. All lengths are in pixels; y grows
downwards. Needs only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

Point = tuple[float, float]
Segment = tuple[Point, Point]

_GAPS = (11.0, 18.0, 28.0)
"""Distances from a point to its label, the preferred one first."""
_CROWDED_GAPS = (11.0, 18.0, 28.0, 44.0, 64.0)
"""The same for charts with many points."""
_FAR = 22.0  # distance from which a line joins a point to its label in such a chart
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
"""Directions from a point to its label, the preferred one first."""
_STARTS = 50  # number of orders that are tried; the first is the order of the points
_PASSES = 4
_MOVES = 400  # for each label
_WARM, _COLD = 150.0, 0.5  # costs that a move may add, at the beginning and at the end
_OUTSIDE, _ON_LABEL, _ON_MARK, _ON_LINE = 1000.0, 300.0, 100.0, 30.0
_CLEARANCE = 4.0  # between a label and a line
_MARK = 7.0  # half the side of the square around a point that labels keep clear of


@dataclass(frozen=True)
class Box:
    """A rectangle by its edges."""

    left: float
    top: float
    right: float
    bottom: float

    def grown(self, by: float) -> Box:
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def contains(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )

    def is_crossed_by(self, segment: Segment) -> bool:
        """True if a part of the segment lies inside the box (Liang and Barsky's clipping)."""
        (x0, y0), (x1, y1) = segment
        start, end = 0.0, 1.0
        for delta, low, high in (
            (x1 - x0, self.left - x0, self.right - x0),
            (y1 - y0, self.top - y0, self.bottom - y0),
        ):
            if delta == 0:
                if low > 0 or high < 0:
                    return False
                continue
            first, last = sorted((low / delta, high / delta))
            start, end = max(start, first), min(end, last)
        return start < end


def place(
    points: Sequence[Point], sizes: Sequence[Point], lines: Sequence[Segment], taken: Sequence[Box], bounds: Box
) -> list[Box]:
    """A box for every point's label.

    Args:
        points: the labelled points.
        sizes: (width, height) of each label.
        lines: lines that labels should not cross.
        taken: boxes of other text.
        bounds: box that labels should stay inside.

    Returns the boxes in the order of the points. If there is not enough space for all labels, some overlap.
    """
    costs = _candidates_of(points, sizes, lines, taken, bounds, _GAPS, math.inf)
    order, random = list(range(len(points))), Random(0)
    best: tuple[float, list[_Candidate]] = (math.inf, [])
    for _ in range(_STARTS):
        best = min(best, _settled(costs, order), key=lambda found: found[0])
        random.shuffle(order)
    return [each.box for each in best[1]]


def place_crowded(
    points: Sequence[Point], sizes: Sequence[Point], lines: Sequence[Segment], taken: Sequence[Box], bounds: Box
) -> list[tuple[Box, Segment | None]]:
    """Places labels as `place` does, for charts with many points: a line joins a label to its point if it is far.

    Returns (box, joining line or None) in the order of the points. A joining line crosses no label where that is
    possible.
    """
    costs = _candidates_of(points, sizes, lines, taken, bounds, _CROWDED_GAPS, _FAR)
    return [(each.box, each.leader) for each in _annealed(costs, Random(0))]


@dataclass(frozen=True)
class _Candidate:
    """A place for a label: its cost without the other labels, its box, and the line that joins it to its point."""

    cost: float
    box: Box
    leader: Segment | None

    def collides(self, other: _Candidate) -> bool:
        return (
            self.box.overlaps(other.box)
            or (self.leader is not None and other.box.is_crossed_by(self.leader))
            or (other.leader is not None and self.box.is_crossed_by(other.leader))
        )


def _candidates_of(
    points: Sequence[Point],
    sizes: Sequence[Point],
    lines: Sequence[Segment],
    taken: Sequence[Box],
    bounds: Box,
    gaps: Sequence[float],
    far: float,
) -> list[list[_Candidate]]:
    """The places of each label, at `gaps` from its point; from the distance `far` on a line joins the two."""
    marks = [Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in points]
    return [
        [
            _Candidate(
                rank
                + _OUTSIDE * (not bounds.contains(box))
                + _ON_LABEL * sum(box.overlaps(text) for text in taken)
                + _ON_MARK * sum(box.overlaps(mark) for mark in marks)
                + _ON_LINE * sum(box.grown(_CLEARANCE).is_crossed_by(line) for line in lines),
                box,
                _leader(point, box, far),
            )
            for rank, box in enumerate(_boxes(point, size, gaps))
        ]
        for point, size in zip(points, sizes, strict=True)
    ]


def _leader(point: Point, box: Box, far: float) -> Segment | None:
    """The line from a point to the nearest place of its label; None where that is nearer than `far`."""
    nearest = min(max(point[0], box.left), box.right), min(max(point[1], box.top), box.bottom)
    return (point, nearest) if math.dist(point, nearest) >= far else None


def _settled(costs: Sequence[Sequence[_Candidate]], order: Sequence[int]) -> tuple[float, list[_Candidate]]:
    """Moves each label in turn to its best place among the others, a few times; returns (total cost, places)."""
    places: dict[int, tuple[float, _Candidate]] = {}
    for _ in range(_PASSES):
        for index in order:
            others = [other for at, (_, other) in places.items() if at != index]
            places[index] = min(
                ((each.cost + _ON_LABEL * sum(map(each.collides, others)), each) for each in costs[index]),
                key=lambda found: found[0],
            )
    return sum(cost for cost, _ in places.values()), [places[index][1] for index in range(len(costs))]


def _annealed(costs: Sequence[Sequence[_Candidate]], random: Random) -> list[_Candidate]:
    """Moves one label at a time to a random place, less and less often to a worse one; returns the best places met."""
    places = [min(each, key=lambda candidate: candidate.cost) for each in costs]
    best, total, lowest = list(places), 0.0, 0.0  # totals are relative to the beginning
    steps = _MOVES * len(costs)
    for step in range(steps):
        warmth = _WARM * (_COLD / _WARM) ** (step / steps)
        index = random.randrange(len(costs))
        old, new = places[index], random.choice(costs[index])
        change = new.cost - old.cost
        for at, other in enumerate(places):
            if at != index:
                change += _ON_LABEL * (new.collides(other) - old.collides(other))
        if change <= 0 or random.random() < math.exp(-change / warmth):
            places[index] = new
            total += change
            if total < lowest:
                best, lowest = list(places), total
    return best


def _boxes(point: Point, size: Point, gaps: Sequence[float]) -> Iterator[Box]:
    """Boxes around a point, the preferred ones first."""
    (x, y), (width, height) = point, size
    for gap in gaps:
        for right, down in _SIDES:
            centre_x = x + right * (gap + width / 2)
            centre_y = y + down * (gap + height / 2)
            if right and down:  # a diagonal label starts at the point's side, not beyond its corner
                centre_x -= right * gap / 2
                centre_y -= down * gap / 2
            yield Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
