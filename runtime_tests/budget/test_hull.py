"""The hull of a bundle's actions: the losses behind it, the `hull` schedule, and the budget that a loss takes."""

from __future__ import annotations

import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.made_configs import made_config
from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import Dial
from sol_rt.budget.hull import Hull, falling_hull, lower_hull, measured_hull
from sol_rt.budget.losses import nats_of_share, share_of_nats
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import UsageError
from sol_rt.generate.native.plan import Plan

CONTEXT, STEPS = 608, 150  # the middle of a block, for which a hull is exact
TAGS = [f"k{kv}-s{channels}-q{bits}" for kv in ("100", "050", "010") for channels in ("100", "050") for bits in (8, 4)]


def measured(values: list[float]) -> SolConfig:
    """A bundle in which every action but dense has one of the losses, in nats at every context."""
    return made_config(losses={tag: {512: value} for tag, value in zip(TAGS[1:], values, strict=True)})


def hull_of(config: SolConfig) -> Hull:
    hull = measured_hull(BytesCost(config))
    assert hull is not None
    return hull


def run(plan: Plan, config: SolConfig) -> float:
    """Takes STEPS steps at CONTEXT. Returns the mean expected loss of the actions taken."""
    taken = [plan.step(CONTEXT).action for _ in range(STEPS)]
    return float(BytesCost(config).losses(taken, CONTEXT).mean())


def least_loss(config: SolConfig, budget: float) -> float:
    """The least mean loss of any mix of two actions whose mean cost is at most the budget, by trying all pairs."""
    cost, actions = BytesCost(config), [entry.action for entry in config.actions]
    relative = [cost.step(action, CONTEXT) / cost.dense(CONTEXT) for action in actions]
    points = list(zip(relative, cost.losses(actions, CONTEXT).tolist(), strict=True))
    found = [loss for spent, loss in points if spent <= budget]
    for (low, one), (high, other) in itertools.product(points, points):
        if low < budget < high:
            share = (budget - low) / (high - low)
            found.append(one + share * (other - one))
    return min(found)


def loss_at(hull: Hull, budget: float) -> float:
    """Loss of the best mix of this budget, nats per token."""
    corners = hull.corners(CONTEXT)
    return float(np.interp(budget, [corner.cost for corner in corners], [corner.loss for corner in corners]))


random_losses = st.lists(st.floats(0.0, 2.0), min_size=len(TAGS) - 1, max_size=len(TAGS) - 1)


@settings(max_examples=60, deadline=None)
@given(values=random_losses, budget=st.floats(0.35, 1.0))
def test_no_pair_of_actions_loses_less_than_the_hull_schedule(values: list[float], budget: float) -> None:
    config = measured(values)
    plan = Plan(BytesCost(config), Dial(budget, "hull"))
    lost = run(plan, config)
    assert plan.achieved == pytest.approx(budget, abs=0.02)
    # what the budget may be missed by is worth this much at the steepest slope
    slack = 3 * max(values) / STEPS + 0.02
    assert lost <= least_loss(config, budget) + slack


@settings(max_examples=60, deadline=None)
@given(values=random_losses, budget=st.floats(0.35, 1.0))
def test_loss_of_a_budget_is_that_of_the_best_pair(values: list[float], budget: float) -> None:
    config = measured(values)
    assert loss_at(hull_of(config), budget) == pytest.approx(least_loss(config, budget), abs=1e-9)


@given(values=random_losses, limit=st.floats(0.0, 2.5))
def test_the_budget_of_a_loss_keeps_it_and_is_the_cheapest(values: list[float], limit: float) -> None:
    hull = hull_of(measured(values))
    budget = hull.cost_at(limit, CONTEXT)
    assert loss_at(hull, budget) <= limit + 1e-9
    cheapest = hull.corners(CONTEXT)[0].cost
    assert budget == pytest.approx(cheapest) or loss_at(hull, budget - 0.01) > limit - 1e-9


