"""Retrieval from a long context: the haystacks of `needle.py`, asked about by decode steps of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from needle import DIGITS, Needle, haystacks
from tasks_asked import Answer, key_of, prefill, read

from sol_rt.errors import ContextError, UsageError
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.generate.loop import Decoder
from sol_rt.generate.model import SolModel

DEPTHS = (0.9, 0.7, 0.5, 0.3, 0.1)
LEAST_SIZE = 64  # tokens of a haystack


class Retrieval:
    """One needle a haystack, from several books in turn, at five depths each.

    Args:
        model: an open model.
        files: the books; those shorter than a haystack are left out.
        size: tokens of a haystack.
        questions: number of haystacks at most.
        seed: seed of needles and places.
    """

    span = len(DEPTHS)  # a question takes about 20 decode steps

    def __init__(self, model: SolModel, files: Sequence[Path], size: int, questions: int, seed: int = 0) -> None:
        if size < LEAST_SIZE:
            raise UsageError(f"-c {size}: got {size} tokens, expected {LEAST_SIZE} or more, to hide a sentence in")
        if size + 64 > model.engine.max_context:
            raise ContextError(f"-c {size}: with a question, longer than the model's {model.engine.max_context} tokens")
        self.name, self.context = f"retrieval, {size} tokens", size
        self._model = model
        bos, tokenizer = added_bos(model), model.tokenizer
        start = [] if bos is None else [bos]
        books = [tokenizer.encode(read("-f", path), add_special_tokens=False) for path in files]
        books = [book for book in books if len(book) >= size]
        if not books:
            raise UsageError(f"-c {size}: none of the files has so many tokens; use longer ones with -f")
        random = np.random.default_rng(seed)
        self._made: list[tuple[list[int], Needle]] = []
        while len(self._made) < questions:
            for book in books:
                made = haystacks(book, size - len(start), DEPTHS, tokenizer, random)
                self._made += [(start + tokens, needle) for tokens, needle in made]
        del self._made[questions:]
        self._opened = 0

    def __len__(self) -> int:
        return len(self._made)

    def key(self, index: int) -> str:
        tokens, needle = self._made[index]
        return key_of(f"retrieval {needle.question.strip()}", tokens)

    def open(self, index: int) -> None:
        self._opened = index
        prefill(self._model, self._made[index][0])

    def ask(self, decoder: Decoder) -> Answer:
        tokens, needle = self._made[self._opened]
        tokenizer, cost = self._model.tokenizer, decoder.controller.cost
        decoder.prefill(tokens, reuse=True)
        spent = full = 0.0
        given = tokenizer.encode(needle.question, add_special_tokens=False)
        told: list[int] = []
        while True:
            for token in given:
                record = decoder.step(token)
                spent, full = spent + record.cost, full + cost.dense(record.context)
            told.append(decoder.output.distribution.top)
            text = tokenizer.decode(told).strip()
            # a token may be one digit, several digits, or a blank before them
            if len(text) >= DIGITS or len(told) == 2 * DIGITS:
                return Answer(text.startswith(needle.answer), text, spent, full)
            given = told[-1:]
