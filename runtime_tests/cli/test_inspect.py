"""`sol-rt inspect` and `sol-rt trace`: all candidates, readable on a narrow terminal and whole in a pipe."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="making a bundle comes with the extra export")

from helpers.cost_tables import store_costs
from helpers.made_pages import TAGS, selection
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.selection import SELECTION
from sol_rt.cli import main

REASON = "k100-s100-q4 does as well at 512: 98.9 MB for 128.2, -0.006 ± 0.0005 nats [a word in brackets]"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the variants s100-q8, s100-q4, s050-q8 and s050-q4, and measured candidates of others besides."""
    folder = write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", bits=(8, 4))
    (folder / SELECTION).write_text(selection(kept=4, reason=REASON).to_json(), encoding="utf-8")
    seal(folder, Bundle.open(folder).config)
    return folder


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main([*argv]) == 0
    return capsys.readouterr().out


def test_a_narrow_terminal_shows_every_candidate_whole(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = told(capsys, "inspect", "-m", str(bundle), "--all")
    table = out[out.index("candidate ") : out.index("Losses are in nats")].splitlines()
    assert max(map(len, table)) <= 80
    assert "…" not in out
    assert {line.split()[0] for line in table if line.startswith("k")} == {*TAGS, "k050-s025-q4"}
    row = next(at for at, line in enumerate(table) if line.startswith("k025-s100-q4"))
    assert table[row].split()[1:3] == ["512", "0.587"]
    assert table[row + 1].split()[:2] == ["4096", "0.587"]
    assert "0.0108 ± 0.0005" in table[row]
    last = next(at for at in range(row + 1, len(table)) if table[at].startswith("k"))
    words = " ".join(line[table[row].index("dropped:") :].strip() for line in table[row:last])
    assert words == f"dropped: {REASON}"


def test_a_pipe_gets_one_line_for_each_measurement(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "inspect", "-m", str(bundle), "--all").splitlines()
    (row,) = (line for line in lines if line.startswith("k025-s100-q4"))
    assert row.rstrip().endswith(f"dropped: {REASON}")
    (row,) = (line for line in lines if line.startswith("k050-s025-q4"))
    assert row.split(maxsplit=1)[1].rstrip() == "dropped: not measured: s025-q4 collapsed"
    short = told(capsys, "inspect", "-m", str(bundle))
    assert f"{len(TAGS) + 1 - 4} candidates were dropped; --all shows them" in short
    assert REASON not in short


def unmeasured(capsys: pytest.CaptureFixture[str], folder: Path, reason: str) -> str:
    """Output of inspect for a bundle whose selection it can't show. Checks the reason that inspect gives."""
    out = told(capsys, "inspect", "-m", str(folder))
    assert reason in out.splitlines()[-1]
    assert main(["inspect", "-m", str(folder), "--html", str(folder / "page.html")]) == 2
    assert f"--html: {folder}: {reason}" in capsys.readouterr().err
    return out


def test_without_a_selection_the_losses_of_the_actions_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_bundle(tmp_path / "tiny", bits=(8, 4), losses=True)
    out = unmeasured(capsys, folder, "it has no selection.json")
    assert "not measured" not in out
    assert "no measured losses" not in out
    assert "Sensible budgets at 256 tokens, as shares of dense, in bytes: " in out
    (row,) = (line for line in out.splitlines() if "k100-s050-q4" in line)
    assert "0.3080" in row


def test_a_bundle_without_losses_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bundle(tmp_path / "tiny", bits=(8, 4))
    out = unmeasured(capsys, folder, "its losses were not measured")
    assert "not measured" in out
    assert "Sensible budgets" not in out


def test_names_in_a_bundle_are_printed_plain_and_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bundle(tmp_path / "tiny", bits=(8, 4))
    config = Bundle.open(folder).config
    said = {"name": "\x1b[2J\x1b]0;pwn\x07", "license": "MIT\nsol-rt: error: fake" + "x" * 5000}
    seal(folder, replace(config, model=replace(config.model, **said)))
    lines = told(capsys, "inspect", "-m", str(folder)).splitlines()
    assert "tiny: \\x1b[2J\\x1b]0;pwn\\x07, llama, licence MIT sol-rt: error: fake" in lines[0]
    assert "x" * 200 not in lines[0]
    assert all(line.isprintable() for line in lines)


def test_a_bundle_without_a_licence_says_so(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bundle(tmp_path / "tiny", bits=(8, 4))
    config = Bundle.open(folder).config
    seal(folder, replace(config, model=replace(config.model, license="")))
    assert told(capsys, "inspect", str(folder)).splitlines()[0].endswith(", llama, no licence stated")


@pytest.mark.parametrize("timed", [False, True])
def test_table_plot_and_page_have_one_unit_and_name_it(
    timed: bool, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    unit, other = ("in measured ms", "in bytes") if timed else ("in bytes", "in measured ms")
    if timed:
        store_costs(Bundle.open(bundle), lambda variant: 2.0 if variant.bits == 8 else 1.8)
    page = tmp_path / "page.html"
    out = told(capsys, "inspect", str(bundle), "--html", str(page))
    costs = [action["cost"] for action in json.loads(told(capsys, "inspect", str(bundle), "--json"))["actions"]]
    plot = out[out.index("Loss against cost") :]
    assert f"Loss against cost, as a share of dense, {unit}" in plot
    assert f"1.00 of dense, {unit}" in plot
    if timed:
        assert min(costs) == 0.9
        assert "0.90  " in plot
    assert unit.removeprefix("in ") in " ".join(out[out.index("cost at ") :].split()[:30])
    assert other not in out
    assert f"share of the dense step’s, {unit}" in page.read_text(encoding="utf-8")
    table = told(capsys, "inspect", str(bundle), "--all")
    assert "A candidate's cost is a share of dense, in bytes" in table


def test_costs_are_at_the_longest_context_where_more_was_asked_for(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    most = Bundle.open(bundle).config.model.max_context - 1
    assert f"cost at {most}" in told(capsys, "inspect", str(bundle), "-c", "100000000")
    assert json.loads(told(capsys, "inspect", str(bundle), "-c", "100000000", "--json"))["context"] == most


def test_json_has_every_candidate_with_cost_loss_and_bytes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result: dict[str, Any] = json.loads(told(capsys, "inspect", "-m", str(bundle), "--all", "-o", "json"))
    assert {"path", "format_version", "variants", "policy", "actions", "cost_model", "selection"} <= set(result)
    candidates = {each["tag"]: each for each in result["selection"]["candidates"]}
    assert set(candidates) == {*TAGS, "k050-s025-q4"}
    assert candidates["k050-s025-q4"]["measured"] == {}
    point = candidates["k100-s050-q4"]["measured"]["4096"]
    assert 0 < point["cost"] < 1
    assert point["bytes"] > 0
    assert {"loss", "stderr"} <= set(point)
    dense = candidates["k100-s100-q8"]["measured"]["512"]
    assert (dense["cost"], dense["loss"]) == (1.0, 0.0)


def test_a_trace_keeps_the_text_of_a_chat(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chat.jsonl"
    argv = ("generate", "-m", str(bundle), "--chat", "-p", "w1 w2", "-n", "3", "--trace", str(file))
    told(capsys, *argv)
    told(capsys, "trace", str(file))
    assert "user w1 w2 assistant" in file.with_suffix(".html").read_text(encoding="utf-8")
