"""The choice of actions, on made-up measurements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_rt.budget.frontier import lower_hull
from sol_rt.bundle.actions import Action
from sol_rt.export.actions.selection import TIE, Point, choose, makes_unnecessary, worth_keeping

DENSE = Action(1.0, 1.0, 8)
GRID = [
    Action(kv_density, channel_density, bits)
    for bits in (8, 6, 4)
    for channel_density in (1.0, 0.75, 0.5)
    for kv_density in (1.0, 0.25)
]


def point(ms: float, loss: float, noise: float = 0.0, tokens: int = 100, seed: int = 0) -> Point:
    """A point whose mean loss is exactly `loss`."""
    values = np.random.default_rng(seed).normal(size=tokens) * noise
    return Point(ms, values - values.mean() + loss)


def front(**points: tuple[float, float]) -> dict[Action, Point]:
    """`k100_s050_q4=(ms, loss)` without noise, and the dense action at 10 ms."""
    return {DENSE: point(10, 0.0)} | {
        Action.parse(name.replace("_", "-")): point(*values) for name, values in points.items()
    }


@st.composite
def fronts(draw: st.DrawFn, apart: bool = False) -> dict[int, dict[Action, Point]]:
    """One or two contexts; with `apart` all times of a context differ by more than a tie."""
    made = {}
    for context in draw(st.sampled_from([(512,), (512, 4096)])):
        actions = draw(st.lists(st.sampled_from(GRID[1:]), min_size=1, max_size=9, unique=True))
        numbers = draw(st.permutations(range(1, len(actions) + 1))) if apart else None
        found = {DENSE: point(10.0, 0.0, tokens=30)}
        for index, action in enumerate(actions):
            ms = 10 * (1 + 2 * TIE) ** -numbers[index] if numbers else draw(st.floats(1.0, 10.5))
            loss, noise = draw(st.floats(-0.05, 2.0)), draw(st.floats(0.0, 0.5))
            found[action] = point(ms, loss, noise, 30, draw(st.integers(0, 5)))
        made[context] = found
    return made


@settings(max_examples=200, deadline=None)
@given(measured=fronts(), max_actions=st.integers(1, 20), collapse_loss=st.floats(0.5, 3.0))
def test_what_every_choice_has(
    measured: dict[int, dict[Action, Point]], max_actions: int, collapse_loss: float
) -> None:
    verdicts = choose(measured, DENSE, max_actions, collapse_loss=collapse_loss)
    assert verdicts.keys() == {action for found in measured.values() for action in found}
    kept = {action for action, verdict in verdicts.items() if verdict.kept}
    assert DENSE in kept
    assert all(verdict.reason for verdict in verdicts.values())
    fastest = 0
    for found in measured.values():
        useful = [action for action in worth_keeping(found, DENSE, collapse_loss) if action != DENSE]
        if useful and max_actions > 1:
            fastest += 1
            assert min(useful, key=lambda action: found[action].ms) in kept
    assert len(kept) <= max(max_actions, 1 + fastest)
    assert kept <= {DENSE}.union(*(worth_keeping(found, DENSE, collapse_loss) for found in measured.values()))


@settings(max_examples=200, deadline=None)
@given(measured=fronts())
def test_a_dropped_action_has_a_better_one_at_every_context(measured: dict[int, dict[Action, Point]]) -> None:
    verdicts = choose(measured, DENSE, 100)
    kept = {action for action, verdict in verdicts.items() if verdict.kept}
    for found in measured.values():
        for action in found.keys() - kept:
            assert any(
                makes_unnecessary(found[by], found[action], simpler) for by in kept & found.keys() for simpler in (0, 1)
            )


@settings(max_examples=200, deadline=None)
@given(measured=fronts(apart=True))
def test_a_kept_action_is_the_best_of_its_speed_somewhere(measured: dict[int, dict[Action, Point]]) -> None:
    kept = {action for action, verdict in choose(measured, DENSE, 100).items() if verdict.kept}
    best = [worth_keeping(found, DENSE, np.inf) for found in measured.values()]
    assert kept == {DENSE}.union(*best)
    for found, front_there in zip(measured.values(), best, strict=True):
        for one in front_there:
            assert not any(
                makes_unnecessary(found[by], found[one], False) for by in front_there - {one} if one != DENSE
            )


def test_a_dearer_and_worse_action_goes() -> None:
    verdicts = choose({512: front(k100_s100_q4=(5, 0.1), k100_s050_q6=(7, 0.2))}, DENSE, 12)
    assert verdicts[Action(1.0, 1.0, 4)].kept
    dropped = verdicts[Action(1.0, 0.5, 6)]
    assert not dropped.kept
    assert dropped.reason.startswith("k100-s100-q4 does as well at 512: 5 ms for 7, -0.1 ±")


@pytest.mark.parametrize(("tokens", "kept"), [(50, False), (5000, True)])
def test_a_gain_that_noise_may_have_made_is_none(tokens: int, kept: bool) -> None:
    """0.02 nats with a spread of 0.2 a token: 0.7 standard errors of 50 tokens, 7 of 5000."""
    measured = {
        DENSE: point(10, 0.0, tokens=tokens),
        Action(1.0, 1.0, 6): point(8, 0.02, tokens=tokens),
        Action(1.0, 1.0, 4): point(6, 0.04, 0.2, tokens),
    }
    assert choose({512: measured}, DENSE, 12)[Action(1.0, 1.0, 6)].kept == kept


def test_differences_are_paired() -> None:
    """Two actions that suffer at the same tokens differ beyond doubt, however large that common part."""
    common = np.random.default_rng(0).normal(size=200)
    measured = {
        DENSE: Point(10, np.zeros(200)),
        Action(1.0, 1.0, 6): Point(8, common - common.mean() + 0.30),
        Action(1.0, 1.0, 4): Point(6, common - common.mean() + 0.32 + 0.01 * np.sin(np.arange(200))),
    }
    assert choose({512: measured}, DENSE, 12)[Action(1.0, 1.0, 6)].kept


def test_a_tie_goes_to_the_simpler() -> None:
    verdicts = choose({512: front(k025_s100_q6=(8.0, 0.1), k100_s100_q6=(8.05, 0.1))}, DENSE, 12)
    assert verdicts[Action(1.0, 1.0, 6)].kept
    assert not verdicts[Action(0.25, 1.0, 6)].kept


def test_as_fast_and_better_wins_though_a_little_slower() -> None:
    verdicts = choose({512: front(k100_s075_q6=(8.0, 0.2), k100_s100_q6=(8.05, 0.1))}, DENSE, 12)
    assert verdicts[Action(1.0, 1.0, 6)].kept
    assert not verdicts[Action(1.0, 0.75, 6)].kept


def test_an_action_kept_at_one_context_is_kept() -> None:
    short = front(k100_s100_q4=(5, 0.1), k100_s050_q4=(5.5, 0.2))
    long = front(k100_s100_q4=(8, 0.1), k100_s050_q4=(6, 0.2))
    verdicts = choose({512: short, 4096: long}, DENSE, 12)
    assert verdicts[Action(1.0, 0.5, 4)].kept
    assert verdicts[Action(1.0, 0.5, 4)].reason == "best of its speed at 4096"
    assert verdicts[Action(1.0, 1.0, 4)].reason == "best of its speed at 512 and 4096"


def test_text_that_is_gone() -> None:
    verdicts = choose({512: front(k100_s100_q4=(5, 0.1), k100_s050_q4=(3, 2.5))}, DENSE, 12, collapse_loss=2.0)
    assert not verdicts[Action(1.0, 0.5, 4)].kept
    assert "the output collapses at 512: 2.5 nats" in verdicts[Action(1.0, 0.5, 4)].reason


def test_the_policys_actions_stay() -> None:
    measured = {512: front(k100_s100_q4=(5, 0.1), k100_s050_q6=(7, 0.2), k100_s050_q4=(3, 2.5))}
    required = (Action(1.0, 0.5, 6), Action(1.0, 0.5, 4))
    verdicts = choose(measured, DENSE, 1, collapse_loss=2.0, required=required)
    assert {action for action, verdict in verdicts.items() if verdict.kept} == {DENSE, *required}
    assert verdicts[required[0]].reason == "the policy picks it"


def test_beyond_the_limit_the_hull_decides() -> None:
    """On the hull stays what bends it most; what lies above it goes first."""
    measured = front(
        k100_s100_q6=(8, 0.02),  # bends little
        k100_s100_q4=(6, 0.05),  # the corner
        k100_s075_q4=(5, 0.5),  # above the line from the corner to the cheapest
        k100_s050_q4=(4, 0.6),
    )
    for max_actions, dropped in ((4, {(0.75, 4)}), (3, {(0.75, 4), (1.0, 6)}), (2, {(0.75, 4), (1.0, 6), (1.0, 4)})):
        verdicts = choose({512: measured}, DENSE, max_actions)
        assert {(a.channel_density, a.bits) for a, verdict in verdicts.items() if not verdict.kept} == dropped
    assert verdicts[Action(1.0, 1.0, 4)].reason.startswith("over the limit of 2: without it the frontier rises by")
    assert verdicts[Action(1.0, 0.75, 4)].reason.startswith("over the limit of 2: without it nothing rises")


def test_the_hull_is_below_all_points_and_convex() -> None:
    points = [tuple(pair) for pair in np.random.default_rng(1).random((40, 2)).tolist()]
    hull = lower_hull(points)
    assert hull[0][0] == min(points)[0]
    assert hull[-1][0] == max(points)[0]
    xs, ys = zip(*hull, strict=True)
    assert all(y >= np.interp(x, xs, ys) - 1e-12 for x, y in points)
    slopes = np.diff(ys) / np.diff(xs)
    assert (np.diff(slopes) > 0).all()
