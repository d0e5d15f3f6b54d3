"""Costs: the bytes model (docs/reference/bundle-details.md) by hand, measured lines, tables that must not be used."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cost_tables import save_table, table_for
from helpers.made_configs import made_config
from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost, stored_cost, tables_of
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


def test_table_without_a_variant_is_refused() -> None:
    config = made_config()
    lines = dict(table_for(config).lines)
    del lines["s050-q4"]
    with pytest.raises(SolError, match="s050-q4"):
        MeasuredCost(config, table_for(config, lines=lines))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    return Bundle.open(write_bundle(tmp_path / "tiny", losses=True))


def test_without_a_table_costs_are_bytes(bundle: Bundle) -> None:
    cost = stored_cost(bundle, "a processor")
    assert (cost.name, cost.unit, cost.note) == ("bytes", "bytes", "")


def test_a_table_serves_its_bundle_on_its_device(bundle: Bundle, tmp_path: Path) -> None:
    path = save_table(bundle, device="a processor")
    cost = stored_cost(bundle, "a processor", quick=False)
    assert (cost.name, cost.note) == ("measured", "")
    assert isinstance(cost, MeasuredCost)
    assert cost.path == path
    other = stored_cost(bundle, "another processor")
    assert (other.name, other.note) == (
        "bytes",
        "measured on another device or with another number of threads than this run's; costs are bytes",
    )
    changed = Bundle.open(write_bundle(tmp_path / "another", bits=(8,)))
    assert (stored_cost(changed, "a processor").name, stored_cost(changed, "a processor").note) == ("bytes", "")
    assert tables_of(bundle.path) == [path]
    assert tables_of(changed.path) == []


@pytest.mark.parametrize(("costs", "told"), [("profiled", True), ("bytes", False)])
def test_the_core_says_why_costs_are_bytes(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, costs: str, told: bool
) -> None:
    monkeypatch.setenv("SOL_RT_COSTS", costs)
    save_table(bundle, device="another processor", quick=True)
    assert SolModel.from_pretrained(bundle, provider="cpu").cost.note == ""  # a first load measures it here, too
    save_table(bundle, device="another processor")
    model = SolModel.from_pretrained(bundle, provider="cpu")
    said = "measured on another device or with another number of threads than this run's; costs are bytes"
    assert model.cost.note == model.engine.info.cost_note.decode() == (said if told else "")


def test_a_quick_table_serves_loads_alone(bundle: Bundle) -> None:
    quick = save_table(bundle, device="a processor", quick=True)
    assert stored_cost(bundle, "a processor").name == "measured"
    measured = stored_cost(bundle, "a processor", quick=False)
    assert (measured.name, measured.note) == ("bytes", "")
    assert save_table(bundle, device="a processor") != quick
    assert stored_cost(bundle, "a processor", quick=False).name == "measured"


@pytest.mark.parametrize(
    ("steady", "minutes", "served"), [(False, 5, True), (False, 70, False), (False, -5, False), (True, 70, True)]
)
def test_a_table_whose_times_scattered_serves_for_an_hour(
    bundle: Bundle, steady: bool, minutes: int, served: bool
) -> None:
    created = (datetime.now(timezone.utc) - timedelta(minutes=minutes)).isoformat(timespec="seconds")
    save_table(bundle, device="a processor", quick=True, steady=steady, created=created)
    assert (stored_cost(bundle, "a processor").name == "measured") == served


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"", b"{", b"[" * 100000])
def test_a_damaged_table_is_not_used_and_said(bundle: Bundle, damage: bytes) -> None:
    path = save_table(bundle, device="a processor")
    path.write_bytes(damage)
    cost = stored_cost(bundle, "a processor")
    assert cost.name == "bytes"
    assert cost.note.startswith(f"{path}: cost table: not readable")
    assert cost.note.endswith("; run `sol-rt profile` again; costs are bytes")


@pytest.mark.parametrize("changes", [{"bundle": "c" * 64}, {"device": "another processor"}])
def test_a_table_under_the_name_of_another_is_not_used(bundle: Bundle, changes: dict[str, str]) -> None:
    path = save_table(bundle, device="a processor")
    path.write_text(dataclasses.replace(table_for(bundle.config, bundle=bundle.identity), **changes).to_json())
    cost = stored_cost(bundle, "a processor")
    assert cost.name == "bytes"
    assert "cost table: made " in cost.note
