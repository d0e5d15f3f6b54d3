"""The choice of actions, on made-up measurements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sol_rt.budget.hull import lower_hull
from sol_rt.bundle.actions import Action
from sol_rt.bundle.selection import Measured
from sol_rt.export.actions.selection import NEAR, choose, excess_bytes, near_hull

DENSE = Action(1.0, 1.0, 8)
GRID = [
    Action(kv_density, channel_density, bits)
    for bits in (8, 6, 4)
    for channel_density in (1.0, 0.75, 0.5)
    for kv_density in (1.0, 0.25)
]


def front(**points: tuple[float, float]) -> dict[Action, Measured]:
    """`k100_s050_q4=(bytes, loss)`, and the dense action at 10 bytes."""
    return {DENSE: Measured(10, 0.0, 0.0)} | {
        Action.parse(name.replace("_", "-")): Measured(*values, 0.01) for name, values in points.items()
    }


@st.composite
def fronts(draw: st.DrawFn) -> dict[int, dict[Action, Measured]]:
    """One to three contexts, with an excerpt of the grid at each."""
    made = {}
    for context in draw(st.sampled_from([(512,), (512, 4096), (512, 2048, 4096)])):
        actions = draw(st.lists(st.sampled_from(GRID[1:]), min_size=1, max_size=9, unique=True))
        points = {action: (draw(st.floats(1.0, 10.5)), draw(st.floats(-0.05, 2.0))) for action in actions}
        made[context] = {DENSE: Measured(10.0, 0.0, 0.0)} | {a: Measured(*p, 0.0) for a, p in points.items()}
    return made


def mix_loss(points: list[Measured], size: float) -> float:
    """The least mean loss of two points taken in turn that read at most `size` bytes on average."""
    below = [point for point in points if point.bytes <= size]
    above = [point for point in points if point.bytes > size]
    found = [point.loss for point in below]
    for one in below:
        for two in above:
            share = (size - one.bytes) / (two.bytes - one.bytes)
            found.append(one.loss + share * (two.loss - one.loss))
    return min(found, default=float("inf"))


@settings(max_examples=200, deadline=None)
@given(measured=fronts(), max_actions=st.integers(1, 20), collapse_loss=st.floats(0.5, 3.0))
def test_every_choice_keeps_dense_and_gives_a_verdict_on_each_action(
    measured: dict[int, dict[Action, Measured]], max_actions: int, collapse_loss: float
) -> None:
    verdicts = choose(measured, DENSE, max_actions, collapse_loss=collapse_loss)
    assert verdicts.keys() == {action for found in measured.values() for action in found}
    kept = {action for action, verdict in verdicts.items() if verdict.kept}
    assert DENSE in kept
    assert all(verdict.reason for verdict in verdicts.values())
    views = [*measured.values(), {action: p for action, p in measured[512].items() if action.kv_density == 1.0}]
    near = {DENSE}.union(*(near_hull(found, DENSE, collapse_loss) for found in views))
    assert kept <= near
    useful = [{a: p for a, p in found.items() if p.loss <= collapse_loss and a != DENSE} for found in views]
    cheapest = {
        min((action for action in found if action in near), key=lambda a: (found[a].bytes, a))
        for found in useful
        if near & found.keys()
    }
    if max_actions > 1:
        assert cheapest <= kept
    assert len(kept) <= max(max_actions, 1 + len(cheapest))


@settings(max_examples=200, deadline=None)
@given(measured=fronts())
@example(  # the fall of a hull whose losses are denormal overflows
    measured={
        512: front(k025_s075_q8=(1, 5e-324), k050_s075_q8=(1, 1.0), k100_s075_q8=(2, 2.2250738585e-313)),
    }
)
def test_no_mix_of_kept_actions_misses_a_dropped_one(measured: dict[int, dict[Action, Measured]]) -> None:
    """At every context, with no more bytes than a dropped action, a mix of kept ones loses no more."""
    verdicts = choose(measured, DENSE, 100)
    kept = {action for action, verdict in verdicts.items() if verdict.kept}
    for found in measured.values():
        points = [point for action, point in found.items() if action in kept]
        for action in found.keys() - kept:
            assert mix_loss(points, found[action].bytes) <= found[action].loss + 1e-9


@settings(max_examples=200, deadline=None)
@given(measured=fronts())
def test_a_saving_of_the_excess_would_put_an_action_on_the_hull(measured: dict[int, dict[Action, Measured]]) -> None:
    for found in measured.values():
        for action in found.keys() - {DENSE}:
            point, others = found[action], [point for by, point in found.items() if by != action]
            share = excess_bytes(point, others)
            assert 0 <= share < 1
            assert mix_loss(others, point.bytes * (1 - share) * (1 - 1e-6)) >= point.loss - 1e-5
            if share > 0:
                assert mix_loss(others, point.bytes * (1 - share) * (1 + 1e-9)) <= point.loss + 1e-5


@settings(max_examples=100, deadline=None)
@given(measured=fronts(), factors=st.lists(st.floats(1 - NEAR / 2, 1.0), min_size=18, max_size=18))
def test_another_clock_finds_its_hull_among_the_kept_ones(
    measured: dict[int, dict[Action, Measured]], factors: list[float]
) -> None:
    """A machine on which every action is up to a twentieth faster than its bytes say, each by a share of its own."""
    kept = {action for action, verdict in choose(measured, DENSE, 100).items() if verdict.kept}
    quicker = dict(zip(GRID, factors, strict=True)) | {DENSE: 1.0}
    for found in measured.values():
        times = {action: (point.bytes * quicker[action], point.loss) for action, point in found.items()}
        corners = set(lower_hull(times.values()))
        best = min(loss for _, loss in corners)
        falling = {corner for corner in corners if corner[0] <= min(at for at, loss in corners if loss == best)}
        for action in found.keys() - kept:
            assert times[action] not in falling or any(times[by] == times[action] for by in kept & found.keys())


def test_a_dearer_and_worse_action_goes() -> None:
    verdicts = choose({512: front(k100_s100_q4=(5, 0.1), k100_s050_q6=(7, 0.2))}, DENSE, 12)
    assert verdicts[Action(1.0, 1.0, 4)].kept
    dropped = verdicts[Action(1.0, 0.5, 6)]
    assert not dropped.kept
    assert dropped.reason == "a mix of two others loses as little at 512 and reads 29% fewer bytes"


def test_a_low_kv_density_stays_where_the_cache_may_be_slow() -> None:
    """It saves 1% of the bytes, all of them the cache's, which takes as long as weights of eight times the bytes."""
    measured = {
        512: front(
            k100_s100_q6=(7.0, 0.059), k100_s100_q4=(5.0, 0.1), k025_s100_q4=(4.95, 0.11), k100_s050_q4=(4.0, 0.3)
        )
    }
    weights = {"s100-q8": 9.95, "s100-q6": 6.95, "s100-q4": 4.93, "s050-q4": 3.93}
    plain, slow = choose(measured, DENSE, 4), choose(measured, DENSE, 4, weight_bytes=weights)
    assert [found[Action(0.25, 1.0, 4)].kept for found in (plain, slow)] == [False, True]


