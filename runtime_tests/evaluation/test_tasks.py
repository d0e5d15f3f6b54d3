"""The benchmark of held-out tasks: answers read and paired as they should be, and runs that stop and go on."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tasks
import tasks_gsm8k
from hypothesis import given
from hypothesis import strategies as st
from tasks_asked import Answer
from tasks_continuation import CONTEXT, PIECE, items_of, sentence_starts
from tasks_exam import OneStepEngine, by_subject_in_turn
from tasks_gsm8k import Problem, last_number, read_problems
from tasks_table import row_of, table, verdicts

from helpers.tiny_bundle import seal, write_bundle
from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.budget.dial import Dial
from sol_rt.budget.schedules.schedule import PolicyInput
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.engine.step import StepOutput
from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.bootstrap import Figure
from sol_rt.evaluation.quality.exam import Question
from sol_rt.evaluation.quality.runs import DENSE, Setting
from sol_rt.evaluation.quality.state import State
from sol_rt.generate.model import SolModel
from sol_rt.generate.prompt import prompt_tokens

HEAD = "question,choice0,choice1,choice2,choice3,answer\n"
ALL = "mmlu,mmlu-letter,gsm8k,continuation,retrieval"


def opened(bundle: Path) -> SolModel:
    found = Bundle.open(bundle)
    return SolModel(Engine(found, provider="cpu"), BytesCost(found.config))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose word 85 is a period, so that its texts have sentences."""
    folder = write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", policy=True, losses=True)
    config, tokenizer = Bundle.open(folder).config, folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace('"w85"', '"."'), encoding="utf-8")
    seal(folder, config)
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return opened(bundle)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random questions, problems and texts."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(4)

    def words(count: int) -> str:
        return " ".join(f"w{word}" for word in random.integers(3, 85, count))

    for part, count in (("test", 6), ("dev", 1)):
        (folder / part).mkdir()
        for subject in ("some_history", "maths"):
            rows = [",".join([*(words(3) for _ in range(5)), str(random.integers(0, 4))]) for _ in range(count)]
            (folder / part / f"{subject}_{part}.csv").write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    problems = [{"question": words(6), "answer": f"{words(4)}\n#### {random.integers(3, 85)}"} for _ in range(7)]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems), encoding="utf-8")
    text = " ".join(f"{words(random.integers(5, 12))}." for _ in range(90))
    (folder / "book.txt").write_text(text, encoding="utf-8")
    return folder


def options(data: Path, **changes: object) -> argparse.Namespace:
    given = {
        "tasks": ALL,
        "questions": 3,
        "seed": 0,
        "mmlu": data,
        "shots": "0,1",
        "gsm8k": data / "gsm8k.jsonl",
        "file": [data / "book.txt"],
        "ctx_size": "128",
    }
    return argparse.Namespace(**{**given, **changes})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 apples.\n#### 7", "7"),
        ("The answer is $1,234.50.", "1234.5"),
        ("That makes **72.00** dollars", "72"),
        ("so 48/2=24, and 24+48 is 72.", "72"),
        ("12-5", "5"),
        ("a loss of -15 dollars", "-15"),
        ("pages 3-4, that is x = -0", "0"),
        ("costs $.50", "0.5"),
        ("1,2,3", "3"),
        ("10,000,000 people", "10000000"),
        ("007", "7"),
        ("5%", "5"),
        ("No number at all.", None),
        ("", None),
    ],
)
def test_the_last_number_of_an_answer(text: str, number: str | None) -> None:
    assert last_number(text) == number


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{:,}", "${:,}.", "{}.00", "#### {}", "**{:,}**!"]))
def test_a_number_reads_back_however_it_is_written(value: int, form: str) -> None:
    assert last_number(f"First 3, then {form.format(value)}") == str(value)


def test_problems_come_in_the_order_of_the_seed(model: SolModel, data: Path) -> None:
    (few,), (more,), (other,) = (
        tasks.tasks_of(model, options(data, tasks="gsm8k", questions=count, seed=seed, shots="0"))
        for count, seed in ((2, 0), (7, 0), (7, 1))
    )
    keys = [more.key(index) for index in range(7)]
    assert len(set(keys)) == 7
    assert [few.key(index) for index in range(2)] == keys[:2]
    assert sorted(other.key(index) for index in range(7)) == sorted(keys)
    assert [other.key(index) for index in range(7)] != keys


