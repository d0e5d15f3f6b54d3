"""The golden traces: `SolModel` repeats every case, with native operators and with function bodies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from golden.cases import FILE, Case, Played, difference, play, read_cases
from helpers.places import GOLDEN
from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.bundle import Bundle
from sol_rt.generate.model import SolModel
from sol_rt.ops import library_path

FOLDER = GOLDEN
CASES = read_cases(FOLDER / FILE)
MOST_BYTES = 1_000_000


def open_model(*, native: bool) -> SolModel:
    bundle = Bundle.open(FOLDER / "tiny")
    cost = BytesCost(bundle.config)
    return SolModel.from_pretrained(bundle, provider="cpu", native_ops=native, cost=cost, measure_costs=False)


@pytest.fixture(scope="module")
def native_model() -> SolModel:
    if library_path() is None:
        pytest.skip("the native operators are not built")
    return open_model(native=True)


@pytest.fixture(scope="module")
def body_model() -> SolModel:
    return open_model(native=False)


def named(cases: list[tuple[Case, Played]]) -> list[object]:
    return [pytest.param(case, expected, id=case.name) for case, expected in cases]


@pytest.mark.parametrize(("case", "expected"), named(CASES))
def test_native_operators_repeat_the_case(native_model: SolModel, case: Case, expected: Played) -> None:
    assert difference(expected, play(native_model, case)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("case", "expected"), named([each for each in CASES if not each[0].native_only]))
def test_function_bodies_repeat_the_case(body_model: SolModel, case: Case, expected: Played) -> None:
    assert difference(expected, play(body_model, case)) == ""


def test_the_cases_are_of_the_bundle_that_lies_beside_them() -> None:
    first = (FOLDER / FILE).read_text(encoding="utf-8").splitlines()[0]
    assert Bundle.open(FOLDER / "tiny").identity in first


def test_bundle_and_cases_are_small() -> None:
    files = [FOLDER / FILE, *(FOLDER / "tiny").iterdir()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_a_difference_is_reported() -> None:
    expected = Played((1, 2, 3), ("k100-s100-q8", "k100-s100-q4"), (1.0, 0.5), "ab")
    for other, told in (
        (Played((1, 2, 4), *expected_rest(expected)), "tokens[2]: got 4, expected 3"),
        (Played((1, 2), *expected_rest(expected)), "tokens: got 2, expected 3"),
        (Played((1, 2, 3), ("k100-s100-q8", "k100-s100-q8"), (1.0, 0.5), "ab"), "actions[1]: got k100-s100-q8, "
         "expected k100-s100-q4"),
        (Played((1, 2, 3), expected.actions, (1.0, 0.5 + 1e-8), "ab"), "costs[1]: got 0.50000001000000005, "
         "expected 0.5"),
        (Played((1, 2, 3), expected.actions, (1.0, 0.5), "ac"), "text: got 'ac', expected 'ab'"),
    ):  # fmt: skip
        assert difference(expected, other) == told


def expected_rest(played: Played) -> tuple[tuple[str, ...], tuple[float, ...], str]:
    return played.actions, played.costs, played.text


@pytest.mark.slow
def test_golden_cases_can_be_made_again(tmp_path: Path) -> None:
    options = ["-o", str(tmp_path), "--native", "--only", "dense,live-sol-short"]
    maker = [sys.executable, str(FOLDER / "make.py"), str(FOLDER / "tiny"), *options]
    subprocess.run(maker, check=True, capture_output=True)
    made = {case.name: (case, played) for case, played in read_cases(tmp_path / FILE)}
    assert list(made) == ["dense", "live-sol-short"]
    assert all(case.native_only for case, _ in made.values())
    case, played = made["dense"]
    expected = next(each for each in CASES if each[0].name == "dense")
    assert (case.prompt, difference(expected[1], played)) == (expected[0].prompt, "")


@pytest.mark.slow
def test_the_tiny_bundle_can_be_made(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="training the tiny model needs the extra export")
    from golden.tiny_model import write_tiny

    made = Bundle.open(write_tiny(tmp_path / "tiny", steps=4)).config
    kept = Bundle.open(FOLDER / "tiny").config
    assert (made.model, made.kv, made.variants, made.actions) == (kept.model, kept.kv, kept.variants, kept.actions)
    assert made.tensors == kept.tensors
    assert made.files["tokenizer.json"] == kept.files["tokenizer.json"]
    assert made.policy == kept.policy
