"""Draws the frontier of a bundle's actions as one self-contained HTML page: loss against bytes at each context."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from sol_rt.budget.frontier import FrontierPoint, frontier, lower_hull
from sol_rt.bundle.selection import Selection
from sol_rt.evaluation.pages.style import CHART_STYLE, STYLE

_WIDTH, _HEIGHT = 880, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 16, 40
_HEADROOM = 1.15
_INTERVAL = 2  # standard errors up and down


def render_frontier_html(name: str, selection: Selection) -> str:
    """Returns the page as text, UTF-8. The page loads nothing from elsewhere."""
    kept = [candidate for candidate in selection.candidates if candidate.kept]
    tiles = [
        ("actions kept", f"{len(kept)} of {len(selection.candidates)}"),
        *(
            (f"cheapest at {context}", f"{min(point.cost for point in frontier(selection, context) if point.kept):.0%}")
            for context in selection.contexts
        ),
        *((f"tokens scored at {context}", f"{setting.tokens}") for context, setting in selection.contexts.items()),
    ]
    sections = "".join(_section(selection, context) for context in selection.contexts)
    return _PAGE.format(
        style=f"{STYLE}\n{CHART_STYLE}",
        title=html.escape(f"{name}: actions"),
        heading=html.escape(f"{name}: cost and loss of its actions"),
        tiles="".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in tiles),
        sections=sections,
        dropped=_dropped(selection),
        foot=html.escape(f"text: {selection.text}"),
    )


def _section(selection: Selection, context: int) -> str:
    points = frontier(selection, context)
    return (
        f"<h2>At a context of {context} tokens</h2>"
        '<p class="key"><span><b class="one"></b>kept, ± 2 standard errors</span>'
        '<span><b class="two"></b>dropped</span>'
        "<span><b></b>reached by mixing kept actions</span></p>"
        f'<div class="wide">{_chart(points, context)}</div>{_table(points)}'
    )


def _chart(points: Sequence[FrontierPoint], context: int) -> str:
    """Draws loss against bytes as a share of the dense step's. Leaves out dropped candidates outside the axes."""
    kept = [point for point in points if point.kept]
    top = max(max(point.loss + _INTERVAL * point.stderr for point in kept) * _HEADROOM, 1e-3)
    bottom = min(0.0, *(point.loss - _INTERVAL * point.stderr for point in kept))
    left = math.floor(min(point.cost for point in kept) * 20 - 0.5) / 20
    right = max(1.0, *(point.cost for point in kept)) + 0.02
    shown = [point for point in points if point.kept or (point.loss <= top and left <= point.cost <= right)]

    def x(cost: float) -> float:
        return _LEFT + (cost - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        return _TOP + (top - loss) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks(bottom, top):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    for tick in ticks(left, right):
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{tick:.3g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 3}" text-anchor="middle">bytes that a step reads, dense = 1</text>')
    parts.append(f'<text x="{_LEFT + 4}" y="{_TOP - 4}">loss over dense, nats per token</text>')
    hull = lower_hull((point.cost, point.loss) for point in kept)
    line = " ".join(f"{x(cost):.1f},{y(loss):.1f}" for cost, loss in hull)
    parts.append(f'<polyline class="got" points="{line}"/>')
    for point in sorted(shown, key=lambda point: point.kept):
        parts.append(_mark(point, x(point.cost), y(point.loss), abs(y(point.stderr * _INTERVAL) - y(0.0))))
    label = f"Loss against bytes of {len(kept)} kept and {len(shown) - len(kept)} dropped actions at context {context}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _mark(point: FrontierPoint, x: float, y: float, error: float) -> str:
    reads = f"{point.cost:.3f} of dense, {point.bytes / 1e6:.1f} MB"
    facts = f"{point.tag}\n{reads}\nloss {point.loss:.4f} ± {point.stderr:.4f}"
    title = html.escape(f"{facts}\n{'' if point.kept else 'dropped: '}{point.reason}")
    if not point.kept:
        return f'<circle class="two" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{title}</title></circle>'
    bar = f'<path class="error" d="M{x:.1f} {y - error:.1f}V{y + error:.1f}"/>'
    return f'{bar}<circle class="one" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{title}</title></circle>'


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from low to high, for an axis."""
    for power in range(-6, 6):
        for factor in (1, 2, 5):
            size = factor * 10.0**power
            first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
            if last - first <= 8:
                return [index * size for index in range(first, last + 1)]
    return [low, high]


def _table(points: Sequence[FrontierPoint]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{html.escape(point.tag)}</code></th><td>{point.bytes / 1e6:.1f}</td>'
        f"<td>{point.cost:.3f}</td><td>{point.loss:.4f} ± {point.stderr:.4f}</td></tr>"
        for point in reversed(points)
        if point.kept
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("action", "MB", "of dense", "loss, nats"))
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _dropped(selection: Selection) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{html.escape(candidate.action.tag)}</code></th>'
        f'<td class="why">{html.escape(candidate.reason)}</td></tr>'
        for candidate in selection.candidates
        if not candidate.kept
    )
    if not rows:
        return ""
    heads = '<th scope="col">candidate</th><th scope="col" class="why">why it was dropped</th>'
    return (
        "<h2>Dropped candidates</h2>"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
.key b {{ width: 1.4rem; margin-right: .4rem; border-top: 2.5px solid var(--blue); }}
.key .one, .key .two {{ width: .6rem; height: .6rem; border: 0; border-radius: 50%; background: var(--blue); }}
.key .two {{ background: var(--dot); }}
.got {{ fill: none; stroke: var(--blue); stroke-width: 2; stroke-linejoin: round; opacity: .6; }}
circle.one {{ fill: var(--blue); stroke: var(--page); stroke-width: 1.5; }}
circle.two {{ fill: var(--dot); opacity: .75; }}
.error {{ stroke: var(--blue); stroke-width: 1.5; opacity: .6; }}
th, td:last-child {{ white-space: nowrap; }}
th.why, td.why {{ text-align: left; white-space: normal; }}
</style>
</head>
<body>
<h1>{heading}</h1>
<dl>{tiles}</dl>
{sections}
{dropped}
<footer>{foot}</footer>
</body>
</html>
"""
