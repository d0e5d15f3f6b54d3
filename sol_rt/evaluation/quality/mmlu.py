"""MMLU from local CSV files: the answers' texts as continuations of the question, or the letters A to D.

Prompts are lm-evaluation-harness's (tasks `mmlu_continuation` and `mmlu`). A folder holds `test/SUBJECT_test.csv` and,
for examples before the question, `dev/SUBJECT_dev.csv`; a row is question, four choices, and the answer as an index or
a letter, with or without a line of headings.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.budget.dial import Dial
from sol_rt.budget.schedules import NAMES, is_constant
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import ContextError, UsageError
from sol_rt.evaluation.quality.bootstrap import Bootstrap, Figure, Resampling
from sol_rt.evaluation.quality.continuations import PromptScorer
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.evaluation.quality.runs import DENSE, Setting, device_words
from sol_rt.evaluation.quality.state import State
from sol_rt.generate.loop import Decoder
from sol_rt.generate.model import SolModel

FORMAT, VERSION = "sol_rt.evaluation_mmlu", 1
FORMS = ("continuation", "letter")
LETTERS = "ABCD"
MOST_SHOTS = 5
BUDGETS = (0.4, 0.6)

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Question:
    """A question, its four choices, and the index of the right one."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Exam:
    """What is asked, and how.

    Attributes:
        questions: in the order in which they are asked.
        examples: by subject, what stands before its questions.
        form: of FORMS.
        shots: examples before a question.
        tail: last tokens of the prompt that are decode steps, too.
    """

    questions: tuple[Question, ...]
    examples: dict[str, tuple[Question, ...]]
    form: str = "continuation"
    shots: int = 0
    tail: int = 1

    def prompt(self, question: Question) -> str:
        """All that stands before the answer."""
        kind = "multiple choice questions" if self.form == "letter" else "questions"
        subject = question.subject.replace("_", " ")
        shown = self.examples.get(question.subject, ())[: self.shots]
        shots = [f"{self._ask(each)}{self.answers(each)[each.answer]}" for each in shown]
        return "\n\n".join([f"The following are {kind} (with answers) about {subject}.", *shots, self._ask(question)])

    def answers(self, question: Question) -> list[str]:
        """What may follow the prompt, the choices in turn."""
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
    """Reads the questions, from all subjects in turn.

    Args:
        folder: holds `test` and, where `shots` are wanted, `dev`.
        subjects: names; all there are by default.
        questions: how many at most.
        form: of FORMS.
        shots: examples before each question, 0 to MOST_SHOTS.
        tail: last tokens of the prompt that are decode steps, 1 at least.

    Raises UsageError for what isn't there and for rows that are no questions.
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
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
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
        raise UsageError(f"{path}: has no question; leave {subject} out, or get the whole file")
    return [_question(row, path, subject) for row in rows]


def _question(row: Sequence[str], path: Path, subject: str) -> Question:
    answer = row[-1].strip().upper()
    indices = {name: index for index in range(4) for name in (str(index), LETTERS[index])}
    if len(row) != 6 or answer not in indices:
        expected = "expected question, four choices, and the answer as 0 to 3 or A to D"
        raise UsageError(f"{path}: got a row of {len(row)} cells with the answer {row[-1][:20]!r}, {expected}")
    return Question(subject, row[0].strip(), tuple(choice.strip() for choice in row[1:5]), indices[answer])


@dataclass(frozen=True)
class Answered:
    """What a schedule made of a question.

    Attributes:
        scores: log-probability of each choice, nats.
        lengths: characters of each choice.
        tokens: scored, of all choices together.
        spent, full: cost of the decode steps, and dense cost of the same.
        actions: decode steps of every action tag.
        cut: tokens of the prompt's beginning that the context had no room for.
    """

    scores: list[float]
    lengths: list[int]
    tokens: int
    spent: float
    full: float
    actions: dict[str, int]
    cut: int = 0

    @property
    def choice(self) -> int:
        """The likeliest one."""
        return int(np.argmax(self.scores))

    @property
    def normalised_choice(self) -> int:
        """The likeliest one by the character."""
        return int(np.argmax(np.array(self.scores) / np.maximum(self.lengths, 1)))


def settings_of(config: SolConfig, schedules: Sequence[str], budgets: Sequence[float]) -> list[Setting]:
    """Every schedule at every budget; constant ones once, `dense` first.

    Raises UsageError for unknown ones and for `sol` without a policy.
    """
    for budget in budgets:
        if not 0 < budget < 1:
            raise UsageError(f"--budget: got {budget}, expected shares of the dense cost over 0 and under 1")
    for name in schedules:
        if name not in NAMES and not name.startswith("fixed:"):
            raise UsageError(f"--schedules: got {name!r}, expected some of {', '.join(NAMES)}")
        if name == "sol" and config.policy is None:
            raise UsageError("--schedules sol: this bundle has no policy; leave it out, or train one")
    constant = [Setting(name) for name in schedules if is_constant(name) and name != "dense"]
    steady = [
        Setting(name, budget, 0 if name == "random" else None)
        for budget in budgets
        for name in schedules
        if not is_constant(name)
    ]
    return [DENSE, *constant, *steady]


def sit(
    model: SolModel, exam: Exam, settings: Sequence[Setting], state: State, progress: Progress
) -> list[list[Answered]]:
    """Asks every question under every setting: [settings][questions].

    Each setting keeps one account from question to question, as a server's stream would; a run that goes on from a
    state file begins a new one. Of a prompt that doesn't fit into the context beside its longest answer, the beginning
    is left out, as lm-evaluation-harness does.

    Raises ContextError where an answer alone doesn't fit.
    """
    encode = model.tokenizer.encode
    scorer = PromptScorer(model.engine, exam.tail)
    dials = [
        Dial(
            1.0 if setting.budget is None else setting.budget,
            setting.schedule,
            seed=setting.seed,
        )
        for setting in settings
    ]
    decoders = [model.decoder(dial)[1] for dial in dials]
    found: list[list[Answered]] = [[] for _ in settings]
    total, bos = len(exam.questions), added_bos(model)
    for done, question in enumerate(exam.questions):
        progress("questions", done, total)
        prompt = exam.prompt(question)
        tokens = encode(prompt, add_special_tokens=True)
        answers = [encode(prompt + answer, add_special_tokens=True)[len(tokens) :] for answer in exam.answers(question)]
        tokens, cut = _fitting(tokens, max(map(len, answers)), model.engine.max_context, bos)
        # characters as lm-evaluation-harness counts them: without the space before
        lengths = [len(choice) for choice in (LETTERS if exam.form == "letter" else question.choices)]
        for setting, decoder, results in zip(settings, decoders, found, strict=True):
            key = _key(model.bundle.config, tokens, answers, exam, setting)
            held = state.get(key)
            if held is None:
                scorer.open(tokens)
                held = asdict(_answered(scorer, decoder, answers, lengths, cut))
                state.put(key, held)
            results.append(Answered(**held))
    progress("questions", total, total)
    return found


def _fitting(prompt: list[int], answer: int, limit: int, bos: int | None) -> tuple[list[int], int]:
    """The prompt's last tokens that fit beside `answer` more, behind the BOS where there is one, and how many were left
    out. The last token of an answer takes no room: it is predicted, not read."""
    room = limit - (answer - 1)
    if room < 2:
        raise ContextError(f"--mmlu: an answer has {answer} tokens, the context {limit}; use another model or subject")
    cut = max(len(prompt) - room, 0)
    if not cut:
        return prompt, 0
    return (prompt[cut:] if bos is None else [bos, *prompt[cut + 1 :]]), cut


def _answered(
    scorer: PromptScorer, decoder: Decoder, answers: Sequence[Sequence[int]], lengths: Sequence[int], cut: int
) -> Answered:
    before = Counter(decoder.actions)
    if all(len(answer) == 1 for answer in answers):
        # one step predicts them all
        results = [scorer.score(decoder, answers[0])]
        row = decoder.output.distribution
        scores = [row.log_probability(answer[0]) for answer in answers]
    else:
        results = [scorer.score(decoder, answer) for answer in answers]
        scores = [float(result.logprobs.sum()) for result in results]
    return Answered(
        scores,
        list(lengths),
        sum(map(len, answers)),
        sum(result.spent for result in results),
        sum(result.full for result in results),
        dict(decoder.actions - before),
        cut,
    )


def _key(
    config: SolConfig, tokens: Sequence[int], answers: Sequence[Sequence[int]], exam: Exam, setting: Setting
) -> str:
    asked = hashlib.sha256(f"{exam.tail} {list(tokens)} {[list(answer) for answer in answers]}".encode()).hexdigest()
    policy = config.files[config.policy.file].sha256[:16] if setting.schedule == "sol" and config.policy else ""
    return f"mmlu {asked[:16]} {setting.key} {policy}".strip()


@dataclass(frozen=True)
class Score:
    """What a schedule came to.

    Attributes:
        schedule, budget: what was asked for.
        achieved: cost of all decode steps over their dense cost.
        accuracy: share of questions whose right answer is the likeliest.
        normalised: the same with log-probabilities by the character; None in the form `letter`.
        right: log-probability of the right answer, mean nats.
        steps: decode steps.
        actions: of every action tag.
        by_subject: accuracy in every subject, normalised where that form is.
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
    """Two schedules at the same budget over the same questions.

    Attributes:
        schedule, rival, budget: who.
        metric: `accuracy` or `normalised`.
        difference: of the accuracies, the schedule's less the rival's, with the paired bootstrap's interval.
        won, lost: questions that only the schedule, only the rival has right.
        p_value: McNemar's exact test, two-sided: how likely such a split is where both are equally good.
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
    """All of it, and how it was made; the JSON that docs/evaluation.md describes. `cut`: questions whose prompt was too
    long for the context and lost its beginning."""

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
    """Figures with 95% intervals; questions are drawn with replacement, the same ones for all settings."""
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
    """Which questions are right, float64 [questions]."""
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
    """`sol`, else `entropy`, against each other schedule at the same budget."""
    names = {setting.schedule for setting in settings}
    ours = next((name for name in ("sol", "entropy") if name in names), None)
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
    """Two-sided p-value of the exact test on the questions where two schedules differ."""
    count = won + lost
    tail = sum(math.comb(count, each) for each in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**count)
