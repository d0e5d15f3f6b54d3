"""GSM8K by generation: a word problem through the chat template, answered greedily; the last number is the answer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
from tasks_asked import Answer, key_of, prefill, read

from sol_rt.errors import UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.loop import Decoder, generate_steps
from sol_rt.generate.model import SolModel
from sol_rt.generate.prompt import prompt_tokens
from sol_rt.generate.results import Progress

NEW_TOKENS = 320
PROMPT = "{question}\nReason step by step, and write the final answer as a number after ####."
_CALCULATION = re.compile(r"<<[^>]*>>")  # notes for a calculator, such as <<6*30=180>>
# a minus directly after a word or a digit is a dash or a subtraction
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


def last_number(text: str) -> str | None:
    """The last number in a text, without commas and without zeros at its ends; None if there is none."""
    found = _NUMBER.findall(text)
    return f"{Decimal(found[-1].replace(',', '')).normalize() + 0:f}" if found else None  # + 0 makes 0 of -0


@dataclass(frozen=True)
class Problem:
    """A word problem, a solution that ends in `#### N`, without notes for a calculator, and N."""

    question: str
    solution: str
    answer: str


def read_problems(path: Path) -> list[Problem]:
    """The problems of a file of JSON lines with `question` and `answer`, which is a solution that ends in `#### N`.

    Raises UsageError for a file that cannot be read and for a line that is no problem.
    """
    problems = []
    for number, line in enumerate(read("--gsm8k", path).split("\n"), 1):  # others of splitlines may stand in a question
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            right = last_number(row["answer"].rpartition("####")[2])
            if "####" not in row["answer"] or right is None or not row["question"].strip():
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            expected = 'expected {"question": …, "answer": … that ends in "#### N"}'
            raise UsageError(f"--gsm8k {path}: line {number}: got {line[:40]!r}, {expected}") from None
        problems.append(Problem(row["question"], _CALCULATION.sub("", row["answer"]), right))
    return problems


class Gsm8k:
    """The problems in an order drawn by a seed. The last ones of the order are examples.

    Args:
        model: an open model.
        path: the file of problems.
        questions: number of problems at most.
        seed: seed of the order.
        shots: solved problems that stand before each question as turns of a chat, 0 or more.

    Raises UsageError for a negative `shots`, and for a file with fewer than `shots + 1` problems.
    """

    def __init__(self, model: SolModel, path: Path, questions: int, seed: int = 0, shots: int = 0) -> None:
        problems = read_problems(path)
        if shots < 0:
            raise UsageError(f"--shots: got {shots}, expected 0 or more")
        if len(problems) <= shots:
            raise UsageError(
                f"--shots {shots}: got a file of {len(problems)}, {path}, expected {shots + 1} problems or more"
            )
        order = [problems[place] for place in np.random.default_rng(seed).permutation(len(problems))]
        asked, examples = order[: len(order) - shots][:questions], order[len(order) - shots :]
        before = [turn for each in examples for turn in (_asking(each), _turn("assistant", each.solution))]
        template, vocab_size = model.bundle.chat_template(), model.bundle.config.model.vocab_size
        self.name = f"GSM8K, {shots}-shot" if shots else "GSM8K"
        self._model = model
        self._answers = [each.answer for each in asked]
        self._prompts = [
            prompt_tokens([*before, _asking(each)], model.tokenizer, template, vocab_size) for each in asked
        ]
        # a span shares the examples in the cache, and an account; without examples each question has its own, as in use
        self.span = 4 if shots else 1
        self.context = 256 + 160 * shots  # an example takes about 160 tokens
        ends = GenerationConfig.from_bundle(model.bundle).eos_token_id
        self._config = GenerationConfig(max_new_tokens=NEW_TOKENS, eos_token_id=ends)
        self._opened = 0

    def __len__(self) -> int:
        return len(self._prompts)

    def key(self, index: int) -> str:
        return key_of(f"gsm8k {NEW_TOKENS}", self._prompts[index])

    def open(self, index: int) -> None:
        self._opened = index
        prefill(self._model, self._prompts[index])

    def ask(self, decoder: Decoder) -> Answer:
        prompt, progress = self._prompts[self._opened], Progress()
        spent = full = 0.0
        texts = []
        for token, record in generate_steps(decoder, prompt, self._config, self._model.tokenizer, progress, reuse=True):
            texts.append(token.text)
            if len(texts) > 1:  # the prompt's own step predicts the first token
                spent += record.cost
                full += decoder.controller.cost.dense(record.context)
        told = last_number("".join(texts))
        return Answer(told == self._answers[self._opened], str(told), spent, full)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _asking(problem: Problem) -> dict[str, str]:
    return _turn("user", PROMPT.format(question=problem.question))
