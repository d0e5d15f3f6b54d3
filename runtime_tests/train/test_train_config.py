"""Configs of `sol-rt train`: YAML to dataclasses and back, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("yaml")

from hypothesis import given
from hypothesis import strategies as st

from sol_rt.errors import UsageError
from sol_rt.train.config import SHIPPED, GrpoConfig, PolicyConfig, TrainConfig, read_config


@given(
    seed=st.integers(0, 2**40),
    rate=st.floats(1e-9, 1.0),
    windows=st.lists(st.integers(200, 9000), min_size=1, max_size=4),
    use_hidden=st.booleans(),
)
def test_yaml_round_trip(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rate: float, windows: list[int], use_hidden: bool
) -> None:
    config = TrainConfig(seed=seed, policy=PolicyConfig(use_hidden=use_hidden), grpo=GrpoConfig(learning_rate=rate))
    config = replace(config, data=replace(config.data, windows=tuple(windows)))
    path = tmp_path_factory.mktemp("config") / "made.yaml"
    path.write_text(config.to_yaml())
    assert read_config(path) == config


def test_the_shipped_default_is_the_default() -> None:
    assert read_config("default") == TrainConfig() == read_config(None)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert read_config(path.stem) == read_config(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grpo: {temprature: 1}", "unknown key grpo.temprature; did you mean grpo.temperature?"),
        ("polcy: {}", "unknown key polcy; did you mean policy?"),
        ("zzz: 1", "unknown key zzz; expected one of seed"),
        ("grpo: {updates: many}", "grpo.updates: got 'many', expected a whole number"),
        ("grpo: {clip: true}", "grpo.clip: got True, expected a number"),
        (f"warm_start: {{along: [1{'0' * 400}, 1]}}", "warm_start.along: got a number of more than 60 digits"),
        ("grpo: {gamma: .nan}", "grpo.gamma: got nan"),
        ("grpo: 3", "grpo: got 3, expected keys"),
        ("policy: {width: 30}", "policy.width: got 30, expected a multiple of 4"),
        ("policy: {scalars: [entropi]}", "policy.scalars: got entropi, expected entropy"),
        ("policy: {actions: [k100-s100-q8, k100-s100-q8]}", "policy.actions: got ('k100-s100-q8', 'k100-s100-q8')"),
        ("warm_start: {along: [0.6, 0.4]}", "warm_start.along: got (0.6, 0.4), expected nothing, or the lowest and"),
        ("grpo: {budget: [0.4]}", "grpo.budget: got (0.4,), expected the lowest and the highest, over 0 to 1"),
        ("grpo: {budget: [0.9, 0.4]}", "grpo.budget: got (0.9, 0.4), expected the lowest and the highest"),
        ("grpo: {penalty: [1.0, 2.0]}", "grpo.penalty: got [1.0, 2.0], expected a number"),
        ("grpo: {tolerance: -0.1}", "grpo.tolerance: got -0.1, expected a number from 0"),
        ("warm_start: {windows: 0}", "warm_start.windows: got 0, expected a number over 0"),
        ("warm_start: {positions: 4}", "warm_start.positions: got 4"),
        ("evaluation: {budgets: []}", "evaluation.budgets: got [], expected one or more"),
        ("data: {windows: [17]}", "data.windows: got (17,), expected 18 tokens or more"),
        ("[1", "expected a YAML file"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    assert "--config" in str(caught.value)


def test_a_config_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"No such file.*default"):
        read_config("nothing")
