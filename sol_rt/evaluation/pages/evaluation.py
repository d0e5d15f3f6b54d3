"""Draws an evaluation as one self-contained HTML page: a chart of loss over dense against cost per window size."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import altair as alt

from sol_rt.budget.cost.model import in_unit
from sol_rt.evaluation.pages.chart import LossChart, Mark, figure, in_words, png
from sol_rt.evaluation.pages.style import page, table, tiles
from sol_rt.evaluation.report.report import Comparison, Evaluation, Result, SizeReport
from sol_rt.evaluation.report.tables import interval

_HEADROOM = 1.2  # between the largest loss and the upper edge, a factor
_LEAST = 1e-3  # nats: the chart draws smaller losses at this value
_MARGIN = 0.02  # relative cost left and right of the lines
_SINGLE = "single actions"
_KINDS: dict[str, tuple[str, list[int]]] = {
    "oracle": ("grey", [2, 4]),
    "mix": ("grey", [7, 4]),
    "random": ("purple", [2, 4]),
    "uniform": ("orange", []),
    "entropy": ("green", []),
    "hull": ("pink", []),
    "sol": ("blue", []),
}
"""Schedules with a line, in the order of the legend, with their colours and dashes."""

_READ = """\
<p class="read">A schedule picks the action of each decode step. A point on a line is what one schedule cost and lost at
one budget, over the scored tokens of all windows. Points to the left are cheaper, points further down lose less. Grey
points are single actions, taken at every step. Bars are 95% intervals.</p>
<p class="read"><b>Cost</b> is a share of the dense step’s, which reads everything, {unit}. The <b>budget</b> is the
cost that was asked for. <b>Loss</b> is minus the natural logarithm of the probability that the model gives to the true
next token, in <b>nats</b>. 0.01 nats over dense are 1% more perplexity, 0.1 nats 11%.</p>"""


def render_evaluation_html(evaluation: Evaluation) -> str:
    """Returns the page as text, UTF-8. The page loads nothing from elsewhere."""
    unit = in_unit(evaluation.cost_model)
    facts = [("budgets and costs are shares", f"of dense, {unit}")]
    facts += [(f"scored, windows of {size.size}", f"{size.tokens} tokens") for size in evaluation.sizes]
    foot = [f"texts: {', '.join(evaluation.texts)}", evaluation.device, f"bundle {evaluation.bundle[:12]}"]
    resampling = evaluation.resampling
    foot.append(f"95% intervals: paired bootstrap of {resampling.unit}, {resampling.draws} draws")
    foot.append("static, mix: the best action, and the best two in turn, chosen on the scored windows")
    if evaluation.random_schedules:
        foot.append(
            f"random: best of {evaluation.random_schedules}, chosen on the first {evaluation.random_searched} windows"
        )
    return page(
        f"{evaluation.model}: schedules",
        f"<h1>{html.escape(evaluation.model)}: what each schedule loses at what cost</h1>\n"
        f"{_READ.format(unit=html.escape(unit))}\n{tiles(facts)}\n"
        f"{''.join(_section(report, evaluation.cost_model) for report in evaluation.sizes)}\n"
        f"<footer>{html.escape(' · '.join(foot))}</footer>",
        "h3 { font-size: .95rem; margin: 1.6rem 0 0; }",
    )


def render_evaluation_png(evaluation: Evaluation) -> bytes:
    """Returns the page's charts, one below the other, as a PNG."""
    charts = []
    for report in evaluation.sizes:
        drawn, note = _chart(report, evaluation.cost_model)
        title = f"{evaluation.model}: loss and cost of each schedule, windows of {report.size}, {report.tokens} tokens"
        charts.append(drawn.properties(title=alt.TitleParams(title, subtitle=note)))
    return png(alt.vconcat(*charts))


def _section(report: SizeReport, cost_model: str) -> str:
    unit = html.escape(in_unit(cost_model))
    scored = f"{report.tokens} tokens scored in {report.windows} windows, each after {report.context} of context."
    drawn, note = _chart(report, cost_model)
    parts = [
        figure(
            f"What each schedule loses at what cost, in windows of {report.size} tokens",
            drawn,
            f"Loss over dense against cost at windows of {report.size}",
            note,
        ),
        f'<p class="quiet">{scored}</p>',
        _results((report.dense, *report.results), "schedule", unit),
    ]
    if report.static:
        parts += ["<h3>Single actions</h3>", _results(report.static, "action", unit)]
    if report.comparisons:
        parts += [
            f"<h3>{html.escape(report.comparisons[0].schedule)} against the others, at the cost that it achieved</h3>",
            _comparisons(report.comparisons, unit),
        ]
    return "".join(parts)


