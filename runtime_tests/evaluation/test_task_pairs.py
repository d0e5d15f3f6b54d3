"""Pairing of logged samples: differences and intervals of made-up runs against closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from quality import task_pairs

Sample = dict[str, Any]
UNITS = 60


def sample(index: int, right: bool, account: int | None = None, spent: float = 0.4) -> Sample:
    """A sample as the harness logs it: the first of two requests holds the cost of both."""
    cost = {"spent": 3 * spent, "full": 3.0, "steps": 3, "achieved_budget": spent, "account": account}
    first = {"arg_0": "Is it?", "arg_1": " yes", **({} if account is None else {"arg_2": cost})}
    return {
        "doc_id": index,
        "doc_hash": f"question {index}",
        "prompt_hash": "prompt",
        "arguments": {"gen_args_0": first, "gen_args_1": {"arg_0": "Is it?", "arg_1": " no"}},
        "filter": "none",
        "metrics": ["acc", "pair"],
        "acc": float(right),
        "pair": [1.0, 2.0],
    }


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    def written(
        name: str, samples: Sequence[Sample], task: str = "yes_no", time: str = "2026-12-01T10-00-00.5"
    ) -> Path:
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(each) + "\n" for each in samples)
        (folder / f"samples_{task}_{time}.jsonl").write_text(lines, encoding="utf-8")
        return tmp_path / name

    return written


def binomial_quantile(count: int, share: float, level: float) -> int:
    """The least number of successes in `count` draws whose probability of no more reaches `level`."""
    total = 0.0
    for successes in range(count + 1):
        total += math.comb(count, successes) * share**successes * (1 - share) ** (count - successes)
        if total >= level:
            return successes
    return count


@pytest.mark.parametrize("span", [1, 5])
def test_interval_is_that_of_a_binomial_over_accounts(run: Callable[..., Path], span: int) -> None:
    # a draw of accounts, of which 18 of 60 gain: the number that gain is binomial, however many questions each has
    indices = range(UNITS * span)
    first = run("first", [sample(index, False, index // span, 1.0) for index in indices])
    other = run("other", [sample(index, index // span < 18, index // span) for index in indices])
    before, after = (task_pairs.read_run(folder)["yes_no", "none", "acc"] for folder in (first, other))
    cell = task_pairs.pair(before, after, list(before))
    assert cell.mean == pytest.approx(30.0)
    assert cell.difference.value == pytest.approx(30.0)
    assert cell.achieved == pytest.approx(0.4)
    for end, level in ((cell.difference.low, 0.025), (cell.difference.high, 0.975)):
        expected = 100 * binomial_quantile(UNITS, 18 / UNITS, level) / UNITS
        assert end == pytest.approx(expected, abs=100 / UNITS + 1e-9)  # 2,000 draws may miss it by one account


def test_table_of_common_questions(run: Callable[..., Path]) -> None:
    first = run("first", [sample(index, index < 200, index, 1.0) for index in range(400)])
    run("same", [sample(0, False, 0)], time="2026-11-30T10-00-00.5")  # an earlier run of the same task
    same = run("same", [sample(index, index < 200, index) for index in range(1, 400)])
    worse = run("worse", [sample(index, index < 100) for index in range(400)])
    for folder in (first, same, worse):
        run(folder.name, [sample(0, True, 1000)], task="other_task")
    names = ["first", "same", "worse"]
    text = task_pairs.table(names, [task_pairs.read_run(folder) for folder in (first, same, worse)], pool=True)
    assert "| task | metric | questions | first | same | worse |" in text
    row, other, every = (
        next(line for line in text.splitlines() if f"| {task} |" in line)
        for task in ("yes_no", "other_task", "all tasks")
    )
    assert "| 399 | 49.9 at 1.00 | 49.9 (+0.0 [+0.0, +0.0]) at 0.40 | 24.8 (-25.1 [" in row
    assert "| 1 | 100.0 at 0.40 | 100.0 (+0.0) at 0.40 | 100.0 (+0.0) at 0.40 |" in other
    assert "| 400 | 50.0 at 1.00 |" in every
    assert "- yes_no, acc: same" in text
    assert "- other_task, acc: not shown" in text


def test_runs_that_cannot_be_paired(run: Callable[..., Path], tmp_path: Path) -> None:
    first = task_pairs.read_run(run("first", [sample(0, True), sample(1, True)]))
    prompt = task_pairs.read_run(run("prompt", [{**sample(0, True), "prompt_hash": "longer"}]))
    with pytest.raises(SystemExit, match="yes_no 0: the runs got other questions or prompts"):
        task_pairs.table(["first", "prompt"], [first, prompt])
    apart = task_pairs.read_run(run("apart", [sample(2, True)]))
    with pytest.raises(SystemExit, match="no question has an answer in every run"):
        task_pairs.table(["first", "apart"], [first, apart])
    with pytest.raises(SystemExit, match=r"no samples_\*.jsonl in it"):
        task_pairs.read_run(tmp_path / "nothing")
    with pytest.raises(SystemExit, match="line 2: not a logged sample"):
        task_pairs.read_run(run("broken", [sample(0, True), {"doc_id": 1}]))
