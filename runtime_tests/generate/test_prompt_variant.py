"""The variant that runs a prompt: the dial chooses it by the losses that the export measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.generate.trace import read_trace
from sol_rt.ops import library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
PROMPT = "w3 w4 w5 w6 w7 w8"
HALF = math.log1p(0.005) / 2  # nats: what the prompt may take of the default


def bundle_with(folder: Path, **losses: float) -> Path:
    """A bundle whose variants lose that much behind a prompt of 512 tokens; a key is `q4` for `s100-q4`."""
    bundle = write_bundle(folder, losses=True)
    config = json.loads((bundle / CONFIG_NAME).read_text())
    for bits, loss in losses.items():
        config["variants"][f"s100-{bits}"]["prompt_losses"] = {"512": loss}
    (bundle / CONFIG_NAME).write_text(json.dumps(config))
    return bundle


def answer(bundle: Path, prefill: str | None = None, **how: Any) -> Any:
    model = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False, prefill=prefill)
    return model.generate(PROMPT, max_new_tokens=24, do_sample=False, **how)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, "s100-q8"),
        ({"q4": HALF, "q6": 0.0}, "s100-q4"),
        ({"q4": HALF * 1.01, "q6": 0.0}, "s100-q6"),
        ({"q4": HALF * 1.01, "q6": 0.1}, "s100-q8"),
    ],
)
def test_the_default_takes_the_fewest_bytes_within_half_its_loss(
    tmp_path: Path, losses: dict[str, float], expected: str
) -> None:
    assert answer(bundle_with(tmp_path / "tiny", **losses)).prefill == expected


def test_what_the_prompt_takes_the_steps_lose_less(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "tiny", q4=0.02)
    got = answer(bundle, max_loss=0.05)
    rest = answer(bundle, "s100-q4", max_loss=math.expm1(math.log1p(0.05) - 0.02))
    assert (got.prefill, got.text, got.actions) == ("s100-q4", rest.text, rest.actions)
    assert got.expected_loss == pytest.approx(rest.expected_loss + 0.02)
    assert got.actions != answer(bundle, "s100-q4", max_loss=0.05).actions


@pytest.mark.parametrize(
    "how",
    [
        {"budget": 1.0},
        {"schedule": "dense"},
        {"schedule": "fixed:k100-s100-q4"},
        {"schedule": "uniform", "budget": 0.4},
    ],
)
def test_runs_that_keep_no_loss_read_prompts_densely(tmp_path: Path, how: dict[str, Any]) -> None:
    bundle = bundle_with(tmp_path / "tiny", q4=0.0, q6=0.0)
    assert answer(bundle, **how).prefill == "s100-q8"


def test_a_budget_lets_the_prompt_lose_half_of_what_its_steps_do(tmp_path: Path) -> None:
    steps = answer(bundle_with(tmp_path / "dense"), budget=0.9).expected_loss
    assert steps > 0.0
    assert answer(bundle_with(tmp_path / "most", q4=steps / 4), budget=0.9).prefill == "s100-q4"
    assert answer(bundle_with(tmp_path / "more", q4=steps), budget=0.9).prefill == "s100-q8"


def test_a_variant_that_is_named_runs_every_prompt(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "tiny", q4=0.0)
    assert answer(bundle, "s100-q8").prefill == "s100-q8"
    assert answer(bundle, "s100-q6").prefill == "s100-q6"


def test_a_trace_replays_with_its_own_variant(tmp_path: Path) -> None:
    bundle, trace = bundle_with(tmp_path / "tiny", q4=0.0), tmp_path / "run.jsonl"
    first = answer(bundle, trace=trace)
    assert first.prefill == "s100-q4"
    model = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    again = model.generate(replay=read_trace(trace))
    assert (again.text, again.prefill, again.first_difference) == (first.text, "s100-q4", None)
