"""The table of `tasks.py`: accuracy of each schedule and budget beside dense on the same questions, with intervals.

Questions of a span share an account of the budget, so their answers are not independent: the bootstrap draws spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tasks_asked import Answer

from sol_rt.evaluation.quality.bootstrap import Bootstrap, Figure

DRAWS = 2000
POINT = 0.01
LEAST = 300
"""Questions from which on "within one point" can be shown. Where none of n is answered otherwise than by dense, up to
3 / n of all questions may still be (the rule of three, 95%), and the bootstrap does not see it."""


@dataclass(frozen=True)
class Cell:
    """A schedule at a budget.

    Attributes:
        budget: as asked for.
        accuracy: share of right answers.
        difference: that less dense's, with the interval of the paired bootstrap over spans.
        achieved: cost of all decode steps over their dense cost.
    """

    budget: float
    accuracy: float
    difference: Figure
    achieved: float


@dataclass(frozen=True)
class Row:
    """A schedule on a task, on the questions that dense and all of its budgets have answered."""

    task: str
    schedule: str
    questions: int
    dense: float
    cells: tuple[Cell, ...]

    def shown(self) -> list[float]:
        """The budgets of which it is shown that accuracy is within one point of dense or above."""
        low = [(cell.budget, cell.difference.low) for cell in self.cells]
        return [budget for budget, end in low if end is not None and end >= -POINT and self.questions >= LEAST]


def row_of(
    task: str, schedule: str, dense: Mapping[int, Answer], budgets: Mapping[float, Mapping[int, Answer]], span: int
) -> Row | None:
    """Pairs a schedule's answers, by budget and number of the question, with dense's; None if no question has all.

    `span` consecutive questions share an account of the budget.
    """
    common = sorted(set(dense).intersection(*budgets.values()))
    if not common:
        return None
    _, place = np.unique([index // span for index in common], return_inverse=True)
    asked = np.bincount(place).astype(np.float64)  # questions of each span
    bootstrap = Bootstrap(len(asked), DRAWS, 0)

    def hits(answers: Mapping[int, Answer]) -> np.ndarray:
        return np.array([answers[index].right for index in common], np.float64)

    cells = []
    for budget, answers in budgets.items():
        gained = np.bincount(place, hits(answers) - hits(dense)).astype(np.float64)
        difference = bootstrap.figure(bootstrap.mean(gained, asked))
        spent, full = (sum(getattr(answers[index], part) for index in common) for part in ("spent", "full"))
        achieved = spent / full if full else float("nan")  # no question took a decode step
        cells.append(Cell(budget, float(hits(answers).mean()), difference, achieved))
    return Row(task, schedule, len(common), float(hits(dense).mean()), tuple(cells))


def table(rows: Sequence[Row], budgets: Sequence[float]) -> str:
    """Markdown: a row for each task and schedule, a column for each budget."""
    heads = " | ".join(f"{budget:g}" for budget in budgets)
    lines = [f"| task | questions | dense | schedule | {heads} |", "|---|--:|--:|---|" + "--:|" * len(budgets)]
    for row in rows:
        cells = " | ".join(_cell(cell) for cell in row.cells)
        lines.append(f"| {row.task} | {row.questions} | {100 * row.dense:.1f} | `{row.schedule}` | {cells} |")
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> str:
    """Budgets that keep each task within one point of dense: a line for each schedule."""
    lines = [f"Shown to be within one point of dense (the interval's lower end, {LEAST} questions or more):", ""]
    for schedule in dict.fromkeys(row.schedule for row in rows):
        parts = []
        for row in rows:
            if row.schedule == schedule:
                shown = ", ".join(f"{budget:g}" for budget in row.shown())
                parts.append(f"{row.task}: {shown or 'not shown'}")
        lines.append(f"- `{schedule}`: {'; '.join(parts)}")
    return "\n".join(lines)


def beside_hull(duels: Sequence[Sequence[Row]]) -> str:
    """A line for each schedule and task: points above `hull` at each budget.

    A duel is the rows of a schedule on a task, one or more, a budget each, in which `hull` stands for dense.
    """
    lines = ["Points above `hull` at the same budget, on the questions that both have answered:", ""]
    for duel in duels:
        points = "; ".join(f"{_points(cell.difference)} at {cell.budget:g}" for row in duel for cell in row.cells)
        lines.append(f"- `{duel[0].schedule}`, {duel[0].task}: {points}")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    return f"{100 * cell.accuracy:.1f} ({_points(cell.difference)}) at {cell.achieved:.2f}"


def _points(difference: Figure) -> str:
    interval = ""
    if difference.low is not None and difference.high is not None:
        interval = f" [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"{100 * difference.value:+.1f}{interval}"
