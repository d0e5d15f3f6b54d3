"""Tokens that the core picks from given logits, which an engine of the tests' own hands it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.engine.distribution import Distribution
from sol_rt.engine.step import StepOutput
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.options import Options
from sol_rt.generate.request import Checks, Request
from sol_rt.generate.results import GeneratedToken
from sol_rt.generate.stream import Stream

FREELY: dict[str, Any] = {
    "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
    "eos_token_id": [], "stop_strings": [],
}  # fmt: skip
GREEDY: dict[str, Any] = {**FREELY, "do_sample": False}


class _Given:
    """Gives one row of logits after another, whatever it is asked to run."""

    def __init__(self, rows: Iterable[np.ndarray], hidden_size: int) -> None:
        self._rows, self._hidden = iter(rows), np.zeros((1, hidden_size), np.float32)

    def forward(self, tokens: Sequence[int], action: Action, *, num_logits: int = 1) -> StepOutput:
        row = next(self._rows)
        return StepOutput(row[None], self._hidden, Distribution(row))

    def truncate(self, length: int) -> None:
        pass

    def reusable_prefix(self, length: int) -> int:
        return length


def draws(model: SolModel, rows: Sequence[np.ndarray], prompt: Sequence[int], **settings: Any) -> list[GeneratedToken]:
    """A token from each row of logits, float32 [vocab], after a prompt."""
    config = model.bundle.config
    session = model.session(_Given(rows, config.model.hidden_size))
    options = Options(model.cost, Dial(budget=1.0, schedule="dense"))
    options.set_generation({**settings, "max_new_tokens": len(rows)})
    return list(Stream(session, Checks(session, lambda: session), Request(prompt, options)))
