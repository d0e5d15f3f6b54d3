"""Costs: the bytes model (docs/reference/bundle-details.md) by hand, measured lines, tables that must not be used."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cost_tables import table_for
from helpers.made_configs import made_config
from sol_rt.budget.cost.cost_table import (
    CostTable,
    MeasuredCost,
    cost_table_path,
    device_string,
    keep_quick,
    load_cost_model,
    quick_path,
)
from sol_rt.budget.cost.line_fit import fit_line
from sol_rt.budget.cost.model import BytesCost, CostModel
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import KvLayout
from sol_rt.errors import SolError

KV_BYTES = 4 * 30 * 3 * 64  # per token
CODE_BYTES = 30 * 3 * 4 * (32 + 4)  # per page of 4 tokens


def test_bytes_of_a_step_by_hand() -> None:
    config = made_config()
    cost = BytesCost(config)
    weights = config.variants["s100-q8"].weight_bytes
    # context 999: 1000 tokens, 250 pages, 249 of them old
    assert cost.step(Action(1.0, 1.0, 8), 999) == weights + KV_BYTES * 1000
    # a tenth of 249 pages is 25; with the newest page and 4 sinks 108 tokens are read, and the codes of 249 pages
    assert cost.step(Action(0.1, 1.0, 8), 999) == weights + KV_BYTES * 108 + CODE_BYTES * 249
    assert cost.dense(999) == cost.step(config.dense, 999)
    assert cost.policy() == 0
    assert BytesCost(made_config(policy_bytes=1234)).policy() == 1234


def test_an_int8_cache_costs_a_byte_a_number_and_a_scale_a_row() -> None:
    float16 = made_config()
    int8 = dataclasses.replace(float16, kv=KvLayout("int8"))
    rows = 30 * 3  # layers and KV heads; heads of 64
    costs = [BytesCost(config) for config in (float16, int8)]
    for cost, row in zip(costs, (128, 64 + 2), strict=True):
        dense, sparse = Action(1.0, 1.0, 8), Action(0.1, 1.0, 8)
        weights = float16.variants["s100-q8"].weight_bytes
        assert cost.step(dense, 999) == weights + 1000 * 2 * rows * row
        # 25 of 249 old pages, the newest and the sinks; codes of all old pages
        assert cost.step(sparse, 999) == weights + (4 * 26 + 4) * 2 * rows * row + 249 * CODE_BYTES


def test_a_kv_density_that_covers_everything_reads_no_codes() -> None:
    config = made_config()
    assert BytesCost(config).reads(Action(0.1, 1.0, 8), 0) == (1, 0)
    assert BytesCost(config).reads(Action(0.1, 1.0, 8), 3) == (4, 0)
    # one old page, and a tenth of it rounds up to it
    assert BytesCost(config).reads(Action(0.1, 1.0, 8), 4) == (5, 0)
    assert BytesCost(config).reads(Action(0.1, 1.0, 8), 12) == (12, 3)
    assert BytesCost(config).reads(Action(0.1, 1.0, 8), 48) == (16, 12)


def test_layers_that_stay_dense_read_every_page() -> None:
    """3 of 30 layers: means over layers, and bytes by hand."""
    config = made_config()
    config = dataclasses.replace(config, kv=KvLayout(dense_layers=(0, 1, 7)))
    # 1000 tokens, 249 old pages, a tenth of them is 25
    assert BytesCost(config).reads(Action(0.1, 1.0, 8), 999) == ((27 * 108 + 3 * 1000) / 30, 27 * 249 / 30)
    weights = config.variants["s100-q8"].weight_bytes
    cache = 27 * (KV_BYTES * 108 + CODE_BYTES * 249) + 3 * KV_BYTES * 1000
    step = BytesCost(config).step(Action(0.1, 1.0, 8), 999)
    assert step == pytest.approx(weights + cache / 30, rel=1e-12)
    assert BytesCost(config).dense(999) == BytesCost(made_config()).dense(999)


def test_layers_with_a_window_read_what_is_in_it() -> None:
    """20 of 30 layers attend to 128 tokens, one of them to all of these under every action."""
    config = made_config()
    config = dataclasses.replace(config, kv=KvLayout(windows=(128,) * 20 + (0,) * 10, dense_layers=(0,)))
    dense, tenth = Action(1.0, 1.0, 8), Action(0.1, 1.0, 8)
    assert BytesCost(config).reads(dense, 99) == (100, 0)
    assert BytesCost(config).reads(dense, 127) == (128, 0)
    assert BytesCost(config).reads(dense, 128) == ((20 * 128 + 10 * 129) / 30, 0)
    assert BytesCost(config).reads(dense, 999) == ((20 * 128 + 10 * 1000) / 30, 0)
    # 31 of 249 old pages are in the window. A tenth of all is 25, of those in it 4; the sinks are before it
    assert BytesCost(config).reads(tenth, 999) == ((19 * 20 + 128 + 10 * 108) / 30, (19 * 31 + 10 * 249) / 30)
    assert BytesCost(config).dense(999) == BytesCost(config).step(dense, 999)
    assert BytesCost(config).dense(999) < BytesCost(made_config()).dense(999)


def test_a_window_saves_nothing_until_a_text_is_longer() -> None:
    windowed = dataclasses.replace(made_config(), kv=KvLayout(windows=(512,) * 30))
    for action in (Action(1.0, 1.0, 8), Action(0.5, 1.0, 8), Action(0.1, 1.0, 8)):
        for context in (0, 3, 17, 100, 511):
            assert BytesCost(windowed).reads(action, context) == BytesCost(made_config()).reads(action, context)


@given(
    st.lists(st.integers(0, 8000), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([(), (0, 29)]),
    st.sampled_from([(), (512,) * 25 + (0,) * 5]),
)
def test_the_table_is_the_steps(
    contexts: list[int], measured: bool, dense_layers: tuple[int, ...], windows: tuple[int, ...]
) -> None:
    config = made_config(kv_densities=(1.0, 0.99, 0.5, 0.33, 0.1, 0.01))
    config = dataclasses.replace(config, kv=KvLayout(dense_layers=dense_layers, windows=windows))
    cost: CostModel = MeasuredCost(config, table_for(config)) if measured else BytesCost(config)
    actions = [entry.action for entry in config.actions]
    for context, row in zip(contexts, cost.table(actions)(np.array(contexts)), strict=True):
        expected = [cost.step(action, context) for action in actions]
        assert row.tolist() == pytest.approx(expected, rel=1e-12)


def test_measured_costs_follow_their_lines() -> None:
    config = made_config()
    cost = MeasuredCost(config, table_for(config))
    weights = config.variants["s050-q4"].weight_bytes / 1e7
    assert cost.step(Action(1.0, 0.5, 4), 999) == pytest.approx(weights + 1.0)
    assert cost.step(Action(0.5, 0.5, 4), 999) == pytest.approx(weights + 0.001 * (4 * 126 + 4) + 0.002 * 249)
    # 0.3 was not measured: 0.5 and 0.1 are as near, the lower one counts
    assert cost.step(Action(0.3, 0.5, 4), 999) == pytest.approx(weights + 0.1 + 0.001 * (4 * 76 + 4) + 0.002 * 249)
    assert cost.policy() == 0.25
    assert (cost.unit, cost.name) == ("milliseconds", "measured")


def test_table_survives_json() -> None:
    table = table_for(made_config())
    assert CostTable.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("sol_rt.cost_table", "other"),
        lambda text: text.replace('"policy_ms": 0.25', '"policy_ms": NaN'),
        lambda text: text.replace('"policy_ms": 0.25', '"policy_ms": -1'),
        lambda text: text.replace('"per_page"', '"per_line"'),
        lambda text: "[" * 100000,
    ],
)
def test_damaged_table_is_one_line(damage) -> None:  # type: ignore[no-untyped-def]
    text = damage(table_for(made_config()).to_json())
    with pytest.raises(SolError, match="sol-rt profile") as error:
        CostTable.from_json(text)
    assert "\n" not in str(error.value)


def test_table_without_a_variant_is_refused() -> None:
    config = made_config()
    lines = dict(table_for(config).lines)
    del lines["s050-q4"]
    with pytest.raises(SolError, match="s050-q4"):
        MeasuredCost(config, table_for(config, lines=lines))


def test_fit_finds_exact_lines_and_never_goes_negative() -> None:
    samples = [(t, p, 3.0 + 0.01 * t + 0.02 * p) for t, p in ((100, 0), (500, 30), (1000, 5), (4000, 250))]
    line = fit_line(samples)
    assert (line.fixed, line.per_token, line.per_page) == pytest.approx((3.0, 0.01, 0.02))
    assert line.error < 1e-9
    falling = fit_line([(100, 0, 5.0), (1000, 0, 4.0), (2000, 0, 3.9)])
    assert (falling.per_token, falling.per_page) == (0, 0)
    assert falling.error > 0.05


def test_a_few_disturbed_timings_do_not_move_the_line() -> None:
    random = np.random.default_rng(0)
    samples = []
    for number, (tokens, pages) in enumerate((t, p) for t in (64, 512, 2048, 8000) for p in (0, 4, 120, 499)):
        clean = (3.0 + 4e-4 * tokens + 1e-3 * pages) * float(random.uniform(0.99, 1.01))
        samples.append((tokens, pages, clean * (3.0 if number in (3, 9, 14) else 1.0)))
    line = fit_line(samples)
    for tokens, pages, _ in samples:
        assert line.at(tokens, pages) == pytest.approx(3.0 + 4e-4 * tokens + 1e-3 * pages, rel=0.02)
    assert line.error > 0.2  # and what it is off by is said


@pytest.mark.parametrize("samples", [[], [(1, 0, 0.0)], [(1, 0, float("nan"))]])
def test_fit_refuses_unusable_timings(samples: list[tuple[float, float, float]]) -> None:
    with pytest.raises(SolError, match="profile"):
        fit_line(samples)


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 600), st.floats(0.01, 1e4)), min_size=1, max_size=12))
def test_fit_of_anything_is_usable(samples: list[tuple[float, float, float]]) -> None:
    line = fit_line(samples)
    assert min(line.fixed, line.per_token, line.per_page) >= 0
    assert np.isfinite([line.fixed, line.per_token, line.per_page, line.error]).all()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    return Bundle(tmp_path / "bundle", made_config(), "b" * 64)


def save(opened: Bundle, **changes) -> Path:  # type: ignore[no-untyped-def]
    path = cost_table_path(opened, "cpu", 2, True)
    table_for(opened.config, **changes).save(path)
    return path


def test_without_a_table_costs_are_bytes(bundle: Bundle) -> None:
    cost = load_cost_model(bundle, "cpu", 2)
    assert (cost.name, cost.unit, cost.note) == ("bytes", "bytes", "")


def test_fresh_table_is_used(bundle: Bundle) -> None:
    save(bundle)
    cost = load_cost_model(bundle, "cpu", 2)
    assert (cost.name, cost.note) == ("measured", "")
    other = load_cost_model(bundle, "cpu", 1)
    assert other.name == "bytes"
    assert "measured for 2 threads, not for the 1" in other.note
    assert load_cost_model(bundle, "webgpu", 2).name == "bytes"
    assert load_cost_model(bundle, "cpu", 2, native=False).name == "bytes"


def test_a_quick_table_says_how_long_it_serves(bundle: Bundle) -> None:
    table, path = table_for(bundle.config, quick=True), cost_table_path(bundle, "cpu", 2, True)
    assert keep_quick(table, path).startswith("measured what each action costs on this machine, once and quickly; ")
    varied = keep_quick(dataclasses.replace(table, steady=False), path)
    assert "machine, quickly; the times varied, so they are measured again after an hour; sol-rt profile" in varied


def test_a_quick_table_of_other_threads_does_not_count(bundle: Bundle) -> None:
    table_for(bundle.config, quick=True).save(quick_path(cost_table_path(bundle, "cpu", 2, True)))
    assert load_cost_model(bundle, "cpu", 2).name == "measured"
    assert load_cost_model(bundle, "cpu", 1).note == ""


def test_stale_table_is_not_used(bundle: Bundle) -> None:
    save(bundle, bundle="c" * 64)
    cost = load_cost_model(bundle, "cpu", 2)
    assert cost.name == "bytes"
    assert "bundle changed" in cost.note
    assert "sol-rt profile" in cost.note


def test_foreign_table_is_not_used(bundle: Bundle) -> None:
    save(bundle, device="another processor")
    cost = load_cost_model(bundle, "cpu", 2)
    assert cost.name == "bytes"
    assert "another processor" in cost.note
    assert device_string("cpu", 2, True) in cost.note


def test_damaged_table_file_is_not_used(bundle: Bundle) -> None:
    path = save(bundle)
    path.write_bytes(b"\xff\xfe")
    cost = load_cost_model(bundle, "cpu", 2)
    assert cost.name == "bytes"
    assert str(path) in cost.note
