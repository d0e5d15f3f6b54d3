"""Writes an evaluation as Markdown tables whose columns are also aligned in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sol_rt.budget.cost.model import in_unit
from sol_rt.evaluation.quality.bootstrap import Figure
from sol_rt.evaluation.quality.held_out import ORACLE
from sol_rt.evaluation.report.report import Comparison, Evaluation, Result, SizeReport

FEW_WINDOWS = 10


def table_lines(evaluation: Evaluation) -> Iterator[str]:
    """The lines of a report on held-out text."""
    resampling = evaluation.resampling
    unit, other = in_unit(evaluation.cost_model), evaluation.other_cost_model
    yield f"{evaluation.model}; {evaluation.device}; budgets and costs are shares of dense, {unit}"
    yield f"texts: {', '.join(evaluation.texts)}"
    yield f"intervals: 95%, paired bootstrap of {resampling.unit}, {resampling.draws} draws, seed {resampling.seed}"
    if evaluation.random_schedules:
        windows = f"{evaluation.random_searched} window{'' if evaluation.random_searched == 1 else 's'}"
        yield (
            f"random: the best of {evaluation.random_schedules} random schedules a budget, chosen on the first "
            f"{windows} of each size, scored on all"
        )
    yield "static, mix: the best action, and the best mix of two actions, chosen on the same windows that are scored"
    if any(result.schedule == ORACLE for size in evaluation.sizes for result in size.results):
        yield "oracle: the best action at every token in hindsight, by divergence from dense, each after a dense cache"
    for size in evaluation.sizes:
        yield ""
        yield from _size_lines(size, unit, "" if other is None else in_unit(other))


def _size_lines(report: SizeReport, unit: str, also: str) -> Iterator[str]:
    yield f"## Windows of {report.size}"
    yield f"{report.windows} windows, {report.tokens} tokens scored, after {report.context} prefilled tokens per window"
    if report.units < FEW_WINDOWS:
        yield f"Intervals from only {report.units} units are too narrow: score more windows."
    yield ""
    heads = [
        f"budget, {unit}",
        f"achieved cost, {unit}",
        *([also] if also else []),
        "perplexity",
        "95%",
        "over dense",
        "KL to dense",
    ]
    heads += ["top-1 as dense", ""]
    yield from _table(["schedule", *heads], [_result(each, report.dense) for each in (report.dense, *report.results)])
    if report.static:
        yield ""
        yield from _table(["action", *heads], [_result(each, report.dense) for each in report.static])
    if report.comparisons:
        yield ""
        heads = [
            *(f"{head}, {unit}" for head in ("budget", "cost", "rival's cost")),
            "perplexity",
            "95%",
            "added loss avoided",
            "95%",
        ]
        yield from _table([f"{report.comparisons[0].schedule} against", *heads], map(_comparison, report.comparisons))


def _result(result: Result, dense: Result) -> list[str]:
    return [
        result.schedule,
        "" if result.budget is None else f"{result.budget:g}",
        f"{result.achieved.value:.3f}",
        *([] if result.achieved_also is None else [f"{result.achieved_also.value:.3f}"]),
        f"{result.perplexity.value:.3f}",
        interval(result.perplexity, ".3f"),
        f"{result.perplexity.value / dense.perplexity.value - 1:+.2%}",
        f"{max(result.kl.value, 0.0):.4f}",
        f"{result.agreement.value:.1%}",
        "below the cheapest action" if result.floored else result.chosen,
    ]


def _comparison(each: Comparison) -> list[str]:
    return [
        each.rival,
        f"{each.budget:g}",
        f"{each.cost:.3f}",
        f"{each.rival_cost:.3f}{'' if each.matched else ' (not matched)'}",
        f"{each.perplexity.value:+.3f}",
        interval(each.perplexity, "+.3f"),
        "" if each.avoided is None else f"{each.avoided.value:.1%}",
        "" if each.avoided is None else interval(each.avoided, ".1%"),
    ]


def interval(figure: Figure, form: str) -> str:
    """An interval as `[low, high]`; empty if the figure has none."""
    return "" if figure.low is None or figure.high is None else f"[{figure.low:{form}}, {figure.high:{form}}]"


def _table(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table. The first column and a last column without a heading are aligned left, the others right."""
    rows = list(cells)
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    left = {0} | ({len(heads) - 1} if not heads[-1] else set())

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    yield line(heads)
    yield line(["-" * width if index in left else "-" * (width - 1) + ":" for index, width in enumerate(widths)])
    yield from map(line, rows)