def test_actions_near_the_hull_stay() -> None:
    """A corner between 5 and 10 bytes, moved away from the hull's line step by step."""
    for size, kept in ((7.0, True), (7.5, True), (8.2, True), (8.4, False)):
        measured = front(k100_s100_q4=(5, 0.1), k100_s100_q6=(size, 0.05))
        verdict = choose({512: measured}, DENSE, 12)[Action(1.0, 1.0, 6)]
        assert verdict.kept == kept
    measured = front(k100_s100_q4=(5, 0.1), k100_s100_q6=(8.0, 0.05))
    reason = choose({512: measured}, DENSE, 12)[Action(1.0, 1.0, 6)].reason
    assert reason == "near the hull at 512: a mix of two others loses as little and reads 6.2% fewer bytes"


def test_the_action_that_one_machines_times_threw_away() -> None:
    """The 135M at 512 tokens: at one processor's times, 75% of the channels saved 3%; by bytes they are a corner."""
    measured = front(k100_s100_q4=(5.8, 0.0042), k100_s075_q4=(4.9, 0.0354), k100_s050_q4=(4.0, 0.3465))
    assert choose({512: measured}, DENSE, 16)[Action(1.0, 0.75, 4)].reason == "on the hull at 512"


def test_an_action_kept_at_one_context_is_kept() -> None:
    short = front(k100_s100_q4=(5, 0.1), k100_s050_q4=(5.8, 0.2))
    long = front(k100_s100_q4=(8, 0.1), k100_s050_q4=(6, 0.2))
    verdicts = choose({512: short, 4096: long}, DENSE, 12)
    assert verdicts[Action(1.0, 0.5, 4)].kept
    assert verdicts[Action(1.0, 0.5, 4)].reason == "on the hull at 4096"
    assert verdicts[Action(1.0, 1.0, 4)].reason == "on the hull at 512 and at 4096"