@pytest.mark.slow
def test_examples_are_solved_problems_that_are_not_asked(model: SolModel, data: Path) -> None:
    bare, few, shown = (
        tasks.tasks_of(model, options(data, tasks="gsm8k", questions=count, shots=shots))[0]
        for count, shots in ((9, "0"), (3, "2"), (9, "2"))
    )
    assert (len(bare), len(shown)) == (7, 5)
    assert (bare.span, shown.span) == (1, 4)
    keys = [shown.key(index) for index in range(5)]
    assert [few.key(index) for index in range(3)] == keys[:3]
    assert not {bare.key(index) for index in range(7)} & set(keys)

    template, vocab_size = model.bundle.chat_template(), model.bundle.config.model.vocab_size

    def turns(solved: tuple[Problem, ...], asked: Problem) -> list[int]:
        messages = []
        for each in (*solved, asked):
            messages.append({"role": "user", "content": tasks_gsm8k.PROMPT.format(question=each.question)})
            messages.append({"role": "assistant", "content": each.solution})
        return prompt_tokens(messages[:-1], model.tokenizer, template, vocab_size)

    problems = read_problems(data / "gsm8k.jsonl")
    opened = []
    for index in range(5):
        shown.open(index)
        opened.append(list(model.engine.tokens))
    found = [
        (place, solved, asked)
        for *solved, asked in itertools.permutations(problems, 3)
        for place, tokens in enumerate(opened)
        if tokens == turns(tuple(solved), asked)
    ]
    assert sorted(place for place, _, _ in found) == list(range(5))
    examples = found[0][1]
    assert all(solved == examples for _, solved, _ in found)
    assert {asked for _, _, asked in found}.isdisjoint(examples)


