"""GSM8K by generation: a word problem through the chat template, answered greedily; the last number is the answer."""

from __future__ import annotations

import json
import re
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
# a minus directly behind a word or a digit is a dash or a subtraction
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


def last_number(text: str) -> str | None:
    """The last number in a text, without commas and without zeros at its ends; None if there is none."""
    found = _NUMBER.findall(text)
    return f"{Decimal(found[-1].replace(',', '')).normalize() + 0:f}" if found else None  # + 0 makes 0 of -0


def read_problems(path: Path) -> list[tuple[str, str]]:
    """Questions and right answers of a file of JSON lines with `question` and `answer`, which ends in `#### N`.

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
        problems.append((row["question"], right))
    return problems


class Gsm8k:
    """The problems in an order drawn by a seed.

    Args:
        model: an open model.
        path: the file of problems.
        questions: number of problems at most.
        seed: seed of the order.
    """

    name = "GSM8K"
    span = 1  # each generation has its own account, as in use
    context = 256

    def __init__(self, model: SolModel, path: Path, questions: int, seed: int = 0) -> None:
        problems = read_problems(path)
        order = np.random.default_rng(seed).permutation(len(problems))[:questions]
        template = model.bundle.chat_template()
        self._model = model
        self._answers = [problems[place][1] for place in order]
        self._prompts = [
            prompt_tokens(
                [{"role": "user", "content": PROMPT.format(question=problems[place][0])}],
                model.tokenizer,
                template,
                model.bundle.config.model.vocab_size,
            )
            for place in order
        ]
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
