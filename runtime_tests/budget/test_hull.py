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
from sol_rt.budget.controller.base import AxisTargets
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.budget.dial import make_controller
from sol_rt.budget.hull import Hull
from sol_rt.budget.losses import ActionLosses, nats_of_share, share_of_nats
from sol_rt.budget.schedules import PolicyInput, Schedule, make_schedule, schedule_actions
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.engine.distribution import Distribution
from sol_rt.errors import UsageError

CONTEXT, STEPS = 608, 150  # the middle of a block, for which a hull is exact
UNREAD = Distribution(np.zeros(4, np.float32))
TAGS = [f"k{kv}-s{channels}-q{bits}" for kv in ("100", "050", "010") for channels in ("100", "050") for bits in (8, 4)]


def measured(values: list[float]) -> SolConfig:
    """A bundle in which every action but dense has one of the losses, in nats at every context."""
    return made_config(losses={tag: {512: value} for tag, value in zip(TAGS[1:], values, strict=True)})


def hull_of(config: SolConfig) -> Hull:
    return Hull(schedule_actions(config, "hull"), BytesCost(config), ActionLosses(config).table)


def run(schedule: Schedule, controller: Controller, losses: ActionLosses) -> float:
    """Takes STEPS steps from CONTEXT on. Returns the mean expected loss of the actions taken."""
    lost = []
    for step in range(STEPS):
        action = schedule.choose(PolicyInput(CONTEXT, 7, None, UNREAD, step))
        controller.record(action, CONTEXT)
        lost.append(losses.at(action, CONTEXT))
    return float(np.mean(lost))


def least_loss(config: SolConfig, budget: float) -> float:
    """The least mean loss of any mix of two actions whose mean cost is at most the budget, by trying all pairs."""
    cost, losses = BytesCost(config), ActionLosses(config)
    points = [
        (cost.step(action, CONTEXT) / cost.dense(CONTEXT), losses.at(action, CONTEXT))
        for action in schedule_actions(config, "hull")
    ]
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
    controller = Controller(schedule_actions(config, "hull"), BytesCost(config), budget)
    lost = run(make_schedule("hull", controller, hull=hull_of(config)), controller, ActionLosses(config))
    assert controller.achieved == pytest.approx(budget, abs=0.02)
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


def test_losses_are_interpolated_in_the_logarithm_of_the_context() -> None:
    config = made_config(losses={"k100-s100-q4": {512: 0.1, 2048: 0.3}})
    losses, action = ActionLosses(config), Action(1.0, 1.0, 4)
    assert [losses.at(action, context) for context in (1, 512, 1024, 2048, 8000)] == pytest.approx(
        [0.1, 0.1, 0.2, 0.3, 0.3]
    )
    assert losses.at(config.dense, 100) == 0.0
    assert math.isnan(losses.at(Action(0.1, 0.5, 4), 100))
    assert losses.measured == {action, config.dense}
    assert not ActionLosses(made_config()).measured


def test_a_single_loss_holds_at_every_context() -> None:
    config = made_config(losses={"k100-s100-q4": {4096: 0.2}})
    assert ActionLosses(config).at(Action(1.0, 1.0, 4), 16) == 0.2


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_max_loss_runs_the_cheapest_mix_within_it(share: float) -> None:
    config = measured([0.004, 0.02, 0.2, 0.001, 0.01, 0.02, 0.3, 0.004, 0.05, 0.06, 0.7])
    hull, losses = hull_of(config), ActionLosses(config)
    controller = make_controller(hull.actions, BytesCost(config), max_loss=share, hull=hull)
    assert isinstance(controller, Controller)
    lost = run(make_schedule("hull", controller, hull=hull), controller, losses)
    assert share_of_nats(lost) == pytest.approx(share, rel=0.15)
    assert controller.achieved == pytest.approx(hull.cost_at(nats_of_share(share), CONTEXT), abs=0.01)
    assert controller.requested == pytest.approx(controller.achieved, abs=0.02)


def test_max_loss_is_checked() -> None:
    config = measured([0.1] * (len(TAGS) - 1))
    hull, cost = hull_of(config), BytesCost(config)
    for wrong in (-0.1, math.nan, math.inf, 11.0):
        with pytest.raises(UsageError, match="--max-loss"):
            make_controller(hull.actions, cost, max_loss=wrong, hull=hull)
    with pytest.raises(UsageError, match="contradict"):
        make_controller(hull.actions, cost, 0.5, max_loss=0.01, hull=hull)
    with pytest.raises(UsageError, match="no losses"):
        make_controller(hull.actions, cost, max_loss=0.01)


def test_hull_refuses_axis_targets() -> None:
    config = measured([0.1] * (len(TAGS) - 1))
    controller = make_controller(schedule_actions(config, "hull"), BytesCost(config), axis_targets=AxisTargets(bits=5))
    with pytest.raises(UsageError, match="axes"):
        make_schedule("hull", controller, hull=hull_of(config))
