"""Held-out tasks of the benchmark `tasks.py`: numbered questions that a decoder answers right or wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sol_rt.budget.dial import Dial
from sol_rt.errors import UsageError
from sol_rt.generate.loop import Decoder, check_room
from sol_rt.generate.model import SolModel


@dataclass(frozen=True)
class Answer:
    """Answer of a schedule to a question.

    Attributes:
        right: whether the answer was right.
        told: the answer, for a reader.
        spent: cost of the decode steps, in the cost model's unit.
        full: dense cost of the same steps.
    """

    right: bool
    told: str
    spent: float
    full: float


class Task(Protocol):
    """Questions about one thing.

    Attributes:
        name: what the task is called in the table.
        span: number of consecutive questions that share one account of the budget.
        context: tokens in the cache at a typical decode step; the action of `static` is chosen for it.
    """

    name: str
    span: int
    context: int

    def __len__(self) -> int:
        """Number of questions."""

    def key(self, index: int) -> str:
        """A name of the question that changes whenever its text or its tokens do."""

    def open(self, index: int) -> None:
        """Prefills what stands before the question's decode steps, dense. The next `ask` calls are about it."""

    def ask(self, decoder: Decoder) -> Answer:
        """Lets a decoder answer the opened question."""


def key_of(task: str, *parts: str | Sequence[int]) -> str:
    """A key of the question of these parts: texts, or token ids."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else np.array(part, np.int64).tobytes()
        found.update(len(content).to_bytes(8, "little") + content)
    return f"{task} {found.hexdigest()[:16]}"


def read(option: str, path: Path) -> str:
    """The text of a file that an option names. Raises UsageError if it cannot be read or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{option} {path}: got other bytes than UTF-8, expected a text file") from None
    if not text.strip():
        raise UsageError(f"{option} {path}: got an empty file, expected text")
    return text


def prefill(model: SolModel, prompt: Sequence[int]) -> None:
    """Fills the cache with a prompt, dense. Each decoder that reuses the cache then starts from the same one.

    Raises ContextError if the prompt is too long.
    """
    check_room(model.engine, prompt)
    model.decoder(Dial(1.0, "dense"))[1].prefill(prompt, reuse=True)
