"""Draws a bundle's actions as one self-contained HTML page: added loss against the cost of a step, at each context."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Sequence

import altair as alt

from sol_rt.budget.cost.model import in_unit
from sol_rt.budget.hull import falling_hull
from sol_rt.bundle.selection import Candidate, Selection
from sol_rt.evaluation.frontier import FrontierPoint, RelativeCost, frontier
from sol_rt.evaluation.pages.chart import LossChart, Mark, figure, in_words, tag_and_words
from sol_rt.evaluation.pages.style import page, table, tiles

_INTERVAL = 2  # standard errors up and down
_HEADROOM = 2.5  # between the largest loss and the upper edge, a factor
_LEAST, _MOST_LEAST = 1e-4, 1e-3  # nats: smaller losses are drawn at the lower edge, which lies between these two
_STEPS = 24  # pieces of a line between two actions: straight in nats, so a curve on a logarithmic scale
_KEPT, _DROPPED = "kept in the bundle, ± 2 standard errors", "considered and dropped"

_READ = """\
<p class="read">A point is an action: one way to run a decode step. Its tag says what the step reads: <code>k</code> the
share of the old tokens in the KV cache, <code>s</code> the share of the layers’ weights, both in hundredths, and
<code>q</code> the bits of each weight. Points to the left are cheaper, points further down lose less.</p>
<p class="read"><b>Cost</b> is a share of the dense step’s, which reads everything, {unit}. A <b>budget</b> of 0.6 asks
that all decode steps together cost 0.6 of what dense ones would. <b>Loss</b> is minus the natural logarithm of the
probability that the model gives to the true next token, in <b>nats</b>. 0.01 nats over dense are 1% more perplexity,
0.1 nats 11%.</p>"""


def render_frontier_html(
    name: str, selection: Selection, cost_model: str = "bytes", relative_cost: RelativeCost | None = None
) -> str:
    """Returns the page of the model `name` as text, UTF-8. The page loads nothing from elsewhere.

    `relative_cost` gives the costs of the cost model of that name; None for bytes. Candidates whose cost it does not
    know are not drawn; the list of all has their bytes.
    """
    unit = in_unit(cost_model)
    at_contexts = {context: frontier(selection, context, relative_cost) for context in selection.contexts}
    in_bytes = {context: frontier(selection, context) for context in selection.contexts}
    kept = sum(candidate.kept for candidate in selection.candidates)
    facts = [("actions kept, of those considered", f"{kept} of {len(selection.candidates)}")]
    for context, points in at_contexts.items():
        cheapest = min((point for point in points if point.kept), key=lambda point: point.cost)
        facts.append((f"cheapest action after {context} tokens", f"{cheapest.cost:.0%} of dense, {unit}"))
    sections = "".join(
        _section(context, points, len(in_bytes[context]) - len(points), cost_model)
        for context, points in at_contexts.items()
    )
    scored = ", ".join(f"{setting.tokens} tokens after {at}" for at, setting in selection.contexts.items())
    foot = [f"losses: {scored} tokens of context, on {selection.text}", f"costs: {unit}"]
    return page(
        f"{name}: actions",
        f"<h1>{html.escape(name)}: what each action costs and loses</h1>\n{_READ.format(unit=unit)}\n{tiles(facts)}\n"
        f"{sections}\n{_candidates(selection, in_bytes)}\n<footer>{html.escape(' · '.join(foot))}</footer>",
    )


def _section(context: int, points: Sequence[FrontierPoint], unknown: int, cost_model: str) -> str:
    return _chart(context, points, unknown, cost_model) + _table(points, in_unit(cost_model))


def _chart(context: int, points: Sequence[FrontierPoint], unknown: int, cost_model: str) -> str:
    """Draws every candidate but dropped ones outside the axes, which the kept actions span.

    `unknown` counts the dropped ones of which no cost is known.
    """
    kept = [point for point in points if point.kept]
    losses = [point.loss for point in kept if point.loss > 0]
    least = 10 ** math.floor(math.log10(min(losses, default=_MOST_LEAST)))
    bottom = min(max(least, _LEAST), _MOST_LEAST)
    top = _HEADROOM * max(10 * bottom, *(point.loss + _INTERVAL * point.stderr for point in kept))
    left = math.floor(min(point.cost for point in kept) * 20 - 2.5) / 20
    right = max(1.0, *(point.cost for point in kept)) + 0.02
    dropped = [point for point in points if not point.kept and point.loss <= top and left <= point.cost <= right]
    mixes = list(_mixes(kept))
    kinds: dict[str, tuple[str, list[int]]] = {_KEPT: ("blue", []), _DROPPED: ("dot", [])}
    unit = in_unit(cost_model)
    on_line = sorted(kept, key=lambda point: (point.cost, point.loss) not in mixes)  # their tags are written first
    marks = [_mark(point, unit) for point in (*dropped, *on_line)]
    notes = ["The line is what taking two kept actions in turn reaches"]
    if hidden := len(points) - len(kept) - len(dropped):
        notes.append(f"{hidden} dropped beyond the chart")
    if unknown:
        notes.append(f"{unknown} dropped are not drawn: their time is not known")
    chart = LossChart(left, right, bottom, top, kinds, alt.Legend(symbolType="circle"))
    return figure(
        f"What each action loses and costs after {context} tokens of context",
        chart.of(marks, {_KEPT: mixes}, cost_model),
        f"Loss against cost of {len(kept)} kept and {len(dropped)} dropped actions after {context} tokens",
        ". ".join(notes) + ".",
    )


def _mark(point: FrontierPoint, unit: str) -> Mark:
    facts = f"{point.tag}: {in_words(point.tag)}\n{_figures(point, unit)}\n{_outcome(point.kept, point.reason)}"
    if not point.kept:
        return Mark(_DROPPED, point.cost, point.loss, None, None, facts)
    reach = _INTERVAL * point.stderr
    return Mark(_KEPT, point.cost, point.loss, point.loss - reach, point.loss + reach, facts, point.tag)


def _mixes(kept: Sequence[FrontierPoint]) -> Iterator[tuple[float, float]]:
    """(cost, loss) of the best mixes of two kept actions, from the cheapest action on."""
    corners = falling_hull((point.cost, point.loss) for point in kept)
    yield corners[0]
    for (cost, loss), (next_cost, next_loss) in itertools.pairwise(corners):
        for step in range(1, _STEPS + 1):
            share = step / _STEPS
            yield cost + share * (next_cost - cost), loss + share * (next_loss - loss)


def _outcome(kept: bool, reason: str) -> str:
    return f"{'kept' if kept else 'dropped'}: {reason}"


def _figures(point: FrontierPoint, unit: str) -> str:
    """Cost and loss in one line."""
    return f"cost {point.cost:.3f} {unit}, {point.bytes / 1e6:.1f} MB, loss {_loss(point)} nats"


def _loss(point: FrontierPoint) -> str:
    return f"{point.loss:.4f} ± {point.stderr:.4f}"


def _tag(tag: str) -> str:
    return f"<code>{html.escape(tag)}</code>"


def _table(points: Sequence[FrontierPoint], unit: str) -> str:
    """The kept actions, the most expensive first."""
    kept = [point for point in reversed(points) if point.kept]
    heads = ["action", f"cost, share of dense, {unit}", "MB a step", "loss over dense, nats"]
    rows = [[tag_and_words(point.tag), f"{point.cost:.3f}", f"{point.bytes / 1e6:.1f}", _loss(point)] for point in kept]
    return table(heads, rows)


def _candidates(selection: Selection, at_contexts: dict[int, list[FrontierPoint]]) -> str:
    """All candidates, with the reason why each was kept or dropped."""
    figures = {(point.tag, context): point for context, points in at_contexts.items() for point in points}
    heads = ["candidate"]
    for context in at_contexts:
        heads += [f"cost after {context}, in bytes", f"loss after {context}, nats"]

    def cells(candidate: Candidate) -> list[str]:
        found = []
        for context in at_contexts:
            point = figures.get((candidate.action.tag, context))
            found += ["–", "–"] if point is None else [f"{point.cost:.3f}", _loss(point)]
        return found

    rows = [
        [_tag(candidate.action.tag), *cells(candidate), html.escape(_outcome(candidate.kept, candidate.reason))]
        for candidate in selection.candidates
    ]
    return (
        '<h2>Every candidate</h2><p class="quiet">What the export considered, and why it kept or dropped each. '
        "–: not measured.</p>" + table([*heads, "kept or dropped, and why"], rows, why=True)
    )
