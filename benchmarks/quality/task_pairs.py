"""Compares runs of lm-evaluation-harness question by question, from the samples that they logged.

    python -m sol_rt.evaluation.lm_eval run --model sol_rt --model_args pretrained=BUNDLE,schedule=dense --tasks TASK \\
        --log_samples --output_path out/dense
    ... --model_args pretrained=BUNDLE,schedule=hull,budget=0.4,costs=bytes ... --output_path out/hull-0.4
    python benchmarks quality.task_pairs out/dense out/hull-0.4 [out/uniform-0.4 …]

Prints a Markdown table with a row per task and metric. It has the first run's mean, and each other run's, with the
difference from the first in points, its 95% interval, and the achieved budget. Every run counts the questions that all
runs have answered. With `--pool` the questions of all tasks, such as MMLU's subjects, also get a row together.

Questions that share an account of the budget are not independent, so the paired bootstrap draws accounts. A question
without a logged account, as of another model, counts as one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.evaluation.quality.bootstrap import Bootstrap, Figure
from sol_rt.evaluation.report.tables import interval

DRAWS = 2000
LEAST = 300
"""Questions from which on "within one point" can be shown. Where none of n is answered otherwise than by the first run,
up to 3 / n of all questions may still be (the rule of three, 95%), and the bootstrap does not see it."""
ALL = "all tasks"

Key = tuple[str, str, str]
"""Task, filter of the answers, and metric."""


@dataclass(frozen=True)
class Answer:
    """Answer of a run to a question.

    Attributes:
        asked: hash of the question and its prompt.
        score: value of the metric in percent, for example 100 for a right answer.
        account: number of the account that paid for it; a name of its own without one.
        spent, full: cost of the decode steps, and the dense cost of the same steps; 0 where none were logged.
    """

    asked: str
    score: float
    account: str
    spent: float
    full: float


Answers = dict[str, Answer]
"""By question: the task's name and the number of the document."""


def read_run(folder: Path) -> dict[Key, Answers]:
    """Answers in the newest samples of each task under a folder.

    Raises SystemExit if there are none, and for a line that is no sample.
    """
    newest: dict[str, Path] = {}
    for path in sorted(folder.rglob("samples_*.jsonl"), key=lambda path: path.name):
        newest[re.sub(r"^samples_|_[^_]*\.jsonl$", "", path.name)] = path  # the name ends in the time
    if not newest:
        raise SystemExit(f"task_pairs.py: {folder}: no samples_*.jsonl in it; run the harness with --log_samples")
    found: dict[Key, Answers] = {}
    for task, path in newest.items():
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line:
                continue
            try:
                _add(found, task, json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SystemExit(f"task_pairs.py: {path}: line {number}: not a logged sample ({error!r})") from None
    return found


def _add(found: dict[Key, Answers], task: str, sample: Mapping[str, Any]) -> None:
    """Adds a sample to `found`, once for each metric that is a number, alone and to the row of all tasks."""
    logged = [each for request in sample["arguments"].values() for each in request.values()]
    costs = [each for each in logged if isinstance(each, dict) and "account" in each]
    question = f"{task} {sample['doc_id']}"
    account = str(costs[0]["account"]) if costs else question
    spent, full = (sum(cost[part] for cost in costs) for part in ("spent", "full"))
    asked = sample["doc_hash"] + sample["prompt_hash"]
    for metric in sample["metrics"]:
        if isinstance(sample[metric], (int, float)):
            answer = Answer(asked, 100.0 * sample[metric], account, spent, full)
            for name in (task, ALL):
                found.setdefault((name, sample["filter"], metric), {})[question] = answer


@dataclass(frozen=True)
class Cell:
    """A run on a task: its mean score, that less the first run's, both in percent, and the achieved budget."""

    mean: float
    difference: Figure
    achieved: float | None


def pair(first: Answers, other: Answers, questions: Sequence[str]) -> Cell:
    """Pairs two runs' answers to the same questions.

    Raises SystemExit if a question or its prompt differs.
    """
    for question in questions:
        if first[question].asked != other[question].asked:
            raise SystemExit(f"task_pairs.py: {question}: the runs got other questions or prompts; ask both the same")
    accounts = [other[question].account for question in questions]
    _, place = np.unique(accounts, return_inverse=True)
    asked = np.bincount(place).astype(np.float64)  # questions of each account
    gains = [other[each].score - first[each].score for each in questions]
    gained = np.bincount(place, gains).astype(np.float64)
    bootstrap = Bootstrap(len(asked), DRAWS, 0)
    spent, full = (sum(getattr(other[each], part) for each in questions) for part in ("spent", "full"))
    mean = sum(other[each].score for each in questions) / len(questions)
    return Cell(mean, bootstrap.figure(bootstrap.mean(gained, asked)), spent / full if full else None)


def table(names: Sequence[str], runs: Sequence[Mapping[Key, Answers]], pool: bool = False) -> str:
    """Markdown: each task's figures, then the tasks on which a run is shown to be within one point of the first."""
    lines = [f"| task | metric | questions | {' | '.join(names)} |", "|---|---|--:|" + "--:|" * len(runs)]
    shown: list[str] = []
    for key in sorted((key for key in runs[0] if all(key in run for run in runs)), key=lambda key: key[0] == ALL):
        task, chosen, metric = key
        answers = [run[key] for run in runs]
        questions = [question for question in answers[0] if all(question in each for each in answers)]
        if not questions or (task == ALL and not pool):
            continue
        label = metric if chosen == "none" else f"{metric}, {chosen}"
        cells = [pair(answers[0], each, questions) for each in answers]
        texts = [_text(cell, index == 0) for index, cell in enumerate(cells)]
        lines.append(f"| {task} | {label} | {len(questions)} | {' | '.join(texts)} |")
        low = [(name, cell.difference.low) for name, cell in zip(names[1:], cells[1:], strict=True)]
        close = [name for name, end in low if end is not None and end >= -1.0 and len(questions) >= LEAST]
        shown.append(f"- {task}, {label}: {', '.join(close) or 'not shown'}")
    if not shown:
        raise SystemExit("task_pairs.py: no question has an answer in every run; ask all runs the same tasks")
    heading = f"Shown to be within one point of {names[0]} (the interval's lower end, {LEAST} questions or more):"
    return "\n".join([*lines, "", heading, "", *shown])


def _text(cell: Cell, first: bool) -> str:
    text = f"{cell.mean:.1f}"
    if not first:
        text += f" ({' '.join([f'{cell.difference.value:+.1f}', interval(cell.difference, '+.1f')]).strip()})"
    return text if cell.achieved is None else f"{text} at {cell.achieved:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="--output_path of each run; all are compared with the first")
    parser.add_argument("--pool", action="store_true", help="also a row of all tasks' questions")
    args = parser.parse_args()
    print(table([str(folder) for folder in args.runs], [read_run(folder) for folder in args.runs], args.pool))


if __name__ == "__main__":
    main()
