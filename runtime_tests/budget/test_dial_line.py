"""The line that says what the dial bought, after real generations, and the benchmarks that measure it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.cost_tables import save_table
from helpers.tiny_bundle import write_bundle
from quality import dial as dial_benchmark
from sol_rt import SolModel
from sol_rt.cli.run.generate import bought
from speed import budget_time


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    folder = write_bundle(tmp_path_factory.mktemp("dial") / "tiny", losses=True)
    return SolModel.from_pretrained(folder, provider="cpu", measure_costs=False)


@pytest.mark.filterwarnings("ignore::sol_rt.QualityWarning")
@pytest.mark.parametrize(
    ("dial", "asked"),
    [
        ({}, "none given, so the fastest mix that loses at most 0.5%"),
        ({"budget": 0.75}, "budget 0.75"),
        ({"budget": 0.1}, "budget 0.1, served at 0.3"),
        ({"max_loss": 0.02}, "perplexity at most 2% over dense"),
        ({"kv_density": 0.5, "bits": 6.0}, "kv density 0.5, bits 6"),
        ({"schedule": "dense"}, "dense"),
        ({"schedule": "uniform"}, "none given, so dense"),
        ({"schedule": "fixed:k030-s050-q4"}, "fixed:k030-s050-q4"),
    ],
)
def test_the_line_names_the_request_and_the_rate(model: SolModel, dial: dict[str, Any], asked: str) -> None:
    result = model.generate("w1 w2 w3", max_new_tokens=70, eos_token_id=[], **dial)
    line = bought(result, dial, "s100-q8")
    assert line.startswith(f"dial: {asked}")
    assert f"{result.tokens_per_second:.1f} tokens/s" in line
    assert ("dense about" in line) == (result.achieved_budget != 1.0)


def test_a_rate_that_was_missed_names_the_reason(model: SolModel) -> None:
    result = replace(
        model.generate("w1 w2 w3", max_new_tokens=20, eos_token_id=[]), tokens_per_second=28.0, floored=False
    )
    wanted = {"tokens_per_second": 40.0}
    assert "dial: 40 tokens/s, missed by 30%: slower than measured (sol-rt profile): 28.0 tokens/s" in bought(
        result, wanted, "s100-q8"
    )
    floored = replace(result, floored=True, requested_budget=0.2, achieved_budget=0.4)
    assert "dial: 40 tokens/s, missed by 30% with the cheapest action: 28.0 tokens/s" in bought(
        floored, wanted, "s100-q8"
    )
    for held in (0.0, 26.7, 29.4, 100.0):  # 0 where no step was run
        line = bought(replace(floored, tokens_per_second=held), {"tokens_per_second": 28.0}, "s100-q8")
        assert line.startswith(f"dial: 28 tokens/s: {held} tokens/s")


def test_expected_loss_is_that_of_the_actions(model: SolModel) -> None:
    result = model.generate("w1 w2 w3", max_new_tokens=70, eos_token_id=[], schedule="fixed:k100-s050-q4")
    line = bought(result, {"schedule": "fixed:k100-s050-q4"}, "s100-q8")
    assert "prompt by" not in line
    assert "; prompt by s100-q8; " in bought(result, {}, "s100-q6")
    assert line.endswith(
        f"expected perplexity {100 * (2.718281828 ** (result.expected_loss or 0) - 1):.1f}% over dense"
    )
    assert bought(replace(result, expected_loss=None), {}, "s100-q8").endswith("the loss was not measured")


def test_a_single_token_says_that_no_step_ran(model: SolModel) -> None:
    assert bought(model.generate("w1", max_new_tokens=1), {"budget": 0.5}, "s100-q8").endswith("no decode step ran")


def test_a_replay_names_the_trace(model: SolModel, tmp_path: Path) -> None:
    from sol_rt.generate.trace import read_trace

    model.generate("w1 w2", budget=0.8, max_new_tokens=20, eos_token_id=[], trace=tmp_path / "trace.jsonl")
    trace = read_trace(tmp_path / "trace.jsonl")
    assert "the trace's actions" in bought(model.generate(replay=trace), {"replay": trace}, "s100-q8")


def test_budgets_take_turns_at_being_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[float] = []

    class Model:
        bundle = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(vocab_size=9)))
        provider, cost = SimpleNamespace(threads=1), SimpleNamespace(name="bytes")

        def generate(self, prompt: list[int], *, budget: float, **how: object) -> SimpleNamespace:
            ran.append(budget)
            return SimpleNamespace(achieved_budget=budget, tokens_per_second=1 / budget)

    monkeypatch.setattr(budget_time, "SolModel", SimpleNamespace(from_pretrained=lambda *_, **__: Model()))
    monkeypatch.setattr(sys, "argv", ["budget_time.py", "tiny", "-r", "2", "-b", "0.5,0.4"])
    budget_time.main()
    assert ran == [1.0, 0.5, 0.4, 0.5, 0.4, 1.0, 0.4, 1.0, 0.5]
    assert "| 0.4 | 0.400 | 400.00 [400.00, 400.00] | 0.400 [0.400, 0.400] |" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::sol_rt.QualityWarning")
def test_measuring_the_dial_leaves_a_stored_cost_table(
    model: SolModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    stored = save_table(model.bundle)
    stored.write_text("the user's own")
    text, page = tmp_path / "text.txt", tmp_path / "page.md"
    text.write_text(" ".join(f"w{index % 80}" for index in range(64)))
    speed = {"tokens_per_second": [1.0], "ratio": [1.0], "achieved": 1.0, "expected_loss": None, "actions": {}}
    monkeypatch.setattr(dial_benchmark, "_speeds", lambda *_: {name: speed for name, _ in dial_benchmark.SETTINGS})
    options = ["--context", "16", "--windows", "1", "--scored", "8", "-n", "3", "-r", "1", "-o", str(page)]
    monkeypatch.setattr(sys, "argv", ["dial.py", str(model.bundle.path), "-f", str(text), *options])
    dial_benchmark.main()
    assert stored.read_text() == "the user's own"
    assert "quality.dial tiny -f text.txt --context 16 --windows 1 --scored 8 -n 3 -r 1`" in page.read_text()
