"""Report of `benchmarks/random_schedules.py` on random schedules beside `hull`."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from random_schedules import Replay

from helpers.made_configs import made_config
from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.train.rollouts.counterfactuals import Counterfactuals
from sol_rt.train.rollouts.rollout import RolloutSpec

POSITIONS = 128


@pytest.fixture
def spec() -> RolloutSpec:
    config = made_config()
    return RolloutSpec(tuple(entry.action for entry in config.actions), BytesCost(config), KNOWN_SCALARS, midway=True)


def _window(spec: RolloutSpec, luck: float) -> Counterfactuals:
    """A window of which the dearer half of the actions loses as little as its cost says, give or take luck."""
    draw = np.random.default_rng(0)
    shares = np.array([spec.cost.step(action, 500) / spec.cost.dense(500) for action in spec.actions])
    lost = np.tile((1 - shares) ** 2, (POSITIONS, 1)) + luck * draw.random((POSITIONS, len(shares)))
    lost = torch.from_numpy(lost).float()
    nothing = torch.zeros(POSITIONS, dtype=torch.int64)
    scalars = torch.zeros(POSITIONS, len(KNOWN_SCALARS))
    return Counterfactuals(nothing, torch.zeros(POSITIONS, 4), scalars, lost + 1, lost, 500)


def _losses(spec: RolloutSpec, luck: float, budget: float, schedules: int) -> np.ndarray:
    window = _window(spec, luck)
    replay = Replay(spec, [(630, window)], budget, schedules, False, np.random.default_rng(1))
    return replay.losses(630, window)


def test_with_equal_tokens_turns_lose_as_much_as_hull_and_no_schedule_loses_less(spec: RolloutSpec) -> None:
    hull, turns = _losses(spec, 0.0, 0.7, 50)
    assert hull.shape == turns.shape == (51,)
    assert hull[0] == turns[0]
    assert turns == pytest.approx(np.full(51, hull[0]), abs=1e-4)
    assert (hull[1:] > hull[0]).all()


def test_the_best_of_many_in_hindsight_gains_by_luck_alone(spec: RolloutSpec) -> None:
    _, turns = _losses(spec, 0.1, 0.7, 200)
    error = turns[1:].std()
    assert turns[1:].mean() == pytest.approx(turns[0], abs=2 * error)
    assert turns[1:].min() < turns[0] - error
