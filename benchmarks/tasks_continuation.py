"""Continuation of plain text, as in HellaSwag: which of four pieces follows a context; three come from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tasks_asked import Answer, key_of, read

from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.continuations import PromptScorer
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.generate.loop import Decoder
from sol_rt.generate.model import SolModel
from sol_rt.text.tokenizer import Tokenizer

CONTEXT, PIECE, CHOICES = 96, 24, 4
_END = re.compile(r"""[.!?]["'”’)]*\s*$""")
_NO_START = re.compile(r"""[.!?"'”’)]*|\s*""")  # a mark after the end, or a blank
_SHORTENED = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|No|[A-Z])\.\s*$")


@dataclass(frozen=True)
class Item:
    """A context and the pieces that may follow it, in token ids, and the index of the piece that does."""

    context: tuple[int, ...]
    pieces: tuple[tuple[int, ...], ...]
    answer: int


def sentence_starts(tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Places in a text at which a sentence begins: after a token that ends one."""
    words = [tokenizer.decode([token]) for token in tokens]
    starts = []
    for place in range(1, len(tokens)):
        before = "".join(words[max(place - 4, 0) : place])
        if _END.search(before) and not _SHORTENED.search(before) and not _NO_START.fullmatch(words[place]):
            starts.append(place)
    return starts


def items_of(
    name: str, tokens: Sequence[int], starts: Sequence[int], bos: int | None, questions: int, seed: int
) -> list[Item]:
    """Draws items from a text. Each has the CONTEXT tokens before a sentence, the PIECE tokens from its start, and as
    many from the starts of other sentences, clear of the context and the answer. The pieces are shuffled. Fewer
    questions are the first of those that more would give.

    Raises UsageError for a text with too few sentences.
    """
    random = np.random.default_rng(seed)
    usable = np.array([place for place in starts if place + PIECE <= len(tokens)])
    asked = usable[usable >= CONTEXT] if len(usable) else usable
    if len(asked) < 1 or len(usable) < 8 * CHOICES:
        raise UsageError(
            f"-f {name}: got {len(usable)} sentences in {len(tokens)} tokens, expected {8 * CHOICES} or more; use a "
            "longer text"
        )
    items = []
    for place in random.permutation(asked)[:questions].tolist():
        elsewhere = usable[(usable + PIECE <= place - CONTEXT) | (usable >= place + PIECE)]
        if len(elsewhere) < CHOICES - 1:
            continue
        others = random.choice(elsewhere, CHOICES - 1, replace=False).tolist()
        pieces = [tuple(tokens[at : at + PIECE]) for at in (place, *others)]
        order = random.permutation(CHOICES).tolist()
        context = tokens[place - CONTEXT : place]
        items.append(
            Item(
                tuple(context if bos is None else (bos, *context)),
                tuple(pieces[choice] for choice in order),
                order.index(0),
            )
        )
    if not items:
        raise UsageError(f"-f {name}: no sentence has {CHOICES - 1} pieces of text clear of it; use a longer text")
    return items


class Continuation:
    """Items of several texts in turn. The piece with the highest mean log-probability a token is the answer.

    Args:
        model: an open model.
        files: the texts.
        questions: number of items at most.
        seed: seed of the items.
    """

    name = "continuation"
    span = 1  # an item takes CHOICES * PIECE decode steps
    context = CONTEXT + PIECE // 2

    def __init__(self, model: SolModel, files: Sequence[Path], questions: int, seed: int = 0) -> None:
        bos, tokenizer = added_bos(model), model.tokenizer
        lists = []
        for path in files:
            tokens = tokenizer.encode(read("-f", path), add_special_tokens=False)
            starts = sentence_starts(tokens, tokenizer)
            lists.append(items_of(str(path), tokens, starts, bos, questions, seed))
        most = max(map(len, lists))
        turns = [items[turn] for turn in range(most) for items in lists if turn < len(items)]
        self._items = turns[:questions]
        self._scorer = PromptScorer(model.engine)
        self._opened = self._items[0]

    def __len__(self) -> int:
        return len(self._items)

    def key(self, index: int) -> str:
        item = self._items[index]
        return key_of("continuation", item.context, *item.pieces)

    def open(self, index: int) -> None:
        self._opened = self._items[index]
        self._scorer.open(self._opened.context)

    def ask(self, decoder: Decoder) -> Answer:
        scores = [self._scorer.score(decoder, piece) for piece in self._opened.pieces]
        choice = int(np.argmax([score.logprobs.mean() for score in scores]))
        spent, full = sum(score.spent for score in scores), sum(score.full for score in scores)
        return Answer(choice == self._opened.answer, str(choice), spent, full)
