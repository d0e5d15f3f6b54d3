"""The governor: bounds are held, nothing oscillates, and its vectors are those that other hosts repeat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from golden.governor import FILE, Curve, calm, content, curves, states
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sol_rt.budget.governor import GovernorSettings, GovernorState, Reading, default_lowest, next_budget
from sol_rt.errors import UsageError

CURVES = {curve.name: curve for curve in curves()}
NOISY = {"rate-noisy": 0, "battery-falls": 0, "heat-up-and-down": 1, "rate-too-low": 0, "rate-changes": 2}
"""Number of turns of the budget that each curve asks for, once the budget has begun to move."""

numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1.5))
readings = st.builds(Reading, numbers, st.booleans(), numbers, st.one_of(numbers, st.floats(0, 200)))


@st.composite
def some_settings(draw: st.DrawFn) -> GovernorSettings:
    lowest, highest = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    return GovernorSettings(lowest, highest, draw(st.one_of(st.none(), st.floats(0.1, 100))))


def turns(budgets: Sequence[float]) -> int:
    """Counts the changes of the budget's direction."""
    moves = [b > a for a, b in itertools.pairwise(budgets) if a != b]
    return sum(one != other for one, other in itertools.pairwise(moves))


def budgets_of(curve: Curve) -> list[float]:
    return [curve.settings.highest, *(state.budget for state in states(curve))]


@given(some_settings(), st.floats(allow_nan=False), st.lists(readings, max_size=60))
def test_the_budget_is_never_outside_the_bounds(
    held: GovernorSettings, first: float, given_readings: list[Reading]
) -> None:
    state = GovernorState(first)
    for reading in given_readings:
        before, state = state, next_budget(state, reading, held)
        assert held.lowest <= state.budget <= held.highest
        assert 0 <= calm(state) < 3
        if held.lowest <= before.budget <= held.highest:
            change = state.budget - before.budget
            assert -0.1 - 1e-12 <= change <= 0.025 + 1e-12


@settings(deadline=None, max_examples=100)
@given(some_settings(), readings, st.floats(0, 1))
@example(GovernorSettings(0.0, 1.0, 1.0), Reading(None, False, None, 0.0625), 0.0)
def test_a_steady_device_comes_to_rest(held: GovernorSettings, reading: Reading, first: float) -> None:
    """The rate is what a device with a fixed time for a dense step has."""
    dense_rate = reading.tokens_per_second
    state, budgets = GovernorState(first), []
    for _ in range(320):  # 1 / the least step, times the most patience, and some more
        rate = None
        if dense_rate is not None and 0 < dense_rate < 1e6:
            rate = dense_rate / max(min(max(state.budget, held.lowest), held.highest), 1e-3)
        state = next_budget(state, replace(reading, tokens_per_second=rate), held)
        budgets.append(state.budget)
    assert turns(budgets) <= 1
    assert len(set(budgets[-20:])) == 1


@pytest.mark.parametrize(("name", "most"), NOISY.items())
def test_noise_does_not_turn_the_budget(name: str, most: int) -> None:
    found = budgets_of(CURVES[name])
    assert turns(found) <= most, found


def test_the_battery_takes_the_budget_from_the_highest_to_the_lowest() -> None:
    curve = CURVES["battery-falls"]
    found = budgets_of(curve)
    assert (found[0], found[-1]) == (1.0, 0.4)
    for reading, budget in zip(curve.readings, found[1:], strict=True):
        assert reading.battery is not None
        if reading.battery < 0.15:
            assert budget <= 0.45
        if reading.battery > 0.51:
            assert budget == 1.0


def test_charging_lifts_the_limit_of_the_battery() -> None:
    found = budgets_of(CURVES["plugged-in"])
    assert found[20] == 0.4
    assert max(found[20:61]) > 0.6
    assert found[-1] < found[60]


