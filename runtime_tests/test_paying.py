"""Actions that save nothing on a device, and what is used instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_bundle

from sol_rt.actions import Action
from sol_rt.bundle import Bundle
from sol_rt.config import SolConfig
from sol_rt.cost import CalibratedCost, CalibrationTable, Line, RefreshLine
from sol_rt.paying import PayingSchedule, describe, replacements, without_unpaying
from sol_rt.schedules import StepContext


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SolConfig:
    """Prune 100 and 50, 8, 6 and 4 bits, keep 100 and 30; nothing measured."""
    return Bundle.open(write_bundle(tmp_path_factory.mktemp("paying") / "tiny")).config


def _cost(config: SolConfig, line: Callable[[int, int], Line]) -> CalibratedCost:
    """Milliseconds by prune level and bits."""
    lines = {key: dict.fromkeys((100, 30), line(v.prune, v.bits)) for key, v in config.variants.items()}
    return CalibratedCost(config, CalibrationTable("b", "d", "now", 0.0, RefreshLine(1, 1, 0), lines))


def _tags(found: dict[Action, Action]) -> dict[str, str]:
    return {action.tag: other.tag for action, other in found.items()}


def test_nothing_is_replaced_where_everything_pays(config: SolConfig) -> None:
    cost = _cost(config, lambda prune, bits: Line(prune * bits / 100, 0.01, 0.0001))
    assert replacements(config, cost) == {}


def test_bits_that_save_nothing_are_replaced_by_more_bits(config: SolConfig) -> None:
    cost = _cost(config, lambda prune, bits: Line(prune / 10, 0.01, 0.0001))
    found = _tags(replacements(config, cost))
    assert found["k100-s100-q6"] == found["k100-s100-q4"] == "k100-s100-q8"
    assert found["k030-s050-q4"] == "k030-s050-q8"
    assert set(found) == {f"k{k}-s{s}-q{b}" for k in ("100", "030") for s in ("100", "050") for b in (6, 4)}


def test_a_keep_that_reads_all_the_same_is_replaced(config: SolConfig) -> None:
    cost = _cost(config, lambda prune, bits: Line(prune * bits / 100, 0.0, 0.01))
    found = _tags(replacements(config, cost))
    assert found == {f"k030-s{s}-q{b}": f"k100-s{s}-q{b}" for s in ("100", "050") for b in (8, 6, 4)}


def test_a_saving_at_long_contexts_alone_is_one(config: SolConfig) -> None:
    cost = _cost(config, lambda prune, bits: Line(prune * bits / 100, 0.1, 0.0001))
    costs = cost.table([Action(100, 100, 8), Action(30, 100, 8)])(np.array([3, 200]))
    assert costs[0, 0] == costs[0, 1]
    assert costs[1, 0] > costs[1, 1]
    assert replacements(config, cost) == {}


def test_measured_losses_say_which_is_better(config: SolConfig) -> None:
    """Here 6 bits were measured to lose less than 8; the dense action stays nevertheless."""
    losses = {"k100-s100-q8": 0.02, "k100-s100-q6": 0.01, "k100-s050-q8": 0.2, "k100-s050-q6": 0.1}
    entries = tuple(replace(entry, loss=losses.get(entry.action.tag)) for entry in config.actions)
    config = replace(config, actions=entries)
    cost = _cost(config, lambda prune, bits: Line(prune / 10, 0.01, 0.0001))
    found = _tags(replacements(config, cost))
    assert found["k100-s050-q8"] == "k100-s050-q6"
    assert "k100-s100-q8" not in found


class _Always:
    name = "sol"

    def __init__(self, action: Action) -> None:
        self.action, self.resets = action, 0

    def choose(self, step: StepContext) -> Action:
        return self.action

    def reset(self) -> None:
        self.resets += 1


def test_a_schedules_choice_is_replaced(config: SolConfig) -> None:
    four, eight = Action(100, 100, 4), Action(100, 100, 8)
    inner = _Always(four)
    schedule = PayingSchedule(inner, {four: eight})
    step = StepContext(0, 3, 1, None, None)  # type: ignore[arg-type]
    assert schedule.choose(step) == eight
    inner.action = Action(30, 100, 6)
    assert schedule.choose(step) == inner.action
    schedule.reset()
    assert inner.resets == 1
    assert without_unpaying((four, eight), {four: eight}) == (eight,)


def test_the_description_is_one_line_and_names_a_few(config: SolConfig, tmp_path: Path) -> None:
    found = {Action(keep, 100, 4): Action(100, 100, 8) for keep in range(10, 70, 10)}
    text = describe(found, "webgpu")
    assert text.startswith("on webgpu 6 actions save nothing and are not used: k060-s100-q4 (over k100-s100-q8), ")
    assert text.endswith(" and 2 more")
    assert describe({}, "webgpu") == ""
