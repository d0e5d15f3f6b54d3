"""MMLU's questions from local CSV files, and the prompts that ask them.

Prompts are those of lm-evaluation-harness (tasks `mmlu_continuation` and `mmlu`). The folder holds
`test/SUBJECT_test.csv` and, for examples before the question, `dev/SUBJECT_dev.csv`. A row holds the question, four
choices, and the answer as an index or a letter. The first row may hold headings.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sol_rt.errors import UsageError
from sol_rt.read_file import read_bytes

FORMS = ("continuation", "letter")
LETTERS = "ABCD"
MOST_SHOTS = 5


@dataclass(frozen=True)
class Question:
    """A question, its four choices, and the index of the right choice."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Exam:
    """The questions, and how they are asked.

    Attributes:
        questions: the questions in the order in which they are asked.
        examples: by subject, the examples that may stand before its questions.
        form: one of FORMS.
        shots: number of examples before a question.
        tail: number of last prompt tokens that are decode steps; the tokens before them are prefilled dense.
    """

    questions: tuple[Question, ...]
    examples: dict[str, tuple[Question, ...]]
    form: str = "continuation"
    shots: int = 0
    tail: int = 1

    def prompt(self, question: Question) -> str:
        """The text before the answer: introduction, examples and question."""
        kind = "multiple choice questions" if self.form == "letter" else "questions"
        subject = question.subject.replace("_", " ")
        shown = self.examples.get(question.subject, ())[: self.shots]
        shots = [f"{self._ask(each)}{self.answers(each)[each.answer]}" for each in shown]
        return "\n\n".join([f"The following are {kind} (with answers) about {subject}.", *shots, self._ask(question)])

    def answers(self, question: Question) -> list[str]:
        """The texts that may follow the prompt, one per choice."""
        if self.form == "letter":
            return [f" {letter}" for letter in LETTERS]
        return [f" {choice}" for choice in question.choices]

    def _ask(self, question: Question) -> str:
        if self.form == "continuation":
            return f"Question: {question.text}\nAnswer:"
        choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=True))
        return f"{question.text}\n{choices}Answer:"


def read_exam(
    folder: Path, *, subjects: Sequence[str], questions: int | None, form: str, shots: int, tail: int = 1
) -> Exam:
    """Reads the questions, one from each subject in turn.

    Args:
        folder: folder with `test` and, if `shots` is over 0, `dev`.
        subjects: names of subjects; an empty list means all in the folder.
        questions: number of questions at most; None means all.
        form: one of FORMS.
        shots: examples before each question, 0 to MOST_SHOTS.
        tail: number of last prompt tokens that are decode steps, 1 or more.

    Raises UsageError for a missing file or subject and for a row that is not a question.
    """
    if form not in FORMS:
        raise UsageError(f"--form: got {form!r}, expected one of {', '.join(FORMS)}")
    if not 0 <= shots <= MOST_SHOTS:
        raise UsageError(f"--shots: got {shots}, expected 0 to {MOST_SHOTS}")
    files = {path.name.removesuffix("_test.csv"): path for path in sorted((folder / "test").glob("*_test.csv"))}
    if not files:
        raise UsageError(f"--mmlu {folder}: no test/SUBJECT_test.csv in it")
    for subject in subjects:
        if subject not in files:
            raise UsageError(f"--subjects {subject}: not in {folder}, expected some of {', '.join(files)}")
    wanted = list(dict.fromkeys(subjects)) or list(files)
    asked = {subject: _read(files[subject], subject) for subject in wanted}
    examples = {}
    if shots:
        for subject in wanted:
            examples[subject] = tuple(_read(folder / "dev" / f"{subject}_dev.csv", subject))
            if len(examples[subject]) < shots:
                raise UsageError(f"--shots {shots}: {folder}/dev has {len(examples[subject])} examples of {subject}")
    turns = [
        asked[subject][row]
        for row in range(max(map(len, asked.values())))
        for subject in wanted
        if row < len(asked[subject])
    ]
    return Exam(tuple(turns[:questions]), examples, form, shots, tail)


def _read(path: Path, subject: str) -> list[Question]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if rows and [cell.lower() for cell in rows[0]] == [
        "question",
        "choice0",
        "choice1",
        "choice2",
        "choice3",
        "answer",
    ]:
        rows = rows[1:]
    if not rows:
        raise UsageError(f"{path}: got no question, expected one or more; leave {subject} out, or get the whole file")
    return [_question(row, path, subject) for row in rows]


def _question(row: Sequence[str], path: Path, subject: str) -> Question:
    answer = row[-1].strip().upper()
    indices = {name: index for index in range(4) for name in (str(index), LETTERS[index])}
    if len(row) != 6 or answer not in indices:
        expected = "expected question, four choices, and the answer as 0 to 3 or A to D"
        raise UsageError(f"{path}: got a row of {len(row)} cells with the answer {row[-1][:20]!r}, {expected}")
    return Question(subject, row[0].strip(), tuple(choice.strip() for choice in row[1:5]), indices[answer])