def test_threads_that_share_a_hull_get_the_corners_of_their_context() -> None:
    config = measured([0.01 * place for place in range(len(TAGS) - 1)])
    shared, contexts = hull_of(config), (100, 170, 1000, 5000)
    wanted = {context: hull_of(config).corners(context) for context in contexts}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            asked = [contexts[place % 4] for place in range(4000)]
            found = list(pool.map(shared.corners, asked))
    finally:
        sys.setswitchinterval(interval)
    assert all(corners == wanted[context] for context, corners in zip(asked, found, strict=True))


def test_corners_rise_to_dense_and_leave_out_what_was_not_measured() -> None:
    config = made_config(losses={"k100-s100-q4": {512: -0.001}, "k010-s050-q4": {512: 0.4}})
    hull = hull_of(config)
    corners = hull.corners(CONTEXT)
    assert [hull.actions[corner.place].tag for corner in corners] == ["k010-s050-q4", "k100-s100-q4", "k100-s100-q8"]
    assert corners[-1][1:] == (1.0, 0.0)
    assert [corner.cost for corner in corners] == sorted(corner.cost for corner in corners)


def test_the_dense_action_is_among_those_of_a_hull() -> None:
    config = measured([0.1] * (len(TAGS) - 1))
    with pytest.raises(UsageError, match="the dense action k100-s100-q8 is not among the actions"):
        Hull([Action(1.0, 1.0, 4)], BytesCost(config))
    assert measured_hull(BytesCost(made_config())) is None


points = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)


@given(given_points=points)
def test_every_point_lies_on_or_over_the_lower_hull_and_no_corner_between_its_neighbours(
    given_points: list[tuple[int, int]],
) -> None:
    corners = lower_hull(given_points)
    xs, ys = zip(*corners, strict=True)
    assert list(xs) == sorted(set(xs))
    assert {*corners} <= {*given_points}
    assert (xs[0], xs[-1]) == (min(x for x, _ in given_points), max(x for x, _ in given_points))
    assert all(y >= np.interp(x, xs, ys) - 1e-9 for x, y in given_points)
    for (x0, y0), (x1, y1), (x2, y2) in zip(corners, corners[1:], corners[2:], strict=False):
        assert (y1 - y0) * (x2 - x1) < (y2 - y1) * (x1 - x0)
    assert falling_hull(given_points) == corners[: ys.index(min(ys)) + 1]
    assert lower_hull([]) == []


def test_losses_are_interpolated_in_the_logarithm_of_the_context() -> None:
    config = made_config(losses={"k100-s100-q4": {512: 0.1, 2048: 0.3}})
    cost, action = BytesCost(config), Action(1.0, 1.0, 4)
    found = [float(cost.losses([action], context)[0]) for context in (1, 512, 1024, 2048, 8000)]
    assert found == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.3])
    dense, unknown = cost.losses([config.dense, Action(0.1, 0.5, 4)], 100)
    assert dense == 0.0
    assert math.isnan(unknown)


def test_a_single_loss_holds_at_every_context() -> None:
    config = made_config(losses={"k100-s100-q4": {4096: 0.2}})
    assert BytesCost(config).losses([Action(1.0, 1.0, 4)], 16) == [0.2]


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_max_loss_runs_the_cheapest_mix_within_it(share: float) -> None:
    config = measured([0.004, 0.02, 0.2, 0.001, 0.01, 0.02, 0.3, 0.004, 0.05, 0.06, 0.7])
    plan = Plan(BytesCost(config), Dial(max_loss=share))
    assert share_of_nats(run(plan, config)) == pytest.approx(share, rel=0.15)
    assert plan.achieved == pytest.approx(hull_of(config).cost_at(nats_of_share(share), CONTEXT), abs=0.01)
    assert plan.requested == pytest.approx(plan.achieved, abs=0.02)
