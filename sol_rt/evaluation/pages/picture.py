"""Draws an evaluation as a PNG: a chart of loss over dense against cost per window size. Needs matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import write_bytes
from sol_rt.evaluation.pages.chart import ADDED_LOSS, cost_title
from sol_rt.evaluation.pages.evaluation import LEAST, LINES
from sol_rt.evaluation.pages.label_places import Box, place_crowded
from sol_rt.evaluation.report.report import Evaluation, Result

_INCHES = 8.0, 4.2  # width and height of each chart
_DOTS = 150  # per inch
_LABEL = 6.5  # points: size of the tags
_CHARACTER, _LINE = 0.65, 1.4  # width of a character and height of a line, in that size


def write_picture(evaluation: Evaluation, path: Path) -> None:
    """Writes a PNG. Raises WriteError."""
    from matplotlib.figure import Figure  # without pyplot, so without a display

    sizes = evaluation.sizes
    figure = Figure((_INCHES[0], _INCHES[1] * len(sizes)), layout="constrained", dpi=_DOTS)
    single: list[tuple[Any, list[Result]]] = []
    for number, report in enumerate(sizes, 1):
        chart = figure.add_subplot(len(sizes), 1, number)
        chart.set_title(
            f"{evaluation.model}: loss and cost of each schedule, windows of {report.size}, {report.tokens} tokens",
            fontsize=10,
        )
        for name in LINES:
            line = sorted((each for each in report.results if each.schedule == name), key=_cost)
            if line:
                losses = [max(each.added.value, LEAST) for each in line]
                chart.errorbar(
                    [_cost(each) for each in line], losses, _ends(line, losses), label=name, marker="o", ms=4
                )
        left, right = chart.get_xlim()
        shown = [each for each in report.static if left <= _cost(each) <= right] if chart.lines else report.static
        losses = [max(each.added.value, LEAST) for each in shown]
        chart.scatter([_cost(each) for each in shown], losses, color="grey", s=16, label="single actions")
        single.append((chart, shown))
        chart.set_yscale("log")
        chart.set_xlabel(cost_title(evaluation.cost_model))
        chart.set_ylabel(ADDED_LOSS)
        chart.grid(alpha=0.3)
        chart.legend(fontsize=8)
    figure.draw_without_rendering()  # from here on the charts stay where they are
    for chart, shown in single:
        _name(chart, shown)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_bytes(path, picture.getvalue())


def _name(chart: Any, results: list[Result]) -> None:
    """Writes the tags of single actions beside their points. Those for which there is no place are left out."""
    size, height = _LABEL * _DOTS / 72, float(chart.figure.bbox.height)

    def box_of(extent: Any) -> Box:  # y grows downwards in boxes
        return Box(float(extent.x0), height - float(extent.y1), float(extent.x1), height - float(extent.y0))

    bounds, taken = box_of(chart.get_window_extent()), [box_of(chart.get_legend().get_window_extent())]
    names = [result.schedule.removeprefix("fixed:") for result in results]
    ends = [chart.transData.transform((_cost(result), max(result.added.value, LEAST))) for result in results]
    points = [(float(x), height - float(y)) for x, y in ends]
    sizes = [(len(name) * size * _CHARACTER, size * _LINE) for name in names]
    written: list[Box] = []
    for name, point, (box, leader) in zip(names, points, place_crowded(points, sizes, [], taken, bounds), strict=True):
        if any(box.overlaps(other) for other in [*written, *taken]) or not bounds.contains(box):
            continue
        written.append(box)
        chart.annotate(
            name,
            (point[0], height - point[1]),
            ((box.left + box.right) / 2, height - (box.top + box.bottom) / 2),
            xycoords="figure pixels",
            textcoords="figure pixels",
            fontsize=_LABEL,
            family="monospace",
            ha="center",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "grey"} if leader else None,
        )


def _cost(result: Result) -> float:
    return result.achieved.value


def _ends(line: list[Result], losses: list[float]) -> list[list[float]]:
    """Lengths of the error bars below and above each loss; nothing is drawn below LEAST."""
    below = [loss - max(each.added.low or LEAST, LEAST) for each, loss in zip(line, losses, strict=True)]
    above = [(each.added.high or loss) - loss for each, loss in zip(line, losses, strict=True)]
    return [[max(reach, 0.0) for reach in below], [max(reach, 0.0) for reach in above]]
