"""Charts of the pages: Altair specifications that vl-convert draws as SVG, in the pages' colours and fonts."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from sol_rt.budget.cost.model import in_unit
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.errors import UsageError
from sol_rt.evaluation.pages.style import COLOURS

WIDTH, HEIGHT = 700, 360  # pixels between the axes
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
"""Colours that charts are drawn in; the style sheet of a page exchanges them in dark mode."""
MONOSPACE = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
ADDED_LOSS = "loss over dense, nats per token (log scale)"
"""Title of every axis of losses."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_CHARACTER, _LINE, _AWAY = 7.4, 14.0, 9.0  # pixels: width of a tag's character, height of a tag, distance from its mark
_PERCENT = "'+' + format(100 * (exp(datum.value) - 1), datum.value < .69 ? '.2~r' : '.0f') + '%'"
_AXIS = {
    "labelFontSize": 12,
    "titleFontSize": 13,
    "titleFontWeight": "normal",
    "titlePadding": 10,
    "labelColor": LIGHT["quiet"],
    "titleColor": LIGHT["ink"],
    "gridColor": LIGHT["line"],
    "domainColor": LIGHT["quiet"],
    "ticks": False,
    "labelPadding": 6,
    "labelFlush": False,
}
_LEGEND = {
    "orient": "top",
    "title": None,
    "labelFontSize": 12.5,
    "labelColor": LIGHT["quiet"],
    "labelLimit": 400,
    "symbolOpacity": 1,
    "columnPadding": 45,  # the reader's font may be wider than the one that vl-convert measures
    "symbolStrokeWidth": 3,
}


def draw(chart: alt.ChartType) -> str:
    """The SVG of a chart. Each mark's description is its title, which a browser shows where the reader points."""
    whole = chart.configure(
        background=LIGHT["page"],
        font=_FONT,
        axis=_AXIS,
        legend=_LEGEND,
        view={"stroke": None},
        title={"color": LIGHT["ink"], "fontSize": 15, "anchor": "start", "subtitleColor": LIGHT["quiet"]},
    )
    text = io.StringIO()
    whole.save(text, format="svg")
    titled = re.sub(
        r'<(path|line) (aria-label="([^"]*)" role="graphics-symbol"[^>]*)/>',
        r"<\1 \2><title>\3</title></\1>",
        text.getvalue(),
    )
    return titled.replace("<text ", '<text paint-order="stroke" ')


def png(chart: alt.ChartType) -> bytes:
    """The PNG of a chart in light mode, two pixels for each of the SVG's."""
    import vl_convert

    drawn: bytes = vl_convert.svg_to_png(draw(chart), scale=2)
    return drawn


def figure(title: str, chart: alt.ChartType, summary: str, note: str = "") -> str:
    """HTML of a chart with its title above it.

    Args:
        title: what is seen.
        chart: the chart.
        summary: what the chart shows, for readers who do not see it.
        note: what the chart leaves out.
    """
    inline = re.sub(r' xmlns(:xlink)?="[^"]*"', "", draw(chart))
    inline = inline.replace("<svg ", f'<svg role="img" aria-label="{html.escape(summary)}" ', 1)
    noted = f'<p class="quiet">{html.escape(note)}</p>' if note else ""
    heading = f"<figcaption><h2>{html.escape(title)}</h2></figcaption>"
    return f'<figure>{heading}{noted}<div class="wide">{inline}</div></figure>'


def cost_title(cost_model: str) -> str:
    """Title of an axis of costs, with their unit."""
    return f"cost of a decode step, share of the dense step’s, {in_unit(cost_model)}"


def rows(values: list[dict[str, Any]]) -> alt.Chart:
    """A layer of a chart, as yet without marks."""
    return alt.Chart({"values": values})


def colours(kinds: Mapping[str, str]) -> alt.Scale:
    """The colours of the legend's entries: `kinds` has the name of each one's."""
    return alt.Scale(domain=list(kinds), range=[LIGHT[name] for name in kinds.values()])


@dataclass(frozen=True)
class Mark:
    """A point of a chart of losses.

    Attributes:
        kind: what the legend calls it.
        cost: share of the dense step's cost.
        loss: nats over dense.
        low, high: ends of the interval of `loss`; None without one.
        facts: text that is shown where the reader points.
        tag: name that is written beside the point if there is room; empty for none.
    """

    kind: str
    cost: float
    loss: float
    low: float | None
    high: float | None
    facts: str
    tag: str = ""