@pytest.mark.parametrize("name", ["gsm8k", "retrieval", "continuation", "mmlu"])
def test_the_steps_of_each_answer_are_counted_from_its_own_first(
    model: SolModel, data: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy reads where in a run a step lies, so an answer must not go on with the run of the one before."""
    monkeypatch.setattr(tasks_gsm8k, "NEW_TOKENS", 4)
    (task,) = tasks.tasks_of(model, options(data, tasks=name, shots="1"))
    decoder = model.decoder(Dial(0.7, "sol"))[1]
    counted: list[int] = []
    choose = decoder.schedule.choose

    def noted(step: PolicyInput) -> Action:
        counted.append(step.step)
        return choose(step)

    monkeypatch.setattr(decoder.schedule, "choose", noted)
    for index in range(3):
        task.open(index)
        counted.clear()
        task.ask(decoder)
        assert counted[0] == 0


def test_notes_for_a_calculator_are_no_part_of_a_solution(tmp_path: Path) -> None:
    path = tmp_path / "file"
    answer = r"He has 6*30=<<6*30=180>>180 and $<<180/2=90>>90.\n#### 90"
    path.write_text('{"question": "x", "answer": "' + answer + '"}', encoding="utf-8")
    assert read_problems(path) == [Problem("x", "He has 6*30=180 and $90.\n#### 90", "90")]


def test_questions_of_a_subject_follow_each_other_within_a_span() -> None:
    questions = tuple(
        Question(subject, str(number), ("", "", "", ""), 0) for number in range(5) for subject in ("law", "art")
    )
    order = [(each.subject, each.text) for each in by_subject_in_turn(questions, 2)]
    assert order == [
        *[("law", "0"), ("law", "1"), ("art", "0"), ("art", "1")],
        *[("law", "2"), ("law", "3"), ("art", "2"), ("art", "3")],
        *[("law", "4"), ("art", "4")],
    ]


def test_pieces_are_the_next_tokens_and_others_of_the_same_text() -> None:
    tokens = list(range(1000, 3000))
    starts = list(range(7, 2000, 13))
    items = items_of("book", tokens, starts, 1, 50, 0)
    assert len(items) == 50
    for item in items:
        assert item.context[0] == 1
        begin = item.context[1]
        assert list(item.context[1:]) == list(range(begin, begin + CONTEXT))
        assert item.pieces[item.answer][0] == begin + CONTEXT
        for index, piece in enumerate(item.pieces):
            assert list(piece) == list(range(piece[0], piece[0] + PIECE))
            assert piece[0] - 1000 in starts
            if index != item.answer:
                assert piece[0] + PIECE <= begin or piece[0] >= begin + CONTEXT + PIECE
    assert {item.answer for item in items} == {0, 1, 2, 3}
    assert items_of("book", tokens, starts, 1, 20, 0) == items[:20]


def test_sentences_begin_after_the_end_of_the_last() -> None:
    class Words:
        def decode(self, tokens: list[int]) -> str:
            return "".join(words[token] for token in tokens)

    words = ["Mr", ".", " Fox", " ran", ".", " He", " hid", "!", '"', " Why", "?", " U", ".", " S", ".", " end"]
    starts = sentence_starts(range(len(words)), Words())  # type: ignore[arg-type]
    assert [words[place] for place in starts] == [" He", " Why", " U"]


@pytest.mark.slow
def test_letters_are_the_same_where_steps_alike_run_once(
    bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    forward = Engine.forward

    def counted(engine: Engine, tokens: list[int], action: Action, *, num_logits: int = 1) -> StepOutput:
        steps.append(len(tokens))
        return forward(engine, tokens, action, num_logits=num_logits)

    monkeypatch.setattr(Engine, "forward", counted)
    found = Bundle.open(bundle)
    answers, runs = [], []
    for kind in (Engine, OneStepEngine):
        steps.clear()
        model, state = SolModel(kind(found, provider="cpu"), BytesCost(found.config)), State(None, {})
        settings = tasks.settings_of(model, ["dense", "hull", "uniform", "random", "static", "sol"], [0.7, 0.8])
        asked = tasks.tasks_of(model, options(data, tasks="mmlu-letter,mmlu", questions=6))
        for task in asked:
            tasks.run(model, task, settings, state, lambda done, total: None)
        keys = [tasks.key_of(model, task.key(i), each) for task in asked for i in range(len(task)) for each in settings]
        answers.append([state.get(key) for key in keys])
        runs.append(list(steps))
    assert answers[0] == answers[1]
    assert None not in answers[0]
    assert len(runs[1]) < len(runs[0])
    assert [count for count in runs[0] if count > 1] == [count for count in runs[1] if count > 1]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_table(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_gsm8k, "NEW_TOKENS", 8)
    schedules, budgets = ["dense", "hull", "uniform", "random", "static", "sol"], [0.7, 0.8]

    class Stopped(Exception):
        pass

    def run(state: Path | None, questions: int, stop: bool = False) -> str:
        """Runs all tasks on a new model. With `stop`, breaks off after the third span."""
        model, store, calls = opened(bundle), State(state, {}), iter(range(99))

        def progress(done: int, total: int) -> None:
            if stop and next(calls) == 2:
                raise Stopped

        asked = tasks.tasks_of(model, options(data, questions=questions))
        settings = tasks.settings_of(model, schedules, budgets)
        for task in asked:
            tasks.run(model, task, settings, store, progress)
        return tasks.report(model, asked, schedules, budgets, store)

    expected = run(None, 6)
    state = tmp_path / "state"
    with pytest.raises(Stopped):
        run(state, 5, stop=True)
    stored = state.read_text(encoding="utf-8")
    few = run(state, 5)  # its last spans are shorter
    assert state.read_text(encoding="utf-8").startswith(stored)
    assert run(state, 6) == expected != few
    rows = [line.split(" | ") for line in expected.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == 8 * 5
    assert {row[1] for row in rows} == {"6"}
    again = state.read_text(encoding="utf-8")
    run(state, 6)
    assert state.read_text(encoding="utf-8") == again


def test_a_report_needs_no_run_and_pairs_what_is_there(model: SolModel, data: Path, tmp_path: Path) -> None:
    store, budgets = State(tmp_path / "state", {}), [0.7]
    settings = tasks.settings_of(model, ["dense", "hull", "static"], budgets)
    (task,) = tasks.tasks_of(model, options(data, tasks="continuation", questions=4))
    assert "No question" in tasks.report(model, [task], ["dense", "hull"], budgets, store)
    (two,) = tasks.tasks_of(model, options(data, tasks="continuation", questions=2))
    tasks.run(model, two, settings, store, lambda *_: None)
    tasks.run(model, task, settings[:2], store, lambda *_: None)
    lines = tasks.report(model, [task], ["dense", "hull", "static"], budgets, store).splitlines()
    assert [line.split(" | ")[1] for line in lines if "`" in line and line.startswith("|")] == ["4", "2"]


def test_every_span_starts_from_an_empty_cache(model: SolModel, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of cached tokens of a prompt changes its rounding, so a run must not depend on earlier ones."""
    cached: list[int] = []
    for task in tasks.tasks_of(model, options(data, questions=6)):
        opening = task.open

        def opens(index: int, opening: Callable[[int], None] = opening) -> None:
            cached.append(model.engine.length)
            opening(index)

        monkeypatch.setattr(task, "open", opens)
        tasks.run(model, task, [DENSE], State(None, {}), lambda *_: None)
        assert not any(cached[:: task.span])
        assert all(length for place, length in enumerate(cached) if place % task.span)
        cached.clear()


@pytest.mark.slow
def test_a_dense_schedule_differs_by_exactly_nothing(model: SolModel, data: Path) -> None:
    """All tasks under the dense action as a fixed one, in the place of `static`."""
    store, dense = State(None, {}), model.bundle.config.dense
    for task in tasks.tasks_of(model, options(data, questions=5)):
        decoders = [model.decoder(Dial(1.0, name))[1] for name in ("dense", f"fixed:{dense.tag}", "dense")]
        answers: list[dict[int, Answer]] = [{}, {}, {}]
        for index in range(len(task)):
            task.open(index)
            for decoder, found in zip(decoders, answers, strict=True):
                found[index] = task.ask(decoder)
        assert answers[0] == answers[1] == answers[2]
        row = row_of(task.name, "fixed", answers[0], {1.0: answers[1]}, span=1)
        assert row is not None
        (cell,) = row.cells
        assert (cell.difference.value, cell.difference.low, cell.difference.high) == (0.0, 0.0, 0.0)
        assert cell.achieved == 1.0
        assert store.get(task.key(0)) is None


def test_budgets_are_held_and_static_takes_the_best_action_within_them(model: SolModel, data: Path) -> None:
    store, budgets = State(None, {}), [0.7, 0.8]
    (task,) = tasks.tasks_of(model, options(data, tasks="continuation"))
    for schedule in ("hull", "uniform", "random", "static", "sol"):
        settings = tasks.settings_of(model, ["dense", schedule], budgets)
        tasks.run(model, task, settings, store, lambda *_: None)
        for budget in budgets:
            found = [
                Answer(**store.get(tasks.key_of(model, task.key(index), Setting(schedule, budget))))
                for index in range(3)
            ]
            achieved = sum(each.spent for each in found) / sum(each.full for each in found)
            if schedule == "static":
                assert achieved <= budget + 0.01
            else:
                assert achieved == pytest.approx(budget, abs=0.02)
    cost = {
        each.action: model.cost.step(each.action, 64) / model.cost.dense(64) for each in model.bundle.config.actions
    }
    loss = {each.action: each.losses[64] for each in model.bundle.config.actions}
    for budget in np.linspace(min(cost.values()), 0.99, 9).tolist():
        chosen = next(action for action in cost if action.tag == tasks.static_tag(model, budget, 64))
        assert cost[chosen] <= budget
        assert loss[chosen] == min(loss[action] for action in cost if cost[action] <= budget)
    assert tasks.static_tag(model, 0.01, 64) == min(cost, key=cost.__getitem__).tag


def test_a_row_pairs_the_questions_that_all_have() -> None:
    def answers(right: list[bool], share: float) -> dict[int, Answer]:
        return {index: Answer(each, "", share * 10, 10.0) for index, each in enumerate(right)}

    dense = answers([True] * 300 + [False] * 200, 1.0)
    same, worse = answers([True] * 300 + [False] * 200, 0.5), answers([True] * 270 + [False] * 220, 0.4)
    row = row_of("task", "hull", dense, {0.4: worse, 0.5: same}, 1)
    assert row is not None
    assert (row.questions, row.dense) == (490, 300 / 490)
    assert [cell.achieved for cell in row.cells] == [pytest.approx(0.4), pytest.approx(0.5)]
    assert row.cells[0].difference.value == pytest.approx(-30 / 490)
    assert row.shown() == [0.5]
    assert "| 490 | 61.2 | `hull` | 55.1 (-6.1 [" in table([row], [0.4, 0.5])
    assert verdicts([row]).splitlines()[-1] == "- `hull`: task: 0.5"
    few = row_of("task", "hull", {0: dense[0]}, {0.4: {0: dense[0]}}, 1)
    assert few is not None
    assert few.shown() == []  # a question without an interval shows nothing
    hundred = row_of("task", "hull", answers([True] * 100, 1.0), {0.4: answers([True] * 100, 0.4)}, 1)
    assert hundred is not None
    assert hundred.cells[0].difference.low == 0.0
    assert hundred.shown() == []  # nor do so few
    assert row_of("task", "hull", dense, {0.4: {}}, 1) is None


def test_schedules_are_paired_with_hull_at_the_same_budget(model: SolModel, data: Path) -> None:
    """Of 12 questions dense answers 8, `hull` 6, `static` 4 at 0.7 and 5 at 0.8, where the last question is missing."""
    store, budgets = State(None, {}), [0.7, 0.8]
    (task,) = tasks.tasks_of(model, options(data, tasks="continuation", questions=12))
    schedules = ["dense", "hull", "static"]
    for index in range(12):
        for setting in tasks.settings_of(model, schedules, budgets):
            wrong = setting.schedule == "static" and index < (2 if setting.budget == 0.7 else 1)
            answer = Answer(index < (8 if setting == DENSE else 6) and not wrong, "", 1.0, 2.0)
            if (setting.budget, index) != (0.8, 11):
                store.put(tasks.key_of(model, task.key(index), setting), asdict(answer))
    told = tasks.report(model, [task], schedules, budgets, store).splitlines()
    (line,) = (line for line in told if line.startswith("- `static`, "))
    found = [re.match(r"(\S+) \[(\S+), (\S+)\] at (\S+)", part) for part in line.split("continuation: ")[1].split("; ")]
    values = [tuple(float(each) for each in match.groups()) for match in found if match]
    assert [(value, budget) for value, _, _, budget in values] == [(-16.7, 0.7), (-9.1, 0.8)]
    assert all(low < value <= high <= 0 for value, low, high, _ in values)
    assert "Points above" not in tasks.report(model, [task], ["dense", "hull"], budgets, store)
    assert "Points above" not in tasks.report(model, [task], ["dense", "static"], budgets, store)


def test_questions_of_a_span_are_drawn_together() -> None:
    """Four questions of a span that are all answered alike say as much as one; a span may lack some of its four."""

    def row(right: list[bool], span: int) -> Figure:
        given = {index: Answer(each, "", 1.0, 1.0) for index, each in enumerate(right)}
        dense = {index: Answer(True, "", 1.0, 1.0) for index in given}
        found = row_of("task", "hull", dense, {0.5: given}, span)
        assert found is not None
        return found.cells[0].difference

    spans = np.random.default_rng(3).integers(0, 2, 60).astype(bool).tolist()
    single, four = row(spans, 1), row([each for each in spans for _ in range(4)], 4)
    assert four == single
    apart = row([each for each in spans for _ in range(4)], 1)
    assert apart.low is not None
    assert four.low is not None
    assert four.low < apart.low
    uneven = row([False] * 4 + [True], 4)
    assert uneven.value == pytest.approx(-0.8)
    assert (uneven.low, uneven.high) == (-1.0, 0.0)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--tasks", "cooking"], "--tasks: got 'cooking', expected some of mmlu"),
        (["--tasks", "gsm8k"], "--tasks gsm8k: got no data, expected --gsm8k FILE"),
        (["--tasks", "mmlu"], "--tasks mmlu: got no data, expected --mmlu FOLDER"),
        (["--tasks", "retrieval"], "--tasks retrieval: got no data, expected -f FILE"),
        (["--tasks", "gsm8k", "--gsm8k", "none.jsonl"], "--gsm8k none.jsonl: No such file"),
        (["--tasks", "gsm8k", "--gsm8k", "empty"], "--gsm8k empty: got an empty file"),
        (["--tasks", "gsm8k", "--gsm8k", "words"], "--gsm8k words: line 1: got 'a word', expected"),
        (["--tasks", "continuation", "-f", "none.txt"], "-f none.txt: No such file"),
        (["--tasks", "continuation", "-f", "empty"], "-f empty: got an empty file"),
        (["--tasks", "continuation", "-f", "words"], "-f words: got 0 sentences in 2 tokens"),
        (["--tasks", "continuation", "-f", "bytes"], "-f bytes: got other bytes than UTF-8"),
        (["--tasks", "retrieval", "-f", "words"], "-c 2048:"),
        (["--tasks", "retrieval", "-f", "words", "-c", "100"], "-c 100: none of the files has so many tokens"),
        (["--tasks", "retrieval", "-f", "words", "-c", "much"], "-c: got 'much', expected whole numbers"),
        (["--tasks", "mmlu", "--mmlu", "none"], "--mmlu none: no test/SUBJECT_test.csv in it"),
        (["--tasks", "mmlu", "--mmlu", "none", "--shots", "few"], "--shots: got 'few'"),
        (
            ["--tasks", "gsm8k", "--gsm8k", "one", "--shots", "1"],
            "--shots 1: got a file of 1, one, expected 2 problems",
        ),
        (["--tasks", "gsm8k", "--gsm8k", "one", "--shots", "-1"], "--shots: got -1, expected 0 or more"),
        (["--tasks", "gsm8k", "-b", "2"], "-b: got 2, expected shares"),
        (["--tasks", "gsm8k", "-b", "half"], "-b: got 'half', expected numbers"),
        (["--tasks", "gsm8k", "--questions", "0"], "--questions: got 0, expected 1 or more"),
        (["--tasks", "gsm8k", "--schedules", "dense,best"], "--schedules: got 'best', expected some of dense"),
    ],
)
def test_bad_input_is_one_line(
    bundle: Path, tmp_path: Path, argv: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "words").write_text("a word", encoding="utf-8")
    (tmp_path / "one").write_text('{"question": "w5", "answer": "#### 1"}', encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tasks.py", str(bundle), *argv])
    with pytest.raises(SystemExit) as caught:
        tasks.main()
    assert str(caught.value).startswith(f"tasks.py: {told}")
    assert "\n" not in str(caught.value)


def test_schedules_that_a_bundle_lacks_are_refused(tmp_path: Path) -> None:
    bare = opened(write_bundle(tmp_path / "bare"))
    for name, told in (("sol", "has no policy"), ("hull", "were not measured"), ("static", "were not measured")):
        with pytest.raises(UsageError, match=f"--schedules {name}: this bundle.*{told}"):
            tasks.settings_of(bare, ["dense", name], [0.5])
    assert tasks.settings_of(bare, ["uniform"], [0.5]) == [DENSE, Setting("uniform", 0.5)]


@pytest.mark.parametrize("line", ['{"question": "x", "answer": "7"}', '{"question": "", "answer": "#### 7"}', "[1]"])
def test_lines_that_are_no_problems(tmp_path: Path, line: str) -> None:
    path = tmp_path / "file"
    path.write_text('{"question": "x", "answer": "#### 7"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"file: line 2: got .* expected"):
        read_problems(path)


def test_blank_lines_and_line_separators_in_questions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"question": "x\u2028y", "answer": "#### 7"}\n\n', encoding="utf-8")
    assert read_problems(path) == [Problem("x\u2028y", "#### 7", "7")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "-1"], "--seed: got -1, expected 0 or more"),
        (["--tasks", "retrieval", "-c", "-5"], "-c -5: got -5 tokens, expected 64 or more"),
    ],
)
def test_odd_numbers_on_the_command_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["tasks.py", str(bundle), "--tasks", "continuation", "-f", __file__, *options])
    with pytest.raises(SystemExit, match=said):
        tasks.main()


def test_the_command_line(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(bundle), "--tasks", "gsm8k", "--gsm8k", str(data / "gsm8k.jsonl"), "--questions", "2", "-b", "0.7"]
    argv += ["--state", str(tmp_path / "state")]
    monkeypatch.setattr(sys, "argv", ["tasks.py", *argv])
    tasks.main()
    shown = capsys.readouterr()
    assert shown.out.startswith("| task | questions | dense | schedule | 0.7 |\n")
    assert "GSM8K: 2 of 2 questions" in shown.err
    monkeypatch.setattr(sys, "argv", ["tasks.py", *argv, "--report"])
    tasks.main()
    assert capsys.readouterr() == (shown.out, "")
