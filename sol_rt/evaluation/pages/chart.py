"""The parts that all charts share: axes with titles and round ticks, and labels that keep clear of each other."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sol_rt.budget.cost.bytes_model import in_unit
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.errors import UsageError
from sol_rt.evaluation.pages.label_places import Box, Point, Segment, place_crowded

WIDTH = 880
ADDED_LOSS = "loss over dense, nats per token (log scale)"
"""Title of every axis of losses."""

_CHARACTER = 7.5  # pixels: widest character of the fixed-width fonts at 12 px
_LABEL_HEIGHT = 15.0
_LEAST_TICKS = 5


def cost_title(cost_model: str) -> str:
    """Title of an axis of costs, with their unit."""
    return f"cost of a decode step, share of the dense step’s, {in_unit(cost_model)}"


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels.

    Attributes:
        title: the quantity and its unit.
        low, high: values at the ends.
        start, end: pixels of the ends.
        log: whether equal factors, not equal differences, take equal lengths. Values below `low` are drawn at `low`.
    """

    title: str
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values from `low` to `high`."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from low to high, for a linear axis."""
    for power in range(-6, 6):
        for factor in (1, 2, 5):
            size = factor * 10.0**power
            first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
            if last - first <= 8:
                return [index * size for index in range(first, last + 1)]
    return [low, high]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high for a logarithmic axis: powers of ten, and 2 and 5 times them if those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low * 0.9999 <= value <= high * 1.0001]
        if len(found) >= _LEAST_TICKS:
            break
    return found


def grid(x: Axis, y: Axis, *, perplexity: bool = False) -> Iterator[str]:
    """Both axes with their titles, and lines at the ticks.

    With `perplexity` the right edge shows what the losses of `y`, in nats over dense, are as a change of perplexity.
    """
    for value in y.ticks():
        height = y.at(value)
        least = "≤ " if y.log and value <= y.low * 1.0001 else ""
        yield _line((x.start, height), (x.end, height), "grid")
        yield text(x.start - 8, height + 4, f"{least}{value:.4g}", anchor="end")
        if perplexity:
            yield text(x.end + 8, height + 4, f"+{_percent(value)}")
    for value in x.ticks():
        across = x.at(value)
        yield _line((across, y.start), (across, y.end), "grid")
        yield text(across, y.start + 18, f"{value:.4g}", anchor="middle")
    yield _line((x.start, y.start), (x.end, y.start), "axis")
    middle = (y.start + y.end) / 2
    yield text((x.start + x.end) / 2, y.start + 38, x.title, "title", anchor="middle")
    yield text(14, middle, y.title, "title", anchor="middle", turned=True)
    if perplexity:
        yield text(WIDTH - 8, middle, "perplexity over dense", "title", anchor="middle", turned=True)


def _percent(nats: float) -> str:
    """100 * (exp(nats) - 1): the rise of perplexity by a loss in nats, as text in percent."""
    share = 100 * math.expm1(nats)
    return f"{share:.2g}%" if share < 100 else f"{share:.0f}%"


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start", turned: bool = False) -> str:
    """One piece of text. `kind` is its CSS class."""
    named = f' class="{kind}"' if kind else ""
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    rotated = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}"{placed}{rotated}>{html.escape(words)}</text>'


def _line(start: Point, end: Point, kind: str) -> str:
    return f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'


def polyline(points: Iterable[Point], kind: str) -> str:
    """A line through the points. `kind` is its CSS class."""
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


@dataclass(frozen=True)
class Label:
    """The name that is written beside a point. `kind` is a CSS class beside `label`."""

    point: Point
    name: str
    kind: str = ""


def labels(wanted: Sequence[Label], lines: Sequence[Segment], taken: Sequence[Box], x: Axis, y: Axis) -> Iterator[str]:
    """The names of points, each beside its point or joined to it by a thin line.

    Args:
        wanted: the labels.
        lines: lines that labels should not cross.
        taken: boxes of other marks.
        x, y: the axes; labels lie within the rectangle that they span.

    A label for which there is no free place is left out, so no two labels overlap.
    """
    bounds = Box(x.start, y.end, x.end, y.start)
    sizes = [(_CHARACTER * len(each.name), _LABEL_HEIGHT) for each in wanted]
    points = [each.point for each in wanted]
    places = place_crowded(points, sizes, lines, taken, bounds)
    written: list[Box] = []
    for each, (box, leader) in zip(wanted, places, strict=True):
        if not bounds.grown(1).contains(box) or any(box.overlaps(other) for other in written):
            continue
        written.append(box)
        across, kind = each.point[0], f"label {each.kind}".strip()
        if box.left >= across:
            at, anchor = box.left, "start"
        elif box.right <= across:
            at, anchor = box.right, "end"
        else:
            at, anchor = (box.left + box.right) / 2, "middle"
        if leader is not None:
            yield _line(*leader, "leader")
        yield text(at, box.top + 11.5, each.name, kind, anchor=anchor)


def segments(points: Sequence[Point]) -> list[Segment]:
    """The pieces of a line through the points."""
    return list(itertools.pairwise(points))


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves heights apart until neighbours are `gap` apart, and keeps them from `low` to `high` where there is room.

    The heights are ascending, and so are those returned.
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, low, moved[-1] + gap if moved else low))
    limit = high
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def figure(title: str, key: str, drawing: Iterable[str], height: float, summary: str, data: str = "") -> str:
    """A chart with its title above it.

    Args:
        title: what is seen.
        key: HTML of the legend's entries.
        drawing: SVG elements on an area of WIDTH by `height` pixels.
        summary: what the chart shows, for readers who do not see it.
        data: further attributes of the SVG element.
    """
    return (
        f'<figure><figcaption><h2>{html.escape(title)}</h2></figcaption><p class="key">{key}</p>'
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{html.escape(summary)}"{data}>'
        f"{''.join(drawing)}</svg></div></figure>"
    )


def in_words(tag: str) -> str:
    """Describes an action in words: `4 bits, channel density 0.5`. Empty for a name that is no action's tag."""
    try:
        action = Action.parse(tag)
    except UsageError:
        return ""
    parts = ["mixed bits" if action.bits == MIXED else f"{action.bits} bits"]
    if action.channel_density != 1.0:
        parts.append(f"channel density {action.channel_density:g}")
    if action.kv_density != 1.0:
        parts.append(f"KV density {action.kv_density:g}")
    return ", ".join(parts)


def tag_and_words(tag: str) -> str:
    """HTML of an action's tag with its words below it."""
    return f"<code>{html.escape(tag)}</code><small>{html.escape(in_words(tag))}</small>"