@dataclass(frozen=True)
class LossChart:
    """Loss against cost. Losses below `bottom` are drawn at it.

    Attributes:
        left, right: costs at the edges.
        bottom, top: losses at the edges.
        kinds: of each kind of mark and line its colour's name and its dashes, in the legend's order.
        legend: how the legend shows them.
    """

    left: float
    right: float
    bottom: float
    top: float
    kinds: dict[str, tuple[str, list[int]]]
    legend: alt.Legend

    def of(self, marks: Sequence[Mark], lines: dict[str, list[tuple[float, float]]], cost_model: str) -> alt.LayerChart:
        """The chart of marks and of lines through (cost, loss), by their kind."""
        costs = alt.Scale(domain=[self.left, self.right], nice=False)
        x = alt.X("cost:Q", title=cost_title(cost_model), scale=costs, axis=alt.Axis(tickCount=10))
        scale = alt.Scale(type="log", domain=[self.bottom, self.top], nice=False)
        least = f"(datum.value < {self.bottom * 1.001} ? '≤ ' : '') + format(datum.value, '~g')"
        ticks = list(self._ticks())
        y = alt.Y("loss:Q", title=ADDED_LOSS, scale=scale, axis=alt.Axis(values=ticks, labelExpr=least))
        also = alt.Axis(values=ticks, labelExpr=_PERCENT, orient="right", grid=False, domain=False)
        names = {kind: name for kind, (name, _) in self.kinds.items()}
        patterns = alt.Scale(domain=list(self.kinds), range=[pattern for _, pattern in self.kinds.values()])
        colour = alt.Color("kind:N", scale=colours(names), legend=self.legend)
        dashes = alt.StrokeDash("kind:N", scale=patterns, legend=self.legend)
        points = [
            {"kind": mark.kind, "cost": mark.cost, "loss": self._kept(mark.loss), "facts": mark.facts} for mark in marks
        ]
        bars = [
            {"kind": mark.kind, "cost": mark.cost, "loss": self._kept(mark.low), "high": self._kept(mark.high)}
            for mark in marks
            if mark.low is not None and mark.high is not None
        ]
        steps = [
            {"kind": kind, "cost": cost, "loss": self._kept(loss), "place": place}
            for kind, line in lines.items()
            for place, (cost, loss) in enumerate(line)
        ]
        drawn = alt.layer(
            rows(steps).mark_line(aria=False).encode(x, y, colour, dashes, order="place:Q"),
            rows(bars).mark_rule(aria=False, opacity=0.6, strokeWidth=1.5).encode(x, y, colour, y2="high:Q"),
            rows(points)
            .mark_circle(size=75, opacity=1, stroke=LIGHT["page"], strokeWidth=1)
            .encode(x, y, colour, description="facts:N"),
            rows(list(self._labels(marks)))
            .mark_text(aria=False, font=MONOSPACE, fontSize=12, stroke=LIGHT["page"], strokeWidth=3, fill=LIGHT["ink"])
            .encode(x, y, text="tag:N"),
        )
        percent = rows([{"loss": self.bottom}]).mark_point(aria=False, opacity=0)
        percent = percent.encode(alt.Y("loss:Q", title="perplexity over dense", scale=scale, axis=also))
        both: alt.LayerChart = alt.layer(drawn, percent).resolve_scale(y="independent")
        return both.properties(width=WIDTH, height=HEIGHT)

    def _kept(self, loss: float) -> float:
        return min(max(loss, self.bottom), self.top)

    def _ticks(self) -> Iterator[float]:
        """Powers of ten, and 2 and 5 times them if those are few."""
        few = math.log10(self.top / self.bottom) < 4
        for power in range(math.floor(math.log10(self.bottom)), math.ceil(math.log10(self.top)) + 1):
            for factor in (1, 2, 5) if few else (1,):
                if self.bottom * 0.999 <= factor * 10.0**power <= self.top:
                    yield factor * 10.0**power

    def _labels(self, marks: Sequence[Mark]) -> Iterator[dict[str, Any]]:
        """The tags, earlier marks' first, each at the first corner of its mark where it covers no mark and no tag."""
        taken = [(x, y, 5.0, 5.0) for x, y in map(self._pixels, marks)]  # centre, half the width, half the height
        for mark in marks:
            x, y = self._pixels(mark)
            width, height = len(mark.tag) * _CHARACTER / 2, _LINE / 2
            for across, up in ((1, 1), (-1, -1), (-1, 1), (1, -1)) if mark.tag else ():
                box = (x + across * (width + _AWAY), y + up * _AWAY, width, height)
                inside = width <= box[0] <= WIDTH - width and height <= box[1] <= HEIGHT - height
                if inside and not any(
                    abs(box[0] - other[0]) < width + other[2] and abs(box[1] - other[1]) < height + other[3]
                    for other in taken
                ):
                    taken.append(box)
                    cost = self.left + (self.right - self.left) * box[0] / WIDTH
                    yield {
                        "cost": cost,
                        "loss": self.bottom * (self.top / self.bottom) ** (box[1] / HEIGHT),
                        "tag": mark.tag,
                    }
                    break

    def _pixels(self, mark: Mark) -> tuple[float, float]:
        """Distances from the left and from the lower edge."""
        up = math.log(self._kept(mark.loss) / self.bottom) / math.log(self.top / self.bottom)
        return WIDTH * (mark.cost - self.left) / (self.right - self.left), HEIGHT * up


def in_words(tag: str) -> str:
    """What an action reads, in words: `4 bits, channel density 0.5`. Empty for a name that is no action's tag."""
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
