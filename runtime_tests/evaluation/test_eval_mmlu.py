"""MMLU from CSV files, against prompts written out and scores of the full logits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import fails
from helpers.logprobs import full_logprobs
from helpers.tiny_bundle import write_bundle
from sol_rt.cli import main
from sol_rt.errors import ContextError, UsageError
from sol_rt.evaluation.quality.bootstrap import Resampling
from sol_rt.evaluation.quality.exam import Exam, Question, read_exam
from sol_rt.evaluation.quality.mmlu import Answered, settings_of, sit
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.evaluation.quality.runs import DENSE, Setting
from sol_rt.evaluation.quality.state import State
from sol_rt.evaluation.report.mmlu import exam_report, mcnemar
from sol_rt.evaluation.report.tables import exam_lines
from sol_rt.generate.model import SolModel

HEAD = "question,choice0,choice1,choice2,choice3,answer\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", policy=True)


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(4)
    for part, count in (("test", 12), ("dev", 2)):
        (tmp_path / part).mkdir()
        for subject in ("some_history", "maths"):
            words = random.integers(3, 86, (count, 5, 3))
            cells = [[" ".join(f"w{word}" for word in cell) for cell in row] for row in words]
            lines = [",".join([*row, str(random.integers(0, 4))]) for row in cells]
            (tmp_path / part / f"{subject}_{part}.csv").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


QUESTION = Question("some_history", "What is it?", ("this", "that", "both", "none"), 2)
EXAMPLE = Question("some_history", "And that?", ("a b", "c", "d", "e"), 0)


def test_prompts_are_the_harness_ones() -> None:
    exam = Exam((QUESTION,), {"some_history": (EXAMPLE,)}, "continuation", 1)
    assert exam.prompt(QUESTION) == (
        "The following are questions (with answers) about some history.\n\n"
        "Question: And that?\nAnswer: a b\n\n"
        "Question: What is it?\nAnswer:"
    )
    assert exam.answers(QUESTION) == [" this", " that", " both", " none"]
    exam = Exam((QUESTION,), {"some_history": (EXAMPLE,)}, "letter", 1)
    assert exam.prompt(QUESTION) == (
        "The following are multiple choice questions (with answers) about some history.\n\n"
        "And that?\nA. a b\nB. c\nC. d\nD. e\nAnswer: A\n\n"
        "What is it?\nA. this\nB. that\nC. both\nD. none\nAnswer:"
    )
    assert exam.answers(QUESTION) == [" A", " B", " C", " D"]


def test_questions_come_from_all_subjects_in_turn(folder: Path) -> None:
    exam = read_exam(folder, subjects=[], questions=5, form="continuation", shots=2)
    assert [question.subject for question in exam.questions] == ["maths", "some_history"] * 2 + ["maths"]
    assert {subject: len(each) for subject, each in exam.examples.items()} == {"maths": 2, "some_history": 2}
    only = read_exam(folder, subjects=["maths"], questions=None, form="letter", shots=0)
    assert len(only.questions) == 12


def test_files_without_headings_and_with_letters(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "law_test.csv").write_text('"Is it, or not?",yes,no,"may, be",never,C\n', encoding="utf-8")
    exam = read_exam(tmp_path, subjects=[], questions=None, form="letter", shots=0)
    assert exam.questions == (Question("law", "Is it, or not?", ("yes", "no", "may, be", "never"), 2),)


@pytest.mark.parametrize("form", ["continuation", "letter"])
def test_dense_scores_are_those_of_the_full_logits(model: SolModel, folder: Path, form: str) -> None:
    exam = read_exam(folder, subjects=[], questions=4, form=form, shots=1)
    (answered,) = sit(model, exam, [DENSE], State(None, {}), lambda *_: None)
    encode = model.tokenizer.encode
    for question, each in zip(exam.questions, answered, strict=True):
        prompt = encode(exam.prompt(question))
        for text, score in zip(exam.answers(question), each.scores, strict=True):
            answer = encode(text)
            expected = full_logprobs(model.engine, [*prompt, *answer])[-len(answer) :].sum()
            assert score == pytest.approx(expected, abs=2e-3 * len(answer))
        assert each.lengths == ([1] * 4 if form == "letter" else [len(choice) for choice in question.choices])
        # one step gives all letters; an answer of three words takes three
        assert sum(each.actions.values()) == (1 if form == "letter" else 12)


def test_one_account_holds_the_budget_over_the_questions(model: SolModel, folder: Path) -> None:
    exam = read_exam(folder, subjects=[], questions=None, form="continuation", shots=0)
    settings = settings_of(model.bundle.config, ["dense", "uniform", "sol"], [0.7, 0.8])
    assert [each.key for each in settings] == ["dense", "uniform@0.7", "sol@0.7", "uniform@0.8", "sol@0.8"]
    answered = sit(model, exam, settings, State(None, {}), lambda *_: None)
    report = exam_report(model, exam, settings, answered, Resampling("windows", 200, 0))
    for score in report.scores:
        assert score.achieved == pytest.approx(1.0 if score.budget is None else score.budget, abs=0.02)
        assert score.steps == 24 * 12
        assert set(score.by_subject) == {"maths", "some_history"}
    assert {(duel.schedule, duel.rival) for duel in report.duels} == {("sol", "uniform"), ("sol", "dense")}


def test_figures_of_a_report(model: SolModel) -> None:
    def answer(best: int, by_character: int) -> Answered:
        scores = [-20.0] * 4
        scores[best] = -5.0
        lengths = [4] * 4
        if by_character != best:
            scores[by_character], lengths[by_character] = -6.0, 40
        return Answered(scores, lengths, 4, 1.0, 2.0, {"k100-s050-q4": 4})

    exam = Exam((QUESTION,) * 10, {})
    sol = [answer(2, 2)] * 7 + [answer(2, 1)] * 1 + [answer(0, 2)] * 2
    uniform = [answer(2, 2)] * 4 + [answer(1, 1)] * 4 + [answer(2, 2)] * 2
    settings = [Setting("uniform", 0.5), Setting("sol", 0.5)]
    report = exam_report(model, exam, settings, [uniform, sol], Resampling("windows", 500, 0))
    assert [score.accuracy.value for score in report.scores] == pytest.approx([0.6, 0.8])
    assert [score.normalised.value for score in report.scores if score.normalised] == pytest.approx([0.6, 0.9])
    assert report.scores[1].achieved == 0.5
    assert report.scores[1].right.value == pytest.approx((8 * -5.0 + 2 * -6.0) / 10)
    duel = report.duels[0]
    assert (duel.metric, duel.won, duel.lost) == ("accuracy", 4, 2)
    assert duel.difference.value == pytest.approx(0.2)
    assert duel.p_value == pytest.approx(mcnemar(4, 2))


@pytest.mark.parametrize(("won", "lost"), [(4, 2), (10, 1), (0, 3), (5, 5), (0, 0), (3, 9)])
def test_mcnemar_counts_the_splits_as_uneven(won: int, lost: int) -> None:
    splits = [sum(split) for split in itertools.product((0, 1), repeat=won + lost)]
    uneven = sum(abs(2 * split - (won + lost)) >= abs(won - lost) for split in splits)
    assert mcnemar(won, lost) == pytest.approx(uneven / len(splits))


def test_a_stopped_exam_goes_on(model: SolModel, folder: Path, tmp_path: Path) -> None:
    exam = read_exam(folder, subjects=[], questions=6, form="continuation", shots=0)
    path = tmp_path / "state"

    class Stopped(Exception):
        pass

    def stop(description: str, done: float, total: float) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        sit(model, exam, [DENSE], State(path, {}), stop)
    before = path.read_text(encoding="utf-8")
    (answered,) = sit(model, exam, [DENSE], State(path, {}), lambda *_: None)
    after = path.read_text(encoding="utf-8")
    assert after.startswith(before)
    assert len(after.splitlines()) == 1 + 6
    assert answered == sit(model, exam, [DENSE], State(None, {}), lambda *_: None)[0]


def test_prompts_that_are_too_long_lose_their_beginning(model: SolModel, bundle: Path, folder: Path) -> None:
    exam = read_exam(folder, subjects=["maths"], questions=3, form="continuation", shots=2)
    small = SolModel.from_pretrained(bundle, max_context=24)
    answered = sit(small, exam, [DENSE], State(None, {}), lambda *_: None)
    report = exam_report(small, exam, [DENSE], answered, Resampling())
    assert report.cut == 3
    assert "3 prompts were longer than the context" in "\n".join(exam_lines(report))
    for question, each in zip(exam.questions, answered[0], strict=True):
        tokens = small.tokenizer.encode(exam.prompt(question))
        answers = [small.tokenizer.encode(text) for text in exam.answers(question)]
        room = 24 - (max(map(len, answers)) - 1)
        assert each.cut == len(tokens) - room
        bos = added_bos(small)
        kept = tokens[each.cut :] if bos is None else [bos, *tokens[each.cut + 1 :]]
        # the long context's engine: the last token of an answer takes no room, yet this reads it
        expected = [full_logprobs(model.engine, [*kept, *answer])[-len(answer) :].sum() for answer in answers]
        np.testing.assert_allclose(each.scores, expected, atol=6e-3)


def test_an_answer_longer_than_the_context_is_refused(bundle: Path, folder: Path) -> None:
    exam = read_exam(folder, subjects=["maths"], questions=1, form="continuation", shots=0)
    small = SolModel.from_pretrained(bundle, max_context=3)
    with pytest.raises(ContextError, match="an answer has 3 tokens, the context 3"):
        sit(small, exam, [DENSE], State(None, {}), lambda *_: None)


def test_the_command_line(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", "-m", str(bundle), "--mmlu", str(folder), "--questions", "6", "--budget", "0.8"]
    assert main([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["cost_model"]) == ("sol_rt.evaluation_mmlu", "bytes")
    assert [score["schedule"] for score in document["scores"]] == ["dense", "uniform", "sol"]
    assert main([*argv, "--form", "letter", "--shots", "2", "--tail", "3"]) == 0
    out = capsys.readouterr().out
    assert "MMLU, 6 questions, form letter, 2 shots, last 3 of" in out
    assert "| sol against" in out
    assert "budgets and costs are shares of dense, in bytes" in out
    assert "| budget, in bytes | achieved cost, in bytes |" in out


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--form", "essay"], ("--form: got 'essay'",)),
        (["--subjects", "maths,cooking"], ("--subjects cooking: not in",)),
        (["--shots", "3"], ("--shots 3:", "has 2 examples of maths")),
        (["--shots", "6"], ("--shots",)),
        (["--schedules", "static"], ("--schedules: got 'static'",)),
        (["--budget", "2"], ("--budget: got 2.0",)),
        (["--html", "page.html"], ("--html: draws results on held-out text only",)),
        (["-f", "text"], ("either --file",)),
    ],
)
def test_bad_input_is_one_line(
    bundle: Path, folder: Path, argv: list[str], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, ["eval", "-m", str(bundle), "--mmlu", str(folder), *argv], 2, *parts)


@pytest.mark.parametrize("row", ["a,b,c,d,1", "a,b,c,d,e,4", "a,b,c,d,e,E", "one cell"])
def test_rows_that_are_no_questions(tmp_path: Path, row: str) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "law_test.csv").write_text(HEAD + row + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"law_test\.csv: got a row of"):
        read_exam(tmp_path, subjects=[], questions=None, form="letter", shots=0)


@pytest.mark.parametrize("content", ["", HEAD])
def test_a_file_without_questions(tmp_path: Path, content: str) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "law_test.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"law_test\.csv: got no question, expected one or more; leave law out"):
        read_exam(tmp_path, subjects=[], questions=None, form="letter", shots=0)


def test_a_folder_without_questions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no test/SUBJECT_test\.csv in it"):
        read_exam(tmp_path, subjects=[], questions=None, form="letter", shots=0)