def test_where_lower_kv_densities_save_nothing_the_others_are_enough() -> None:
    """By bytes, 10% of the tokens cost less at 512 already; by time they may not, so 50% of the channels stay alone."""
    points = {"k010_s050_q4": (3.5, 0.21), "k010_s100_q4": (5.0, 0.09), "k100_s100_q4": (5.8, 0.004)}
    measured = {512: front(**points, k100_s050_q4=(4.5, 0.2))}
    assert (
        excess_bytes(measured[512][Action(1.0, 0.5, 4)], [p for a, p in measured[512].items() if p.bytes != 4.5]) > 0.15
    )
    reason = choose(measured, DENSE, 4)[Action(1.0, 0.5, 4)].reason
    assert reason == "on the hull at 512 without lower KV densities"


def test_an_action_whose_output_collapses_is_dropped() -> None:
    verdicts = choose({512: front(k100_s100_q4=(5, 0.1), k100_s050_q4=(3, 2.5))}, DENSE, 12, collapse_loss=2.0)
    assert not verdicts[Action(1.0, 0.5, 4)].kept
    assert "the output collapses at 512: 2.5 nats" in verdicts[Action(1.0, 0.5, 4)].reason


def test_the_policys_actions_stay() -> None:
    measured = {512: front(k100_s100_q4=(5, 0.1), k100_s050_q6=(7, 0.2), k100_s050_q4=(3, 2.5))}
    required = (Action(1.0, 0.5, 6), Action(1.0, 0.5, 4))
    verdicts = choose(measured, DENSE, 1, collapse_loss=2.0, required=required)
    assert {action for action, verdict in verdicts.items() if verdict.kept} == {DENSE, *required}
    assert verdicts[required[0]].reason == "the policy picks it"


def test_over_the_limit_actions_above_the_hull_go_first() -> None:
    """Actions above the hull go first, the farthest before the nearest; then the action that bends the hull least."""
    measured = front(
        k100_s100_q6=(8, 0.02),  # bends little
        k100_s100_q4=(6, 0.05),  # the corner
        k025_s075_q4=(4.95, 0.45),  # above the line from the corner to the cheapest, and the farther
        k100_s075_q4=(4.6, 0.5),  # above that line, too
        k100_s050_q4=(4, 0.6),
    )
    order = [Action.parse(f"{tag}") for tag in ("k025-s075-q4", "k100-s075-q4", "k100-s100-q6", "k100-s100-q4")]
    for max_actions in (5, 4, 3, 2):
        verdicts = choose({512: measured}, DENSE, max_actions)
        dropped = {action for action, verdict in verdicts.items() if not verdict.kept}
        assert dropped == set(order[: 6 - max_actions])
    mixed = verdicts[Action(1.0, 0.75, 4)].reason
    assert verdicts[Action(1.0, 1.0, 4)].reason.startswith(
        "over the limit of 2 actions: without it the best mixes lose "
    )
    assert mixed.startswith("over the limit of 2 actions: a mix of two others loses as little and reads ")


def test_the_hull_is_below_all_points_and_convex() -> None:
    points = [tuple(pair) for pair in np.random.default_rng(1).random((40, 2)).tolist()]
    hull = lower_hull(points)
    assert hull[0][0] == min(points)[0]
    assert hull[-1][0] == max(points)[0]
    xs, ys = zip(*hull, strict=True)
    assert all(y >= np.interp(x, xs, ys) - 1e-12 for x, y in points)
    slopes = np.diff(ys) / np.diff(xs)
    assert (np.diff(slopes) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_measurements_plays_no_part(seed: int) -> None:
    draw = np.random.default_rng(seed)
    points = {action: Measured(*draw.uniform((2, 0), (10, 1)), 0.0) for action in GRID[1:]}
    names = [list(points)[index] for index in draw.permutation(len(points))]
    one = choose({512: {DENSE: Measured(10, 0, 0), **points}}, DENSE, 5)
    other = choose({512: {**{name: points[name] for name in names}, DENSE: Measured(10, 0, 0)}}, DENSE, 5)
    assert one == other
