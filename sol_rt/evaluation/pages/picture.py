"""Draws an evaluation as a PNG: a chart of loss over dense against cost per window size. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from sol_rt.errors import SolError
from sol_rt.evaluation.pages.evaluation import LEAST, LINES
from sol_rt.evaluation.report.report import Evaluation, Result

_INCHES = 8.0, 4.2  # width and height of each chart
_DOTS = 150  # per inch


def write_picture(evaluation: Evaluation, path: Path) -> None:
    """Writes a PNG. Raises SolError if the file cannot be written."""
    from matplotlib.figure import Figure  # without pyplot, so without a display

    sizes = evaluation.sizes
    figure = Figure((_INCHES[0], _INCHES[1] * len(sizes)), layout="constrained")
    for number, report in enumerate(sizes, 1):
        chart = figure.add_subplot(len(sizes), 1, number)
        chart.set_title(f"{evaluation.model}, windows of {report.size}: {report.tokens} tokens", fontsize=10)
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
        chart.set_yscale("log")
        chart.set_xlabel("achieved cost of a step, dense = 1")
        chart.set_ylabel("loss over dense, nats per token")
        chart.grid(alpha=0.3)
        chart.legend(fontsize=8)
    try:
        figure.savefig(path, format="png", dpi=_DOTS)
    except OSError as error:
        raise SolError(f"--png {path}: {error.strerror}; choose another place") from None


def _cost(result: Result) -> float:
    return result.achieved.value


def _ends(line: list[Result], losses: list[float]) -> list[list[float]]:
    """Lengths of the error bars below and above each loss; nothing is drawn below LEAST."""
    below = [loss - max(each.added.low or LEAST, LEAST) for each, loss in zip(line, losses, strict=True)]
    above = [(each.added.high or loss) - loss for each, loss in zip(line, losses, strict=True)]
    return [[max(reach, 0.0) for reach in below], [max(reach, 0.0) for reach in above]]
