"""Cost tables of the native core: it refuses damaged ones, and reads and writes what Python does."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from helpers.core_build import SANITIZER_OPTIONS, core_program
from helpers.made_configs import made_config
from helpers.places import GOLDEN
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import BytesCost, CostModel, Line
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.errors import BundleError, UsageError

TINY = made_config(policy_bytes=10**6)


def table_of(config: SolConfig, random: np.random.Generator) -> CostTable:
    """A device where savings are ragged: some actions cost more than dense."""
    lines: dict[str, dict[float, Line]] = {}
    for key, variant in config.variants.items():
        fixed = variant.weight_bytes / 1e7 * float(random.uniform(0.7, 1.3))
        measured = [kv for kv in (1.0, 0.8, 0.5, 0.1, 0.03) if random.random() < 0.7] or [0.5]
        lines[key] = {
            kv: Line(fixed + (float(random.uniform(0, 2)) if kv < 1 else 0.0), 1e-3, 4e-3 if kv < 1 else 0.0, 0.01)
            for kv in measured
        }
    dense = lines[config.dense.variant]
    return CostTable(
        "b" * 64, "a device", "now", 0.02 * next(iter(dense.values())).fixed, lines, tuning=Tuning(1, 49152, 3)
    )


def tables() -> dict[str, str]:
    """Damaged files by what is wrong with them."""
    good = json.loads(table_of(TINY, np.random.default_rng(0)).to_json())

    def changed(*path: str, to: Any) -> str:
        table = json.loads(json.dumps(good))
        *folders, last = path
        at = table
        for key in folders:
            at = at[key]
        at[last] = to
        return json.dumps(table)

    variant, density = next((key, next(iter(row))) for key, row in good["lines"].items())
    without = {key: row for key, row in good["lines"].items() if key != variant}
    line = good["lines"][variant][density]
    return {
        "empty": "",
        "text": "cost_table",
        "list": "[]",
        "cut": json.dumps(good)[:-20],
        "deep": "[" * 10**5,
        "not UTF-8": "\udcff",
        "format": changed("format", to="sol_rt.bundle"),
        "version": changed("format_version", to=2),
        "deep format": changed("format", to="deep").replace('"deep"', "[" * 1000000 + "]" * 1000000),
        "no bundle": json.dumps({key: value for key, value in good.items() if key != "bundle"}),
        "another bundle": changed("bundle", to="c" * 64),
        "policy": changed("policy_ms", to=-1),
        "policy text": changed("policy_ms", to="abc"),
        "lines": changed("lines", to=[]),
        "row": changed("lines", variant, to=3),
        "empty row": changed("lines", variant, to={}),
        "no variant": changed("lines", to=without),
        "density": changed("lines", variant, to={"0.333": line}),
        "density of 0": changed("lines", variant, to={"0.0": line}),
        "density text": changed("lines", variant, to={"dense": line}),
        "number": changed("lines", variant, density, "fixed", to=2e9),
        "infinite": changed("lines", variant, density, "per_page", to=math.inf),
        "null": changed("lines", variant, density, "per_page", to=None),
        "no time": changed("lines", variant, density, to={**line, "fixed": 0, "per_token": 1e-7}),
        "another key": changed("lines", variant, density, to={**line, "per_byte": 0}),
        "tuning": changed("tuning", to=2),
        "tuning as a list": changed("tuning", to=[list(pair) for pair in asdict(Tuning()).items()]),
        "tuning without a key": changed("tuning", to={"cache_level": 2, "row_bytes_ahead": 0}),
        "tuning with another key": changed("tuning", to={**asdict(Tuning()), "pages": 1}),
        "cache level": changed("tuning", to={**asdict(Tuning()), "cache_level": 3}),
        "bytes ahead": changed("tuning", to={**asdict(Tuning()), "row_bytes_ahead": 2**40}),
        "half a byte ahead": changed("tuning", to={**asdict(Tuning()), "row_bytes_ahead": 0.5}),
        "members": changed("tuning", to={**asdict(Tuning()), "members": -1}),
        "members as text": changed("tuning", to={**asdict(Tuning()), "members": "2"}),
        "no key": changed("lines", variant, density, to={key: line[key] for key in list(line)[1:]}),
    }


class Raw(CostModel):
    """Costs of a table's text as it is."""

    unit, name = "milliseconds", "measured"

    def __init__(self, text: bytes) -> None:
        super().__init__(TINY, _Text(text), "")  # type: ignore[arg-type]


class _Text:
    """Stands for a text whose bytes no str has."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def encode(self) -> bytes:
        return self.raw


@pytest.mark.parametrize("damage", [name for name in tables() if name not in ("another bundle",)])
def test_damaged_tables(damage: str) -> None:
    text = tables()[damage].encode("utf-8", "surrogateescape")
    with pytest.raises(BundleError, match=r"^cost table: .*; run `sol-rt profile` again$"):
        Raw(text)


def test_the_lower_of_two_measured_densities_at_one_distance() -> None:
    config = made_config(kv_densities=(1.0, 0.3), channel_densities=(1.0,), bits=(8,))
    line = Line(5.0, 1e-3, 0.0)
    rows = {1.0: line, 0.4: replace(line, fixed=4.0), 0.2: replace(line, fixed=3.0)}
    cost = MeasuredCost(config, CostTable("b", "a device", "now", 0.0, {"s100-q8": rows}))
    tokens, _ = cost.reads(Action(0.3, 1.0, 8), 400)
    assert cost.step(Action(0.3, 1.0, 8), 400) == pytest.approx(3.0 + 1e-3 * tokens, rel=1e-12)


@pytest.mark.parametrize(
    "make", [BytesCost, lambda config: MeasuredCost(config, table_of(config, np.random.default_rng(1)))]
)
def test_costs_of_what_the_bundle_lacks_are_refused(make: Callable[[SolConfig], CostModel]) -> None:
    cost = make(TINY)
    with pytest.raises(UsageError, match="cost of k100-s033-q8: its variant is not in the bundle"):
        cost.step(Action(1.0, 0.33, 8), 10)
    for context in (-1, 2**31):
        with pytest.raises(UsageError, match=f"context: got {context}, expected 0 or more"):
            cost.step(TINY.dense, context)


def test_a_config_that_is_none_is_refused() -> None:
    other: Any = replace(TINY, tensors={})
    with pytest.raises(BundleError, match=r"sol_config.json: weights.tensors: got no tensors"):
        BytesCost(other)


def test_calls_of_the_c_interface() -> None:
    """Under the sanitizers where slow tests run."""
    done = subprocess.run(
        [core_program("plan_calls"), GOLDEN / "tiny" / "sol_config.json"], capture_output=True, text=True, check=False,
        env=os.environ | SANITIZER_OPTIONS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
