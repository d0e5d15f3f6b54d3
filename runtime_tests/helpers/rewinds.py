"""Random runs and rewinds of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sol_rt.bundle.actions import Action
from sol_rt.generate.native.engine import Engine

Moves = Sequence[tuple[str, float]]
"""Tokens in a batch or one by one, rewinds to a share of the text, rewinds by some tokens."""


def moves(batch: int, steps: int, back: int) -> st.SearchStrategy[Moves]:
    """Up to 12 moves; the arguments are the largest numbers of tokens."""
    return st.lists(
        st.one_of(
            st.tuples(st.just("batch"), st.integers(1, batch)),
            st.tuples(st.just("steps"), st.integers(1, steps)),
            st.tuples(st.just("rewind"), st.floats(0, 1)),
            st.tuples(st.just("back"), st.integers(1, back)),
        ),
        min_size=2,
        max_size=12,
    )


def logits_along(engine: Engine, action: Action, chosen: Moves, random: Any) -> Iterator[np.ndarray]:
    """Yields the last logits of every run, float32 [vocab], of a model of 300 tokens or more."""
    engine.reset()
    for move, size in chosen:
        if move == "rewind":
            engine.truncate(int(size * engine.length))
        elif move == "back":
            engine.truncate(max(engine.length - int(size), 0))
        else:
            tokens = [random.randrange(3, 300) for _ in range(int(size))]
            for part in [tokens] if move == "batch" else [[token] for token in tokens]:
                logits = engine.forward(part, action).logits[0]
            yield logits
