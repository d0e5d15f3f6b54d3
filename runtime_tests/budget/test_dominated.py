"""Actions that save nothing on a device, and what is used instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.made_configs import made_config, with_losses
from helpers.plans import ScriptedPolicy
from helpers.tiny_bundle import write_bundle
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import FunctionBodyBytes, Line
from sol_rt.budget.dial import Dial
from sol_rt.budget.dominated import describe, ineffective, replacements, without_dominated
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.generate.native.plan import Plan


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SolConfig:
    """Channel densities 1 and 0.5, 8, 6 and 4 bits, KV densities 1 and 0.3; nothing measured."""
    return Bundle.open(write_bundle(tmp_path_factory.mktemp("dominated") / "tiny", policy=True)).config


def _cost(config: SolConfig, line: Callable[[int, int], Line]) -> MeasuredCost:
    """Milliseconds by density level and bits."""
    lines = {key: dict.fromkeys((1.0, 0.3), line(v.channel_density, v.bits)) for key, v in config.variants.items()}
    return MeasuredCost(config, CostTable("b", "d", "now", 0.0, lines))


def _tags(found: dict[Action, Action]) -> dict[str, str]:
    return {action.tag: other.tag for action, other in found.items()}


def test_nothing_is_replaced_where_everything_pays(config: SolConfig) -> None:
    cost = _cost(config, lambda channel_density, bits: Line(channel_density * bits, 0.01, 0.0001))
    assert replacements(config, cost) == {}


def test_bits_that_save_nothing_are_replaced_by_more_bits(config: SolConfig) -> None:
    cost = _cost(config, lambda channel_density, bits: Line(10 * channel_density, 0.01, 0.0001))
    found = _tags(replacements(config, cost))
    assert found["k100-s100-q6"] == found["k100-s100-q4"] == "k100-s100-q8"
    assert found["k030-s050-q4"] == "k030-s050-q8"
    assert set(found) == {f"k{k}-s{s}-q{b}" for k in ("100", "030") for s in ("100", "050") for b in (6, 4)}


def test_mixed_bits_stand_for_neither_of_its_neighbours() -> None:
    """5 bits are 4 to 8: what they lose beside 6 is not known, so neither replaces the other."""
    config = made_config(channel_densities=(1.0,), kv_densities=(1.0,), bits=(8, 6, MIXED, 4))
    cost = _cost(config, lambda channel_density, bits: Line(80.0 if bits == 8 else 50.0, 0.01, 0.0001))
    found = _tags(replacements(config, cost))
    assert set(found) == {"k100-s100-q4"}


def test_a_kv_density_that_reads_all_the_same_is_replaced(config: SolConfig) -> None:
    cost = _cost(config, lambda channel_density, bits: Line(channel_density * bits, 0.0, 0.01))
    found = _tags(replacements(config, cost))
    assert found == {f"k030-s{s}-q{b}": f"k100-s{s}-q{b}" for s in ("100", "050") for b in (8, 6, 4)}


def test_function_bodies_save_by_bits_alone(config: SolConfig) -> None:
    found = _tags(replacements(config, FunctionBodyBytes(config)))
    masked = [(k, s) for k in ("100", "030") for s in ("100", "050") if (k, s) != ("100", "100")]
    assert found == {f"k{k}-s{s}-q{b}": f"k100-s100-q{b}" for k, s in masked for b in (8, 6, 4)}


def test_a_saving_at_long_contexts_alone_is_one(config: SolConfig) -> None:
    cost = _cost(config, lambda channel_density, bits: Line(channel_density * bits, 0.1, 0.0001))
    costs = cost.table([Action(1.0, 1.0, 8), Action(0.3, 1.0, 8)])(np.array([3, 200]))
    assert costs[0, 0] == costs[0, 1]
    assert costs[1, 0] > costs[1, 1]
    assert replacements(config, cost) == {}


def test_measured_losses_say_which_is_better(config: SolConfig) -> None:
    """Here 6 bits were measured to lose less than 8; the dense action stays nevertheless."""
    losses = {"k100-s100-q8": 0.02, "k100-s100-q6": 0.01, "k100-s050-q8": 0.2, "k100-s050-q6": 0.1}
    entries = tuple(replace(entry, loss=losses.get(entry.action.tag)) for entry in config.actions)
    config = replace(config, actions=entries)
    cost = _cost(config, lambda channel_density, bits: Line(10 * channel_density, 0.01, 0.0001))
    found = _tags(replacements(config, cost))
    assert found["k100-s050-q8"] == "k100-s050-q6"
    assert "k100-s100-q8" not in found


def test_the_substitute_of_an_action_has_no_substitute(config: SolConfig) -> None:
    """6 bits cost less than 1% more than 4, 8 less than 1% more than 6, but 8 cost more than 1% more than 4."""
    cost = _cost(
        config, lambda channel_density, bits: Line(10 * channel_density * {4: 1.0, 6: 1.008, 8: 1.016}[bits], 0.0, 0.01)
    )
    found = replacements(config, cost)
    assert _tags(found)["k100-s100-q6"] == "k100-s100-q8"
    assert set(found.values()).isdisjoint(found)


@pytest.mark.parametrize("budget", [0.75, 0.2])
def test_a_policy_chooses_at_the_costs_of_what_is_used(config: SolConfig, budget: float) -> None:
    """Bits save nothing, and half the channels 40%: places of 4 bits and dense ones are the same action then."""
    cost = _cost(
        config,
        lambda channel_density, bits: Line({1.0: 10.0, 0.5: 6.0}[channel_density] + 0.02 * (8 - bits), 0.0, 0.01),
    )
    found = replacements(config, cost)
    config = with_losses(config)
    cost = MeasuredCost(config, cost.cost_table)
    assert config.policy is not None
    actions = without_dominated(config.policy.actions, found)
    assert [actions[config.policy.actions.index(action)] for action in found] == list(found.values())
    likings = np.linspace(0, 3, len(config.policy.actions), dtype=np.float32)
    plan = Plan(cost, Dial(budget, "sol"), actions, ScriptedPolicy(config, likings))
    spent = full = 0.0
    for step in range(150):
        taken = plan.step(step, 7)
        assert taken.action not in found
        assert taken.cost == pytest.approx(cost.step(taken.action, step))
        spent, full = spent + taken.cost, full + cost.dense(step)
    assert plan.achieved == pytest.approx(spent / full)
    assert plan.floored == (budget < 0.6)
    assert plan.achieved == pytest.approx(max(budget, 0.6), abs=0.02)


def test_settings_that_save_nothing_are_reported(config: SolConfig) -> None:
    """Here keeping fewer tokens saves nothing, and neither do bits."""
    cost = _cost(config, lambda channel_density, bits: Line(10 * channel_density, 0.0, 0.01))
    nothing = dict.fromkeys(("kv_density", "channel_density", "bits"))

    def said(schedule: str | None = None, **targets: float) -> str:
        return ineffective(config, cost, schedule, {**nothing, **targets}, "webgpu")

    assert said("fixed:k030-s050-q8") == "on webgpu k030-s050-q8 saves nothing over k100-s050-q8; it runs as asked"
    assert said("fixed:k020-s050-q4").startswith("on webgpu k020-s050-q4 saves nothing over k100-s050-q8;")
    assert (
        said("fixed:k100-s050-q8") == said("fixed:k100-s100-q8") == said("uniform") == said(channel_density=0.7) == ""
    )
    assert said(kv_density=0.5) == "on webgpu no step saves time by --kv-density 0.3; it is followed as asked"
    assert said(kv_density=0.5, bits=6.0, channel_density=0.7) == (
        "on webgpu no step saves time by --kv-density 0.3 or --bits 4, 6; it is followed as asked"
    )
    everything_pays = _cost(config, lambda channel_density, bits: Line(channel_density * bits, 0.01, 0.0001))
    assert ineffective(config, everything_pays, None, {**nothing, "kv_density": 0.5}, "webgpu") == ""


def test_the_description_is_one_line_and_names_a_few(config: SolConfig, tmp_path: Path) -> None:
    found = {Action(share / 100, 1.0, 4): Action(1.0, 1.0, 8) for share in range(10, 70, 10)}
    text = describe(found, "webgpu")
    assert text.startswith("on webgpu 6 actions save nothing: k060-s100-q4 (over k100-s100-q8), ")
    assert text.endswith(" and 2 more")
    assert describe({}, "webgpu") == ""
