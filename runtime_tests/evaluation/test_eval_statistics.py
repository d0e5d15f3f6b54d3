"""Intervals and matched costs of evaluations, against closed forms and loops that do it draw by draw."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import Line
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.bootstrap import Bootstrap, CurvePoint, at_cost
from sol_rt.evaluation.quality.mix import MixSchedule, hull_pair
from sol_rt.evaluation.quality.windows import SCORED, spread_windows

ONE = np.ones(1)


def test_interval_of_a_mean_is_the_normal_one() -> None:
    random = np.random.default_rng(1)
    values = random.normal(3.0, 2.0, 2000)
    bootstrap = Bootstrap(values.size, 4000, seed=5)
    figure = bootstrap.figure(bootstrap.mean(values, np.ones(values.size)))
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_draws_are_those_of_a_loop() -> None:
    sums, tokens = np.array([3.0, 1.0, 4.0]), np.array([2.0, 1.0, 3.0])
    got = Bootstrap(3, 500, seed=7).mean(sums, tokens)
    assert got[0] == pytest.approx(8 / 6)
    counts = np.random.default_rng(7).multinomial(3, [1 / 3] * 3, size=500)
    for value, row in zip(got[1:], counts, strict=True):
        drawn = np.repeat(np.arange(3), row)
        assert value == pytest.approx(sums[drawn].sum() / tokens[drawn].sum())


def test_paired_differences_have_the_narrower_interval() -> None:
    random = np.random.default_rng(2)
    text = random.normal(0, 1, 400)
    one, other = text + 3 + random.normal(0, 0.1, 400), text + 3.05 + random.normal(0, 0.1, 400)
    bootstrap, tokens = Bootstrap(400, 1000, seed=0), np.ones(400)
    difference = bootstrap.figure(bootstrap.mean(one, tokens) - bootstrap.mean(other, tokens))
    alone = bootstrap.figure(bootstrap.mean(one, tokens))
    assert difference.high is not None
    assert difference.low is not None
    assert alone.high is not None
    assert alone.low is not None
    assert difference.high < 0
    assert difference.high - difference.low < 0.25 * (alone.high - alone.low)


def test_a_single_window_has_no_interval() -> None:
    bootstrap = Bootstrap(1, 100, seed=0)
    figure = bootstrap.figure(bootstrap.mean(np.array([6.0]), np.array([2.0])))
    assert (figure.value, figure.low, figure.high) == (3.0, None, None)


def point(cost: float, nll: float) -> CurvePoint:
    return CurvePoint(np.array([cost]), np.array([nll]))


def test_loss_at_another_cost_is_on_the_line_to_the_next_point() -> None:
    curve = [point(0.4, 4.0), point(0.5, 3.0), point(0.7, 2.0), point(1.0, 1.7)]
    assert at_cost(curve, 1, ONE * 0.52) == pytest.approx(3.0 - 0.02 * 5)  # towards 0.7
    assert at_cost(curve, 1, ONE * 0.48) == pytest.approx(3.0 + 0.02 * 10)  # towards 0.4
    assert at_cost(curve, 0, ONE * 0.39) == pytest.approx(4.1)  # nothing below: the line goes on
    assert at_cost(curve, 1, ONE * 0.5) == pytest.approx(3.0)


def test_points_of_one_cost_give_no_slope() -> None:
    # two budgets below the floor: both served at its cost
    curve = [point(0.45, 4.0), point(0.4501, 3.0), point(0.65, 2.0)]
    assert at_cost(curve, 0, ONE * 0.46) == pytest.approx(4.0 - 0.01 * 10)
    assert at_cost(curve[:2], 0, ONE * 0.46) == pytest.approx(4.0)


A, B, C, D = (Action(1.0, 1.0, 8), Action(1.0, 1.0, 4), Action(1.0, 0.5, 4), Action(0.1, 0.5, 4))


def test_the_mix_is_the_lower_hulls() -> None:
    points = {A: (1.0, 3.0), B: (0.6, 3.01), C: (0.45, 3.5), D: (0.4, 3.6)}
    assert hull_pair(points, 0.5) == (D, B)  # C lies over the line between them
    assert hull_pair(points, 0.7) == (B, A)
    assert hull_pair(points, 0.35) is None
    assert hull_pair({**points, B: (0.6, 2.9)}, 0.7) == (B, B)  # nothing dearer is better


@pytest.mark.parametrize("budget", [0.55, 0.75, 0.9])
def test_a_mix_of_two_actions_holds_the_budget_and_takes_them_in_turn(tmp_path: Path, budget: float) -> None:
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny"), provider="cpu", measure_costs=False)
    config = model.bundle.config
    low, high = Action(1.0, 0.5, 4), config.dense
    lines = {key: {1.0: Line(10.0 if key == high.variant else 5.0, 0.0, 0.0)} for key in config.variants}
    model.cost = MeasuredCost(config, CostTable(model.bundle.identity, "a machine", "", 0.0, lines))
    dial = Dial(budget, lambda controller: MixSchedule(controller, (low, high)))
    decoder = model.decoder(dial)
    decoder.prefill([1, 2, 3])
    chosen = [decoder.step(7).action for _ in range(200)]
    assert set(chosen) == {low, high}
    assert decoder.achieved == pytest.approx(budget, abs=0.01)
    # evenly dealt: two stretches of 20 steps differ by a step or two
    counts = [chosen[start : start + 20].count(high) for start in range(20, 200, 20)]
    assert max(counts) - min(counts) <= 2


@given(
    st.lists(st.tuples(st.floats(0.2, 1.0), st.floats(2.0, 5.0)), min_size=2, max_size=8, unique_by=lambda p: p[0]),
    st.floats(0.2, 1.0),
)
def test_no_other_pair_loses_less(points: list[tuple[float, float]], budget: float) -> None:
    actions = {Action((index + 1) / 100, 1.0, 4): each for index, each in enumerate(points)}
    pair = hull_pair(actions, budget)
    affordable = [each for each in points if each[0] <= budget]
    if pair is None:
        assert not affordable
        return

    def loss(low: tuple[float, float], high: tuple[float, float]) -> float:
        if low[0] == high[0]:
            return min(low[1], high[1])
        share = (min(budget, high[0]) - low[0]) / (high[0] - low[0])
        return low[1] + share * (high[1] - low[1])

    got = loss(*(actions[action] for action in pair))
    others = [loss(low, high) for low in affordable for high in points if high[0] >= low[0]]
    assert got <= min(others) + 1e-9


def test_fewer_windows_are_the_first_of_more() -> None:
    texts = {"a": range(100), "b": range(200, 270)}
    every = spread_windows(texts, 10, None, None, None)
    assert len(every) == 17
    assert len({(window.source, window.start) for window in every}) == 17
    assert spread_windows(texts, 10, None, 5, None) == every[:5]
    assert [window.source for window in every[:4]] == ["a", "b", "a", "b"]
    # from each text spread over its length: the first four of ten lie in different quarters or so
    starts = [window.start for window in every if window.source == "a"]
    assert sorted(starts) == list(range(0, 100, 10))
    assert sorted(starts[:4]) == [0, 20, 40, 80]


def test_the_second_half_of_a_window_is_scored_up_to_a_limit() -> None:
    (window,) = spread_windows({"a": range(16)}, 16, None, None, None)
    assert (window.context, window.steps) == (8, 7)  # as `sol-rt perplexity` has it
    (window,) = spread_windows({"a": range(2048)}, 2048, None, None, None)
    assert (window.context, window.steps) == (2048 - SCORED - 1, SCORED)
    (window,) = spread_windows({"a": range(100, 115)}, 16, 1, None, 3)
    assert window.tokens[:2] == (1, 100)
    assert (window.context, window.steps) == (12, 3)


def test_windows_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="b: has 7 tokens, expected 8 for a window"):
        spread_windows({"a": range(9), "b": range(7)}, 8, None, None, None)
    with pytest.raises(UsageError, match="--scored: got 7 of windows of 8 tokens, expected 1 to 6"):
        spread_windows({"a": range(9)}, 8, None, None, 7)
