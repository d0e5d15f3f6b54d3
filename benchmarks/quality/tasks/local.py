"""Questions for the tasks of this folder, from local files: lm-evaluation-harness calls a function for each task.

It passes what `--metadata` holds, and more, as keyword arguments.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

EXAMPLES = 4


def mmlu(mmlu: str, form: str, shots: int = 0, **_: Any) -> dict[str, Dataset]:
    """MMLU's questions, a question of each subject in turn.

    Args:
        mmlu: folder with `test/SUBJECT_test.csv` and `dev/SUBJECT_dev.csv`, whose first row is
            question,choice0,choice1,choice2,choice3,answer; the answer is 0 to 3.
        form: `letter` shows the choices and scores the letters A to D; `continuation` scores the choices' texts.
        shots: solved questions of the subject, from `dev`, before each question.
    """
    by_subject = []
    for path in sorted(Path(mmlu, "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        examples = _rows(Path(mmlu, "dev", f"{subject}_dev.csv"), form)[:shots] if shots else []
        kind = "multiple choice questions" if form == "letter" else "questions"
        parts = [f"The following are {kind} (with answers) about {subject.replace('_', ' ')}."]
        parts += [f"{row['prompt']} {row['choices'][row['answer']]}" for row in examples]
        rows = _rows(path, form)
        by_subject.append([{**row, "prompt": "\n\n".join([*parts, row["prompt"]])} for row in rows])
    most = max(map(len, by_subject))
    turns = [rows[turn] for turn in range(most) for rows in by_subject if turn < len(rows)]
    return {"test": Dataset.from_list(turns)}


def _rows(path: Path, form: str) -> list[dict[str, Any]]:
    """Questions of a file: `prompt`, `choices`, and `answer`, the index of the right choice."""
    found = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            choices = [row[f"choice{index}"].strip() for index in range(4)]
            prompt = f"Question: {row['question'].strip()}\nAnswer:"
            if form == "letter":
                shown = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices, strict=True))
                prompt, choices = f"{row['question'].strip()}\n{shown}Answer:", list("ABCD")
            found.append({"prompt": prompt, "choices": choices, "answer": int(row["answer"])})
    return found


def gsm8k(gsm8k: str, seed: int = 0, **_: Any) -> dict[str, Dataset]:
    """GSM8K's problems in an order drawn by `seed`; the last EXAMPLES are examples. `gsm8k` is a file of JSON lines."""
    rows = [json.loads(line) for line in Path(gsm8k).read_text(encoding="utf-8").split("\n") if line.strip()]
    notes = re.compile(r"<<[^>]*>>")  # for a calculator, such as <<6*30=180>>
    problems = [{"question": row["question"], "solution": notes.sub("", row["answer"])} for row in rows]
    order = [problems[place] for place in np.random.default_rng(seed).permutation(len(problems))]
    return {"test": Dataset.from_list(order[:-EXAMPLES]), "examples": Dataset.from_list(order[-EXAMPLES:])}