def test_heat_lowers_the_budget_and_cooling_gives_it_back() -> None:
    curve = CURVES["heat-up-and-down"]
    found = budgets_of(curve)
    assert min(found) == 0.4
    assert found[-1] > 0.8
    for (before, after), reading in zip(itertools.pairwise(found), curve.readings, strict=True):
        assert reading.headroom is not None
        if reading.headroom >= 0.95:
            assert after < before or after == 0.4
        if 0.8 < reading.headroom < 0.95:
            assert after == before


def test_a_rate_is_kept_where_it_can_be() -> None:
    """A device of 12 tokens a second dense, with noise, from which 20 are wanted."""
    held = GovernorSettings(0.4, wanted_rate=20.0)
    state, found = GovernorState(1.0), []
    for step in range(200):
        noise = 1 + 0.1 * math.sin(step * 7.3)
        state = next_budget(state, Reading(tokens_per_second=12 / state.budget * noise), held)
        found.append(state.budget)
    assert turns(found) == 0
    assert 12 / found[-1] == pytest.approx(20, rel=0.12)


def test_a_rate_without_end_says_nothing() -> None:
    """A host that divides tokens by no time hands on an infinite rate."""
    held, reading = GovernorSettings(0.4, wanted_rate=20.0), Reading(tokens_per_second=12.0)
    before = next_budget(GovernorState(1.0), reading, held)
    assert next_budget(before, Reading(tokens_per_second=math.inf), held) == next_budget(before, Reading(), held)
    after = next_budget(next_budget(GovernorState(1.0), Reading(tokens_per_second=math.inf), held), reading, held)
    assert after.budget < 1.0


def test_a_device_that_heats_up_with_its_budget_settles() -> None:
    """Heat follows the budget with a lag: full budget would throttle, half of it stays cool."""
    held, headroom, state, found = GovernorSettings(0.4), 0.5, GovernorState(1.0), []
    for _ in range(1500):
        headroom += 0.03 * (0.35 + 0.75 * state.budget - headroom)
        state = next_budget(state, Reading(headroom=headroom), held)
        found.append(state.budget)
    assert max(found[500:]) - min(found[500:]) <= 0.3
    assert turns(found[500:]) <= 40
    assert turns(found[500:]) / 1000 < 0.05


def test_the_golden_file_has_the_curves() -> None:
    assert FILE.read_text(encoding="utf-8") == content()


@pytest.mark.parametrize("name", CURVES)
def test_no_curve_depends_on_the_last_bits(name: str) -> None:
    """Hosts whose compiler fuses a product and a sum still take the same turns."""
    curve = CURVES[name]
    expected = list(states(curve))
    for shift in (1e-12, -1e-12):
        state = GovernorState(curve.settings.highest)
        for reading, wanted in zip(curve.readings, expected, strict=True):
            moved = {
                field: value * (1 + shift)
                for field in ("battery", "tokens_per_second")
                if (value := getattr(reading, field)) is not None
            }
            state = next_budget(state, replace(reading, **moved), curve.settings)
            assert (state.budget, calm(state)) == (pytest.approx(wanted.budget, abs=1e-9), calm(wanted))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lowest": 0.9, "highest": 0.5}, "lowest: got 0.9"),
        ({"highest": 1.1}, "lowest <= highest <= 1"),
        ({"lowest": -0.1}, "lowest: got -0.1"),
        ({"lowest": math.nan}, "lowest: got nan"),
        ({"wanted_rate": 0}, "wanted_rate: got 0"),
        ({"wanted_rate": -3.0}, "wanted_rate: got -3"),
        ({"wanted_rate": math.inf}, "wanted_rate: got inf"),
        ({"highest": math.inf}, "highest: got inf"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        GovernorSettings(**{"lowest": 0.4, **changes})


def test_a_state_that_no_governor_has_is_refused() -> None:
    held = GovernorSettings(default_lowest())
    for state in (GovernorState(math.nan), GovernorState(0.5, (0.0, -1.0, *[0.0] * 5))):
        with pytest.raises(UsageError, match="numbers that no governor has"):
            next_budget(state, Reading(), held)