def _chart(report: SizeReport, cost_model: str) -> tuple[alt.LayerChart, str]:
    """Every line, and the single actions that lie within the axes, which the lines span; and what is left out."""
    lines = {name: line for name in _KINDS if (line := _line(report, name))}
    drawn = [result for line in lines.values() for result in line] or report.static or [report.dense]
    losses = [result.added.value for result in drawn if result.added.value > _LEAST]
    bottom = 10 ** math.floor(math.log10(min(losses, default=_LEAST)))
    top = max(*(result.added.high or result.added.value for result in drawn), 10 * bottom) * _HEADROOM
    left = min(result.achieved.value for result in drawn) - _MARGIN
    right = max(result.achieved.value for result in drawn) + _MARGIN
    single = [each for each in report.static if left <= each.achieved.value <= right and each.added.value <= top]
    unit = in_unit(cost_model)
    kinds = {**{name: _KINDS[name] for name in lines}, _SINGLE: ("dot", [])}
    legend = alt.Legend(values=list(lines), symbolType="stroke", symbolSize=500, columnPadding=25)
    marks = [_mark(_SINGLE, result, unit, _tag(result)) for result in single]
    marks += [_mark(name, result, unit) for name, line in lines.items() for result in line]
    paths = {name: [(result.achieved.value, result.added.value) for result in line] for name, line in lines.items()}
    chart = LossChart(left, right, bottom, top, kinds, legend).of(marks, paths, cost_model)
    note = "Grey points are single actions." if report.static else ""
    if beyond := len(report.static) - len(single):
        note += f" {beyond} of them are beyond the chart: see the table."
    return chart, note


def _mark(kind: str, result: Result, unit: str, tag: str = "") -> Mark:
    bar = (None, None) if tag else (result.added.low, result.added.high)
    return Mark(kind, result.achieved.value, result.added.value, *bar, _facts(result, unit), tag)


def _line(report: SizeReport, name: str) -> list[Result]:
    return sorted((each for each in report.results if each.schedule == name), key=lambda each: each.achieved.value)


def _tag(result: Result) -> str:
    """The tag of a single action; the name of any other schedule."""
    return result.schedule.removeprefix("fixed:")


def _facts(result: Result, unit: str) -> str:
    asked = "" if result.budget is None else f" at budget {result.budget:g}"
    words = in_words(_tag(result))
    lines = [f"{_tag(result)}{asked}" + (f": {words}" if words else ""), f"cost {result.achieved.value:.3f} {unit}"]
    lines.append(f"loss over dense {result.added.value:.4f} {interval(result.added, '.4f')} nats".replace("  ", " "))
    lines.append(f"perplexity {result.perplexity.value:.3f}, top token as dense {result.agreement.value:.1%}")
    return "\n".join(lines)


def _results(results: Sequence[Result], what: str, unit: str) -> str:
    heads = (
        what,
        f"budget, {unit}",
        f"achieved cost, {unit}",
        "perplexity",
        "loss over dense, nats",
        "95%",
        "KL to dense, nats",
        "top token as dense",
    )
    rows = [
        (
            html.escape(_tag(result)),
            "" if result.budget is None else f"{result.budget:g}",
            f"{result.achieved.value:.3f}",
            f"{result.perplexity.value:.3f}",
            f"{result.added.value:.4f}",
            interval(result.added, ".4f"),
            f"{max(result.kl.value, 0.0):.4f}",
            f"{result.agreement.value:.1%}",
        )
        for result in results
        if what == "schedule" or result.schedule.startswith("fixed:")
    ]
    return table(heads, rows)


def _comparisons(comparisons: Sequence[Comparison], unit: str) -> str:
    costs = (f"{head}, {unit}" for head in ("budget", "cost", "rival’s cost"))
    heads = ("rival", *costs, "difference, nats", "95%", "added loss avoided", "95%")
    rows = [
        (
            html.escape(each.rival),
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
    return table(heads, rows)
