"""MMLU as a task: the likeliest choice under a schedule, by the scores that `sol-rt eval --mmlu` takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from tasks_asked import Answer, key_of

from sol_rt.bundle.actions import Action
from sol_rt.engine.engine import Engine
from sol_rt.engine.step import StepOutput
from sol_rt.evaluation.quality.continuations import PromptScorer
from sol_rt.evaluation.quality.exam import LETTERS, Question, read_exam
from sol_rt.evaluation.quality.mmlu import answered_by, fitted
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.evaluation.quality.runs import detached
from sol_rt.generate.loop import Decoder
from sol_rt.generate.model import SolModel


class OneStepEngine(Engine):
    """An engine that can run the only step after a prompt once for all schedules that choose the same action for it."""

    _once = False

    @contextmanager
    def steps_run_once(self) -> Iterator[None]:
        """Within this context every token is such a step. Its output is kept until something else runs."""
        self._once = True
        try:
            yield
        finally:
            self._once = False

    def forward(self, tokens: Sequence[int] | np.ndarray, action: Action, *, num_logits: int = 1) -> StepOutput:
        if not self._once:
            self._kept: dict[tuple[int, int, Action], StepOutput] = {}
            return super().forward(tokens, action, num_logits=num_logits)
        step = self.length, int(tokens[0]), action
        if step not in self._kept:
            self._kept[step] = detached(super().forward(tokens, action))
        return self._kept[step]


class Mmlu:
    """Questions of all subjects in turn, `span` of a subject at a time: they share the examples in the cache.

    Args:
        model: an open model.
        folder: as in `read_exam`.
        questions: number of questions at most.
        form: `continuation` chooses by log-probability per character, `letter` by that of the letters A to D.
        shots: examples before each question, 0 to 5.
    """

    def __init__(self, model: SolModel, folder: Path, questions: int, form: str, shots: int) -> None:
        self.name = f"MMLU {form}, {shots}-shot"
        # a letter takes one decode step; examples are prefilled once a span
        self.span = 4 if form == "continuation" else 64 if shots else 16
        self.context = 100 * (shots + 1)
        self._model = model
        self._exam = read_exam(folder, subjects=[], questions=None, form=form, shots=shots)
        self._questions = by_subject_in_turn(self._exam.questions, self.span)[:questions]
        self._scorer = PromptScorer(model.engine)
        self._opened: tuple[Question, list[list[int]], int]

    def __len__(self) -> int:
        return len(self._questions)

    def key(self, index: int) -> str:
        question = self._questions[index]
        return key_of(f"mmlu {self._exam.form}", self._exam.prompt(question), *question.choices)

    def open(self, index: int) -> None:
        prompt, answers, cut = self._tokens(index)
        self._opened = self._questions[index], answers, cut
        self._scorer.open(prompt)

    def ask(self, decoder: Decoder) -> Answer:
        question, answers, cut = self._opened
        letter = self._exam.form == "letter"
        lengths = [len(choice) for choice in (LETTERS if letter else question.choices)]
        engine = self._model.engine
        one_step = all(len(each) == 1 for each in answers)
        with engine.steps_run_once() if one_step and isinstance(engine, OneStepEngine) else nullcontext():
            answered = answered_by(self._scorer, decoder, answers, lengths, cut)
        choice = answered.choice if letter else answered.normalised_choice
        return Answer(choice == question.answer, LETTERS[choice], answered.spent, answered.full)

    def _tokens(self, index: int) -> tuple[list[int], list[list[int]], int]:
        """The prompt, each choice, and how many tokens were cut from the prompt's beginning."""
        question, encode = self._questions[index], self._model.tokenizer.encode
        text = self._exam.prompt(question)
        prompt = encode(text)
        answers = [encode(text + answer)[len(prompt) :] for answer in self._exam.answers(question)]
        limit, bos = self._model.engine.max_context, added_bos(self._model)
        prompt, cut = fitted(prompt, max(map(len, answers)), limit, bos)
        return prompt, answers, cut


def by_subject_in_turn(questions: tuple[Question, ...], span: int) -> list[Question]:
    """Sorts questions so that `span` of a subject follow each other before those of the next subject."""
    place: dict[str, int] = {}
    order = []
    for question in questions:
        number = place.get(question.subject, 0)
        place[question.subject] = number + 1
        order.append((number // span, list(place).index(question.subject), number))
    return [question for _, question in sorted(zip(order, questions, strict=True), key=lambda pair: pair[0])]
