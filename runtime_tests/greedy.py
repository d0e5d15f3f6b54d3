"""Greedy runs on an engine, and what it means that two of them agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sol_rt.actions import Action
from sol_rt.engine import Engine

TIE = {4: 0.1, 6: 0.1, 8: 0.01}
"""Two ways of computing an unpruned step may choose apart where the best two logits are this close, relative to the
best, by bits. Rounding is not continuous: float32 differences flip a code here and there, and a tiny random model has
no preferences that would drown a flip of 8 bits.
"""


@dataclass(frozen=True)
class Run:
    """Tokens chosen, and by how much of the best logit each beat the second."""

    tokens: list[int]
    margins: list[float]


def greedy(engine: Engine, prompt: Sequence[int], action: Action, count: int) -> Run:
    """`count` tokens after a prompt that the action's variant prefills."""
    engine.reset()
    run, logits = Run([], []), engine.forward(prompt, action).logits[0]
    while True:
        second, best = np.sort(logits)[-2:]
        run.tokens.append(int(logits.argmax()))
        run.margins.append(float((best - second) / abs(best)))
        if len(run.tokens) == count:
            return run
        logits = engine.forward(run.tokens[-1:], action).logits[0]


def assert_same_choices(got: Mapping[str, Run], expected: Mapping[str, Run]) -> None:
    """Runs by variant: most are equal token by token, a quarter at most parts, the unpruned ones only at a near tie.

    A channel chosen differently changes a pruned step of a tiny random model by more than any tie.
    """
    assert got.keys() == expected.keys()
    apart = 0
    for key, run in expected.items():
        variant = Action.parse(f"k100-{key}")
        equal = [a == b for a, b in zip(got[key].tokens, run.tokens, strict=True)]
        if not all(equal):
            first = equal.index(False)
            near = variant.prune < 100 or run.margins[first] <= TIE[variant.bits]
            assert near, f"{key}: {got[key].tokens} instead of {run.tokens}"
            apart += 1
    assert apart <= (len(expected) + 3) // 4, f"{apart} of {len(expected)} variants choose other tokens"
