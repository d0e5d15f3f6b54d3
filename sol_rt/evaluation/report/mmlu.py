"""Computes MMLU's figures with intervals: accuracy of each schedule, and comparisons of two schedules.

The dataclasses mirror the JSON that `sol-rt eval --mmlu FOLDER --json` prints.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sol_rt.evaluation.quality.bootstrap import Bootstrap, Figure, Resampling
from sol_rt.evaluation.quality.exam import Exam
from sol_rt.evaluation.quality.mmlu import Answered
from sol_rt.evaluation.quality.runs import Setting, device_words
from sol_rt.evaluation.report.report import subject
from sol_rt.generate.model import SolModel

FORMAT, VERSION = "sol_rt.evaluation_mmlu", 1


@dataclass(frozen=True)
class Score:
    """A schedule's result over all questions.

    Attributes:
        schedule, budget: the requested schedule and budget.
        achieved: cost of all decode steps divided by their dense cost.
        accuracy: share of questions whose right choice has the highest log-probability.
        normalised: share of questions whose right choice has the highest log-probability per character; None in the
            form `letter`.
        right: mean log-probability of the right choice, nats.
        steps: number of decode steps.
        actions: number of decode steps by action tag.
        by_subject: `normalised`, or `accuracy` in the form `letter`, of each subject.
    """

    schedule: str
    budget: float | None
    achieved: float
    accuracy: Figure
    normalised: Figure | None
    right: Figure
    steps: int
    actions: dict[str, int]
    by_subject: dict[str, float]


@dataclass(frozen=True)
class Duel:
    """A comparison of two schedules at the same budget on the same questions.

    Attributes:
        schedule, rival, budget: names of the two schedules, and their budget.
        metric: `accuracy` or `normalised`.
        difference: the schedule's accuracy minus the rival's, with the interval of the paired bootstrap.
        won: number of questions that only the schedule answers right.
        lost: number of questions that only the rival answers right.
        p_value: p-value of McNemar's exact test, two-sided.
    """

    schedule: str
    rival: str
    budget: float
    metric: str
    difference: Figure
    won: int
    lost: int
    p_value: float


@dataclass(frozen=True)
class ExamReport:
    """The whole MMLU result and how it was measured; docs/design/evaluation.md describes it as JSON.

    `cut` counts the questions whose prompt was too long for the context and lost its beginning.
    """

    model: str
    bundle: str
    cost_model: str
    device: str
    form: str
    shots: int
    tail: int
    questions: int
    cut: int
    resampling: Resampling
    scores: list[Score]
    duels: list[Duel]

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "format_version": VERSION, **asdict(self)}


def exam_report(
    model: SolModel,
    exam: Exam,
    settings: Sequence[Setting],
    answered: Sequence[Sequence[Answered]],
    resampling: Resampling,
) -> ExamReport:
    """Computes figures with 95% intervals.

    The bootstrap draws questions with replacement, the same questions for all settings.
    """
    bootstrap = Bootstrap(len(exam.questions), resampling.draws, resampling.seed)
    hits = {metric: [_hits(exam, each, metric) for each in answered] for metric in _metrics(exam.form)}
    return ExamReport(
        model=model.bundle.config.model.name,
        bundle=model.bundle.identity,
        cost_model=model.cost.name,
        device=device_words(model),
        form=exam.form,
        shots=exam.shots,
        tail=exam.tail,
        questions=len(exam.questions),
        cut=sum(each.cut > 0 for each in answered[0]),
        resampling=resampling,
        scores=[
            _score(exam, setting, answered[index], {metric: each[index] for metric, each in hits.items()}, bootstrap)
            for index, setting in enumerate(settings)
        ],
        duels=list(_duels(settings, hits, bootstrap)),
    )


def _metrics(form: str) -> tuple[str, ...]:
    return ("accuracy",) if form == "letter" else ("accuracy", "normalised")


def _hits(exam: Exam, answered: Sequence[Answered], metric: str) -> np.ndarray:
    """1 for each question that was answered right, 0 for the others; float64 [questions]."""
    pairs = zip(exam.questions, answered, strict=True)
    return np.array(
        [
            (each.choice if metric == "accuracy" else each.normalised_choice) == question.answer
            for question, each in pairs
        ],
        np.float64,
    )


def _score(
    exam: Exam, setting: Setting, answered: Sequence[Answered], hits: dict[str, np.ndarray], bootstrap: Bootstrap
) -> Score:
    ones = np.ones(len(answered))
    actions: Counter[str] = Counter()
    for each in answered:
        actions.update(each.actions)

    def share(values: np.ndarray) -> Figure:
        return bootstrap.figure(bootstrap.mean(values, ones))

    pairs = zip(exam.questions, answered, strict=True)
    right = np.array([each.scores[question.answer] for question, each in pairs])
    best = hits.get("normalised", hits["accuracy"])
    subjects = np.array([question.subject for question in exam.questions])
    return Score(
        schedule=setting.schedule,
        budget=setting.budget,
        achieved=sum(each.spent for each in answered) / sum(each.full for each in answered),
        accuracy=share(hits["accuracy"]),
        normalised=share(hits["normalised"]) if "normalised" in hits else None,
        right=share(right),
        steps=sum(actions.values()),
        actions=dict(actions.most_common()),
        by_subject={str(name): float(best[subjects == name].mean()) for name in dict.fromkeys(subjects.tolist())},
    )


def _duels(settings: Sequence[Setting], hits: dict[str, list[np.ndarray]], bootstrap: Bootstrap) -> Iterator[Duel]:
    """Compares the schedule that `subject` names with each other schedule at the same budget."""
    ours = subject([setting.schedule for setting in settings])
    for index, setting in enumerate(settings):
        if setting.schedule != ours or setting.budget is None:
            continue
        for rival, other in enumerate(settings):
            if rival == index or other.budget not in (setting.budget, None):
                continue
            for metric, found in hits.items():
                difference = found[index] - found[rival]
                won, lost = int((difference > 0).sum()), int((difference < 0).sum())
                yield Duel(
                    setting.schedule,
                    other.schedule,
                    setting.budget,
                    metric,
                    bootstrap.figure(bootstrap.mean(difference, np.ones(difference.size))),
                    won,
                    lost,
                    mcnemar(won, lost),
                )


def mcnemar(won: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    Args:
        won: number of questions that only the first schedule answers right.
        lost: number of questions that only the second schedule answers right.
    """
    count = won + lost
    tail = sum(math.comb(count, each) for each in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**count)
