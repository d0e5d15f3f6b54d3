"""Draws an evaluation as one self-contained HTML page: a chart of loss over dense against cost per window size."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from sol_rt.evaluation.pages.frontier import ticks
from sol_rt.evaluation.pages.style import CHART_STYLE, STYLE
from sol_rt.evaluation.report.report import Comparison, Evaluation, Result, SizeReport
from sol_rt.evaluation.report.tables import interval

_WIDTH, _HEIGHT = 880, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 18, 42
_HEADROOM = 1.08
LEAST = 1e-3  # nats: the chart draws smaller losses at this value
_MARGIN = 0.02  # relative cost left and right of the lines
LINES = ("mix", "random", "uniform", "entropy", "hull", "sol")  # drawn in this order, the last on top


def render_evaluation_html(evaluation: Evaluation) -> str:
    """Returns the page as text, UTF-8. The page loads nothing from elsewhere."""
    tiles = [
        ("costs in", "milliseconds" if evaluation.cost_model == "calibrated" else evaluation.cost_model),
        *((f"tokens scored at {size.size}", f"{size.tokens}") for size in evaluation.sizes),
    ]
    foot = [", ".join(evaluation.texts), evaluation.device, f"bundle {evaluation.bundle[:12]}"]
    resampling = evaluation.resampling
    foot.append(f"95% intervals: paired bootstrap of {resampling.unit}, {resampling.draws} draws")
    if evaluation.random_schedules:
        foot.append(
            f"random: best of {evaluation.random_schedules}, chosen on the first {evaluation.random_searched} windows"
        )
    return _PAGE.format(
        style=f"{STYLE}\n{CHART_STYLE}",
        title=html.escape(f"{evaluation.model}: schedules"),
        heading=html.escape(f"{evaluation.model}: loss of each schedule against its cost"),
        tiles="".join(f"<div><dt>{html.escape(label)}</dt><dd>{value}</dd></div>" for label, value in tiles),
        sections="".join(map(_section, evaluation.sizes)),
        foot=html.escape(" · ".join(foot)),
    )


def _section(report: SizeReport) -> str:
    key = "".join(f'<span><b class="{name}"></b>{name}</span>' for name in _names(report))
    if report.static:
        key += '<span><b class="dot"></b>single actions</span>'
    parts = [
        f"<h2>Windows of {report.size} tokens</h2>",
        f'<p class="key">{key}</p>',
        f'<div class="wide">{_chart(report)}</div>',
        _results(report),
    ]
    if report.comparisons:
        parts.append(_comparisons(report.comparisons))
    return "".join(parts)


def _names(report: SizeReport) -> list[str]:
    found = {result.schedule for result in report.results}
    return [name for name in LINES if name in found]


def _chart(report: SizeReport) -> str:
    """Draws loss over dense, on a logarithmic axis, against cost. Single actions outside the axes are left out."""
    lines = {name: _line(report, name) for name in _names(report)}
    drawn = [result for line in lines.values() for result in line] or report.static or [report.dense]
    losses = [result.added.value for result in drawn if result.added.value > LEAST]
    bottom = 10 ** math.floor(math.log10(min(losses, default=LEAST)))
    top = max(*(result.added.high or result.added.value for result in drawn), 10 * bottom) * _HEADROOM
    left = min(result.achieved.value for result in drawn) - _MARGIN
    right = max(result.achieved.value for result in drawn) + _MARGIN

    def x(cost: float) -> float:
        return _LEFT + (cost - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        share = math.log(max(loss, bottom) / bottom) / math.log(top / bottom)
        return _HEIGHT - _BOTTOM - min(share, 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for power in range(round(math.log10(bottom)), math.ceil(math.log10(top))):
        for loss in (10.0**power, 2 * 10.0**power, 5 * 10.0**power):
            if bottom <= loss * 1.0001 and loss <= top:
                label = f"≤ {loss:g}" if loss < 1.5 * bottom else f"{loss:g}"
                parts.append(
                    f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(loss):.1f}" y2="{y(loss):.1f}"/>'
                    f'<text x="{_LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{label}</text>'
                )
    for tick in ticks(left, right):
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{tick:.3g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">achieved cost of a step, dense = 1</text>')
    parts.append(f'<text x="{_LEFT + 4}" y="{_TOP - 6}">loss over dense, nats per token</text>')
    for result in report.static:
        if left <= result.achieved.value <= right and result.added.value <= top:
            at = f'cx="{x(result.achieved.value):.1f}" cy="{y(result.added.value):.1f}"'
            parts.append(f'<circle class="dot" {at} r="4"><title>{_facts(result)}</title></circle>')
    for name, line in lines.items():
        points = [(x(result.achieved.value), y(result.added.value)) for result in line]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline class="{name}" points="{path}"/>')
        for result, (across, down) in zip(line, points, strict=True):
            if result.added.low is not None and result.added.high is not None:
                ends = f"M{across:.1f} {y(result.added.high):.1f}V{y(result.added.low):.1f}"
                parts.append(f'<path class="{name} error" d="{ends}"/>')
            title = f"<title>{_facts(result)}</title>"
            parts.append(f'<circle class="{name}" cx="{across:.1f}" cy="{down:.1f}" r="4.5">{title}</circle>')
    label = f"Loss over dense against cost at windows of {report.size}: {', '.join(lines) or 'single actions'}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _line(report: SizeReport, name: str) -> list[Result]:
    return sorted((each for each in report.results if each.schedule == name), key=lambda each: each.achieved.value)


def _facts(result: Result) -> str:
    asked = "" if result.budget is None else f" at {result.budget:g}"
    lines = [f"{result.schedule}{asked}", f"cost {result.achieved.value:.3f}"]
    lines.append(f"loss over dense {result.added.value:.4f} {interval(result.added, '.4f')}".strip())
    lines.append(f"perplexity {result.perplexity.value:.3f}, top token as dense {result.agreement.value:.1%}")
    return html.escape("\n".join(lines))


def _results(report: SizeReport) -> str:
    heads = ("schedule", "budget", "achieved", "perplexity", "loss over dense", "95%", "KL to dense", "top-1 as dense")
    rows = [
        (
            result.schedule,
            "" if result.budget is None else f"{result.budget:g}",
            f"{result.achieved.value:.3f}",
            f"{result.perplexity.value:.3f}",
            f"{result.added.value:.4f}",
            interval(result.added, ".4f"),
            f"{max(result.kl.value, 0.0):.4f}",
            f"{result.agreement.value:.1%}",
        )
        for result in (report.dense, *report.results)
    ]
    return _table(heads, rows)


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    ours = comparisons[0].schedule
    heads = (f"{ours} against", "budget", "cost", "rival's cost", "nats", "95%", "added loss avoided", "95%")
    rows = [
        (
            each.rival,
            f"{each.budget:g}",
            f"{each.cost:.3f}",
            f"{each.rival_cost:.3f}{'' if each.matched else ' (not matched)'}",
            f"{each.nll.value:+.4f}",
            interval(each.nll, "+.4f"),
            "" if each.avoided is None else f"{each.avoided.value:.1%}",
            "" if each.avoided is None else interval(each.avoided, ".1%"),
        )
        for each in comparisons
    ]
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
:root {{ --orange:#b35900; --green:#1a7f37; --purple:#8250df; --grey:#6e7781; }}
@media (prefers-color-scheme: dark) {{ :root {{ --orange:#f0a34a; --green:#5cc878; --purple:#c297ff;
 --grey:#9aa6b2; }} }}
.sol {{ --own: var(--blue); }} .uniform {{ --own: var(--orange); }} .entropy {{ --own: var(--green); }}
.random {{ --own: var(--purple); }} .mix {{ --own: var(--grey); }} .dot {{ --own: var(--dot); }}
.key b {{ width: 1.4rem; margin-right: .4rem; border-top: 3px solid var(--own); }}
.key .mix {{ border-top-style: dashed; }}
.key .random {{ border-top-style: dotted; }}
.key .dot {{ width: .6rem; height: .6rem; border: 0; border-radius: 50%; background: var(--own); }}
polyline {{ fill: none; stroke: var(--own); stroke-width: 2; stroke-linejoin: round; }}
polyline.mix {{ stroke-dasharray: 7 4; }}
polyline.random {{ stroke-dasharray: 2 4; }}
circle {{ fill: var(--own); stroke: var(--page); stroke-width: 1.5; }}
circle.dot {{ opacity: .75; }}
.error {{ stroke: var(--own); stroke-width: 1.5; opacity: .6; }}
th, td {{ white-space: nowrap; }}
</style>
</head>
<body>
<h1>{heading}</h1>
<dl>{tiles}</dl>
{sections}
<footer>{foot}</footer>
</body>
</html>
"""
