"""A short soak, and that it sees a leak and a budget that is missed."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

from sol_rt.errors import QualityWarning

pytest.importorskip("onnx", reason="the tiny bundle's graphs are made with onnx, of the extra export")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

from soak import Outcome, Sample, Soak, make_bundle  # noqa: E402


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    return make_bundle(tmp_path / "tiny")


@pytest.mark.slow
def test_generations_of_every_kind_leave_nothing(bundle: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)
        outcome = Soak(bundle, tmp_path, 7, measured=False).run(150, 15)
    assert outcome.faults() == []
    assert sum(outcome.kinds.values()) == 150
    assert len(outcome.kinds) > 8
    assert len(outcome.budget_errors) > 5
    assert outcome.cached > 0


@pytest.mark.slow
def test_a_leak_is_found(bundle: Path, tmp_path: Path) -> None:
    class Leaking(Soak):
        def _restart(self) -> None:
            super()._restart()
            left.append(os.open(bundle / "sol_config.json", os.O_RDONLY))

    left: list[int] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QualityWarning)
            faults = Leaking(bundle, tmp_path, 1, measured=False).run(32, 4).faults()
    finally:
        for descriptor in left:
            os.close(descriptor)
    assert [fault.partition(":")[0] for fault in faults] == ["descriptors"]


def test_a_soak_with_growth_or_budget_errors_has_faults() -> None:
    flat = [Sample(done, 100_000, 9, 4, 0) for done in range(0, 10_000, 250)]
    growing = [Sample(s.done, s.rss_kb + 2 * s.done, 9, 4, s.done // 6000) for s in flat]
    assert Outcome(samples=flat, budget_errors=[0.01]).faults() == []
    assert Outcome(samples=flat, budget_errors=[0.03]).faults() == ["budget error 0.0300, expected at most 0.02"]
    assert [fault.partition(":")[0] for fault in Outcome(samples=growing).faults()] == ["children", "resident size"]
