"""Greedy runs on an engine, and what it means that two of them agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, THREE
from sol_rt.generate.native.engine import Engine

TIE = {THREE: 0.1, 4: 0.1, MIXED: 0.1, 6: 0.1, 8: 0.01}
"""Two ways of computing an unpruned step may choose apart where the best two logits are this close, relative to the
best, by bits: kernels and each provider's MatMulNBits round activations of levels 3, 4 and 6 in their own ways, and a
tiny random model has no preferences that would drown a flip of 8 bits.
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
    """Runs of unpruned variants, by variant: token by token the same, or parting at a near tie.

    Pruned ones are no test: a channel chosen differently changes a step of a tiny random model by more than any tie.
    """
    assert got.keys() == expected.keys()
    for key, run in expected.items():
        equal = [a == b for a, b in zip(got[key].tokens, run.tokens, strict=True)]
        if not all(equal):
            near = run.margins[equal.index(False)] <= TIE[Action.parse(f"k100-{key}").bits]
            assert near, f"{key}: {got[key].tokens} instead of {run.tokens}"
