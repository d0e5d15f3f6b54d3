"""Rounds of several streams: each gives what it gives alone, whoever joins, leaves or fails beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from helpers.json_schemas import SCHEMAS
from helpers.places import GOLDEN
from sol_rt import Grammar, SolModel
from sol_rt.errors import BusyError
from sol_rt.generate.native.session import Session
from sol_rt.generate.results import GeneratedToken
from sol_rt.generate.stream import Stream, next_of_each

SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.5}
WAYS: list[dict[str, Any]] = [
    {},
    {"schedule": "dense", "repetition_penalty": 1.3},
    {"budget": 0.4},
    {"budget": 0.7, "seed": 1, **SAMPLED},
    {"schedule": "dense", "seed": 2, **SAMPLED},
    {"budget": 0.5, "grammar": Grammar.json_schema(SCHEMAS["nested"])},
    {"grammar": Grammar.json_schema(SCHEMAS["nested"]), "seed": 3, **SAMPLED},
    {"kv_density": 0.5, "stop_strings": ["e"], "seed": 4, **SAMPLED},
]
MOST = 40  # tokens


@pytest.fixture(scope="module")
def model() -> SolModel:
    return SolModel.from_pretrained(GOLDEN / "tiny", provider="cpu", measure_costs=False)


def started(model: SolModel, session: Session, number: int, **more: Any) -> Stream:
    """A stream in the way of that number, in a session of its own."""
    prompt = "Once upon a time there was a sea. " * (1 + number % 3) + str(number)
    stream = model.stream(prompt, max_new_tokens=MOST, eos_token_id=[], **WAYS[number], **more)
    stream.move_to(session)
    return stream


def told(token: GeneratedToken | Exception) -> tuple[Any, ...]:
    """All of a token but its time."""
    assert isinstance(token, GeneratedToken), token
    return (token.token, token.text, token.action, token.logprob, token.relative_cost, token.achieved_budget,
            token.finish_reason)  # fmt: skip


def test_each_stream_gives_what_it_gives_alone(model: SolModel) -> None:
    """One more joins in each round; two leave early, the first gets another budget, and a session goes back and on."""
    sessions = [model.session() for _ in WAYS]
    leaves, moved, back = {1: 20, 6: 5}, {0: 6}, 4

    def disturb(number: int, stream: Stream, made: int) -> None:
        if moved.get(number) == made:
            stream.budget = 0.6
        if leaves.get(number) == made:
            stream.close()

    def run_all(take: Callable[[list[Stream]], list[GeneratedToken | Exception]]) -> list[list[tuple[Any, ...]]]:
        streams, made = [started(model, session, n) for n, session in enumerate(sessions)], [[] for _ in WAYS]
        for turn in range(len(WAYS) + MOST):
            there = [n for n in range(min(turn + 1, len(WAYS))) if not (made[n] and not streams[n].open)]
            for number, token in zip(there, take([streams[n] for n in there]), strict=True):
                made[number].append(told(token))
                disturb(number, streams[number], len(made[number]))
        session = sessions[back]
        session.truncate(len(session.tokens) - MOST // 2)
        others = [started(model, sessions[n], n) for n in (0, 2)]
        again = model.stream(list(session.tokens), max_new_tokens=MOST, eos_token_id=[], reuse_cache=True)
        again.move_to(session)
        made.append([])
        for _ in range(MOST):
            made[-1] += [told(token) for token in take([others[0], again, others[1]])]
        return made

    alone = run_all(lambda streams: [next(stream) for stream in streams])
    together = run_all(next_of_each)
    assert together == alone
    assert [len(tokens) for tokens in alone[:5]] == [MOST, 20, MOST, MOST, MOST]
    assert len(alone[6]) == 5
    assert len({tuple(line[0] for line in tokens) for tokens in alone}) == len(alone)


@pytest.mark.parametrize("schedule", ["hull", "sol"])
def test_where_budgets_were_moved_a_round_shares_its_reads(model: SolModel, schedule: str) -> None:
    """Two actions in turn, at the same steps in all sessions; each budget holds as alone."""
    budgets, steps = (0.7, 0.7, 0.7, 0.72), 150

    def rounds(moved: bool) -> tuple[int, list[float]]:
        streams = []
        for number, budget in enumerate(budgets):
            prompt = "Once upon a time there was a sea. " * (1 + number)
            first = 1.0 if moved else budget
            stream = model.stream(prompt, budget=first, schedule=schedule, max_new_tokens=steps + 9, eos_token_id=[])
            stream.move_to(model.session())
            next(stream)
            if moved:
                stream.budget = budget
            for _ in range(number):  # out of step
                next(stream)
            streams.append(stream)
        made = [next_of_each(streams) for _ in range(steps)]
        variants = [{token.action.variant for token in of_round} for of_round in made]
        assert len(set.union(*variants)) > 1
        return sum(map(len, variants)), [token.achieved_budget for token in made[-1]]

    (apart, _), (together, achieved) = rounds(False), rounds(True)
    assert steps <= together < steps * 1.2 < apart
    assert achieved == pytest.approx(budgets, abs=0.02)


def test_the_error_of_one_is_nobody_else_s(model: SolModel) -> None:
    sessions = [model.session() for _ in range(4)]
    alone = [told(token) for token in started(model, sessions[0], 3)]

    def refuse(_done: int, _all: int) -> None:
        raise ZeroDivisionError

    good, taken = started(model, sessions[0], 3), started(model, sessions[1], 0)
    failing, ended = started(model, sessions[2], 2, progress=refuse), started(model, sessions[3], 4)
    next(taken)
    sessions[1].reset()
    ended.close()
    made = []
    for turn in range(MOST):
        round_of = next_of_each([ended, taken, good, failing])
        assert [type(error) for error in (round_of[0], round_of[1], round_of[3])] == [
            StopIteration,
            BusyError if turn == 0 else StopIteration,
            ZeroDivisionError if turn == 0 else StopIteration,
        ]
        made.append(told(round_of[2]))
    assert made == alone
    assert next_of_each([]) == []
