"""Commands that run a bundle: the keys of their JSON, what goes where, the dial, Ctrl-C."""

from __future__ import annotations

import fcntl
import functools
import io
import itertools
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from helpers import no_network
from helpers.places import ROOT
from helpers.program import started
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.cli import READER_GONE, main
from sol_rt.cli.app import COMMANDS, make_app
from sol_rt.cli.run import generate
from sol_rt.engine import providers
from sol_rt.engine.hardware import allowed_cores
from sol_rt.errors import DeviceError, SolError
from sol_rt.evaluation.speed import bandwidth
from sol_rt.generate.generation_config import FILE
from sol_rt.generate.results import Generation
from sol_rt.generate.stream import Stream
from sol_rt.generate.trace import Trace, TraceHeader, read_trace
from sol_rt.ops import library_path

STOPPED = b"sol-rt: stopped by Ctrl-C"
PROMPT = "Once upon a time there was a small model"


@pytest.fixture(scope="module", autouse=True)
def _bandwidth_is_measured_once() -> Iterator[None]:
    """Reading memory takes every run of `bench` a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandwidth, "measure_apart", functools.cache(bandwidth.measure_apart))
        yield


@pytest.fixture(autouse=True)
def home(tmp_path: Path, llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and the tiny bundle as the default model."""
    for name in list(os.environ):
        if name.startswith("SOL_RT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOL_RT_MODEL", str(llama_bundle))
    return tmp_path / "home"


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main(argv) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return out, err


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(run(capsys, *argv)[0])


def test_generate_json_has_the_agreed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "generate", "-p", PROMPT, "-n", "70", "--budget", "0.7", "--temperature", "0", "--json")
    assert set(result) >= {
        "text",
        "tokens",
        "schedule",
        "requested_budget",
        "achieved_budget",
        "cost_model",
        "prompt_tokens_per_second",
        "tokens_per_second",
        "time_to_first_token_ms",
        "actions",
        "peak_rss_mb",
        "dense_tokens_per_second",
        "expected_loss",
        "floored",
        "drafted_tokens",
        "accepted_tokens",
    }
    assert result["requested_budget"] == 0.7
    assert result["drafted_tokens"] == result["accepted_tokens"] == 0
    assert sum(result["actions"].values()) == len(result["tokens"]) - 1


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a text.txt to score."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("a word and another " * 20, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("text")
@pytest.mark.parametrize(
    "argv",
    [
        ("generate", "-p", PROMPT, "-n", "2"),
        ("bench", "-p", "8", "-n", "2", "-r", "1"),
        ("perplexity", "-f", "text.txt", "-c", "16", "--chunks", "1"),
    ],
    ids=lambda argv: argv[0],
)
def test_json_names_the_variant_of_prompts(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    for given, variant in (((), "s100-q8"), (("--prefill", "s050-q4"), "s050-q4")):
        printed = as_json(capsys, *argv, *given, "--json")
        for each in printed if isinstance(printed, list) else [printed]:
            assert each["prefill"] == variant


@pytest.mark.usefixtures("text")
@pytest.mark.parametrize(
    "argv",
    [
        ("generate", "-p", PROMPT, "-n", "2", "--top-logprobs", "1"),
        ("bench", "-p", "8", "-n", "2", "-r", "1"),
        ("perplexity", "-f", "text.txt", "-c", "16", "--chunks", "1"),
        ("inspect",),
        ("doctor",),
    ],
    ids=lambda argv: argv[0],
)
def test_the_page_of_the_command_line_has_every_key(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    printed = as_json(capsys, *argv, "--json")
    found = printed[0] if isinstance(printed, list) else printed
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    _, _, section = page.partition(f"### `{argv[0]} --json`")
    named = re.findall(r'[`"](\w+)[`"]', section.partition("\n### ")[0])
    assert set(found) - {"provider", "device"} - set(named) == set()
    assert {"provider", "device"} <= set(found) or argv[0] in ("inspect", "doctor")  # which compute nothing


@pytest.mark.usefixtures("text")
@pytest.mark.parametrize(
    ("argv", "unit"),
    [
        (("generate", "-p", PROMPT, "-n", "2"), "requested 1.000, achieved 1.000 of dense, in bytes ("),
        (("bench", "-p", "0", "-n", "2", "-r", "1"), "| budget, bytes | achieved, bytes |"),
        (("perplexity", "-f", "text.txt", "-c", "16", "--chunks", "1"), "achieved budget 1.000 of dense, in bytes"),
    ],
    ids=lambda given: given[0],
)
def test_a_budget_has_its_unit_beside_it(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], unit: str) -> None:
    assert unit in "".join(run(capsys, *argv))
    printed = as_json(capsys, *argv, "--json")
    assert (printed[0] if isinstance(printed, list) else printed)["cost_model"] == "bytes"


def test_generate_json_has_log_probabilities(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("generate", "-p", PROMPT, "-n", "5", "--temperature", "0", "--json")
    plain, listed = as_json(capsys, *argv), as_json(capsys, *argv, "--top-logprobs", "3")
    assert plain["logprobs"] == listed["logprobs"]
    assert len(plain["logprobs"]) == len(plain["tokens"])
    assert "top_logprobs" not in plain
    for token, logprob, place in zip(listed["tokens"], listed["logprobs"], listed["top_logprobs"], strict=True):
        assert [set(entry) for entry in place] == [{"id", "token", "logprob"}] * 3
        assert (place[0]["id"], place[0]["logprob"]) == (token, logprob)  # greedy
        assert place[0]["logprob"] >= place[1]["logprob"] >= place[2]["logprob"]


def test_penalties_and_bias_change_the_text_and_are_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = str(tmp_path / "run.jsonl")
    argv = ("generate", "-p", PROMPT, "-n", "12", "--temperature", "0")
    plain = as_json(capsys, *argv, "--json")["tokens"]
    banned = plain[0]
    given = ("--presence-penalty", "2", "--frequency-penalty", "0.5", "--logit-bias", f"{banned}=-100")
    changed = as_json(capsys, *argv, *given, "--trace", trace, "--json")["tokens"]
    assert banned not in changed
    assert changed != plain
    generation = json.loads(Path(trace).read_text(encoding="utf-8").splitlines()[0])["generation"]
    assert generation["logit_bias"] == {str(banned): -100}
    assert (generation["presence_penalty"], generation["frequency_penalty"]) == (2, 0.5)
    assert as_json(capsys, "generate", "--replay", trace, "--json")["tokens"] == changed
    # one word for the shell, as llama.cpp has it
    assert as_json(capsys, *argv, *given[:4], "--logit-bias", f"{banned}-100", "--json")["tokens"] == changed


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (("--logit-bias", "99999=1"), "logit bias: got token 99999, expected ids from 0 to 319"),
        (("--logit-bias", "a=1"), "--logit-bias 'a=1': expected ID=BIAS"),
        (("--logit-bias", "1="), "--logit-bias '1=': expected ID=BIAS"),
        (("--logit-bias", "1=nan"), "logit_bias: got nan, expected numbers from -100 to 100"),
        (("--logit-bias", "1+500"), "logit_bias: got 500.0, expected numbers from -100 to 100"),
        (("--presence-penalty", "3"), "--presence-penalty"),
        (("--top-logprobs", "21"), "--top-logprobs"),
        (("--stop", ""), "--stop ''"),
        (("-b", "nan"), "nan"),
        (("--temperature=nan",), "nan"),
    ],
)
def test_settings_that_are_wrong_are_one_line_and_write_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, given: tuple[str, ...], part: str
) -> None:
    trace = tmp_path / "run.jsonl"
    out, err = run(capsys, "generate", "-p", PROMPT, "--trace", str(trace), *given, code=2)
    assert out == ""
    assert [line for line in err.splitlines() if "error" in line] == err.splitlines()[-1:]
    assert part in err.splitlines()[-1]
    assert not trace.exists()


def test_a_prompt_that_is_too_long_leaves_a_trace_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "run.jsonl"
    trace.write_text("of an earlier run")
    run(capsys, "generate", "-p", PROMPT * 9, "-c", "16", "--trace", str(trace), code=1)
    assert trace.read_text() == "of an earlier run"


def test_more_threads_than_processors_are_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    most = len(allowed_cores())
    argv = ("generate", "-p", PROMPT, "-n", "3", "--temperature", "0")
    out, err = run(capsys, *argv, "-t", "1000")
    assert out == run(capsys, *argv)[0]
    assert f"--threads 1000: this process may use {most} processors, so it runs {most} threads" in err.splitlines()


@pytest.mark.parametrize("command", [("generate", "-p", PROMPT), ("chat", "-p", PROMPT)])
def test_a_context_beyond_the_model_is_refused(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    out, err = run(capsys, *command, "-c", "1025", code=2)
    assert (out, err) == ("", "sol-rt: error: --ctx-size 1025: the model's context is 1024 tokens; give at most that\n")


@pytest.mark.parametrize("kind", ["a file", "read-only"])
def test_profile_says_at_once_that_home_cannot_be_written(
    capsys: pytest.CaptureFixture[str], home: Path, kind: str
) -> None:
    if kind == "a file":
        home.write_text("a file where a folder belongs")
    elif os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    else:
        home.mkdir(mode=0o555)
    out, err = run(capsys, "profile", code=1)
    assert out == ""
    assert err.splitlines() == [line for line in err.splitlines() if line.startswith(f"sol-rt: error: {home}")]
    assert "make it writable, or set SOL_RT_HOME" in err


def test_a_long_prompt_shows_its_progress_and_nothing_changes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("generate", "-p", "a " * 700, "-n", "3", "--temperature", "0")
    plain, err = run(capsys, *argv)
    assert "reading the prompt" not in err, "a prompt that takes less than 2 seconds"
    monkeypatch.setattr("sol_rt.cli.loading.PROMPT_SECONDS", 1e-9)
    run_next = Stream._run_next

    def waiting(stream: Stream) -> None:
        time.sleep(0.2)  # until the timer has begun
        run_next(stream)

    monkeypatch.setattr(Stream, "_run_next", waiting)
    out, err = run(capsys, *argv)
    assert out == plain
    assert len([line for line in err.splitlines() if line.startswith("reading the prompt, ")]) == 1


def test_the_progress_of_a_long_prompt_moves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float, float]] = []

    @contextmanager
    def recorded(after: float) -> Iterator[Callable[[str, float, float], None]]:
        yield lambda *report: told.append(report)

    monkeypatch.setattr("sol_rt.cli.loading.progress", recorded)
    run(capsys, "generate", "-p", "a " * 700, "-n", "2")
    read = [report for report in told if report[0].startswith("reading the prompt")]
    count = read[-1][2]
    assert count > 512
    assert read == [(f"reading the prompt, {count} tokens", *share) for share in ((0, 1), (512, count), (count, count))]


def test_a_prompt_that_takes_longer_than_the_answer_names_the_way_to_a_faster_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "than the answer; --prefill s100-q4 reads it faster, at some loss"
    argv = ("generate", "-p", "a " * 700, "-n", "1")
    assert hint not in run(capsys, *argv)[1], "a prompt that takes less than 2 seconds"
    monkeypatch.setattr("sol_rt.cli.loading.PROMPT_SECONDS", 1e-9)
    assert run(capsys, *argv)[1].count(hint) == 1
    assert hint not in run(capsys, *argv, "--prefill", "s100-q4")[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{'a ' * 300}\n{'a ' * 300}\n"))
    assert run(capsys, "chat", "-n", "1")[1].count(hint) == 1


def test_generate_streams_text_to_stdout_and_statistics_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("generate", "-p", PROMPT, "-n", "12", "--temperature", "0", "--budget", "0.7")
    text = as_json(capsys, *argv, "--json")["text"]
    out, err = run(capsys, *argv)
    assert out == text + "\n"
    for word in ("requested 0.700", "achieved", "tokens/s", "first token", "-q"):
        assert word in err


@pytest.mark.parametrize("argv", [("generate", "-p", PROMPT), ("chat",)], ids=["generate", "chat"])
@pytest.mark.parametrize("steps", [0, 10])
def test_an_error_within_the_text_has_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], steps: int
) -> None:
    run_next, calls = Stream._run_next, itertools.count()

    def failing(stream: Stream) -> None:
        if next(calls) >= steps:
            raise DeviceError("a GPU", "it is lost")
        run_next(stream)

    monkeypatch.setattr(Stream, "_run_next", failing)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((PROMPT + "\n").encode())))
    out, err = run(capsys, *argv, "--temperature", "0", "--schedule", "dense", code=1)
    assert "sol-rt: error: a GPU failed: it is lost" in err
    assert (out == "") == (steps == 0)
    assert out.endswith("\n") == (steps > 0)


def test_prompt_from_file_pipe_and_flag_are_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n", encoding="utf-8")
    argv = ("generate", "-n", "8", "--temperature", "0", "--json")
    wanted = as_json(capsys, *argv, "-p", PROMPT)["tokens"]
    assert as_json(capsys, *argv, "-f", str(tmp_path / "prompt.txt"))["tokens"] == wanted
    for given in ((), ("-f", "-")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((PROMPT + "\n").encode())))
        assert as_json(capsys, *argv, *given)["tokens"] == wanted


def test_prompts_as_windows_writes_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ("\ufeff" + PROMPT + "\r\n" + PROMPT + "\r\n").encode()
    (tmp_path / "prompt.txt").write_bytes(content)
    argv = ("generate", "-n", "8", "--temperature", "0", "--json")
    wanted = as_json(capsys, *argv, "-p", f"{PROMPT}\n{PROMPT}")["tokens"]
    assert as_json(capsys, *argv, "-f", str(tmp_path / "prompt.txt"))["tokens"] == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert as_json(capsys, *argv)["tokens"] == wanted


def test_without_a_prompt_the_built_in_one_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    with open(os.devnull, encoding="utf-8") as nothing:
        for stdin in (terminal, nothing):
            monkeypatch.setattr(sys, "stdin", stdin)
            out, err = run(capsys, "generate", "-n", "4")
            assert "built in" in err
            assert out


def test_an_empty_pipe_is_an_empty_prompt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        out, err = run(capsys, "generate", "-n", "4", code=2)
        assert (out, err) == (
            "",
            "sol-rt: error: stdin: the prompt is empty; give some text there, with -p or with -f\n",
        )


def test_context_limit(capsys: pytest.CaptureFixture[str], endless: Path) -> None:
    argv = ("generate", "-m", str(endless), "-p", "a", "-n", "200", "-c", "16", "--temperature", "0", "--json")
    prompt = len(Bundle.open(endless).tokenizer().encode("a"))
    # the last token is not run, so it takes no place
    assert prompt + len(as_json(capsys, *argv)["tokens"]) - 1 == 16
    _, err = run(capsys, "generate", "-p", PROMPT * 4, "-c", "16", code=1)
    assert err.splitlines()[-1].startswith("sol-rt: error: prompt: got ")


@pytest.mark.parametrize("schedule", ["fixed:k050-s033-q4", "fixed:nonsense", "nonsense", "sol"])
def test_schedules_that_the_bundle_lacks(capsys: pytest.CaptureFixture[str], schedule: str) -> None:
    out, err = run(capsys, "generate", "-p", PROMPT, "--schedule", schedule, code=2)
    assert out == ""
    assert err.splitlines()[-1].startswith("sol-rt: error: ")


def test_trace_replay_and_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace, page = str(tmp_path / "run.jsonl"), tmp_path / "page.html"
    argv = ("generate", "-p", PROMPT, "-n", "20", "--budget", "0.7", "--temperature", "0")
    text, _ = run(capsys, *argv, "--trace", trace)
    again, err = run(capsys, "generate", "--replay", trace, "--temperature", "0")
    assert again == text
    assert "replay: all 20 tokens" in err
    assert run(capsys, "trace", trace, "-o", str(page))[0].strip() == str(page)
    html = page.read_text(encoding="utf-8")
    assert html.lstrip().lower().startswith("<!doctype html")
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html


def test_a_sampled_trace_is_replayed_by_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = str(tmp_path / "run.jsonl")
    argv = ("generate", "-p", PROMPT, "-n", "20", "--budget", "0.7", "--temperature", "1.5", "--top-k", "0")
    text, _ = run(capsys, *argv, "--trace", trace)
    again, err = run(capsys, "generate", "--replay", trace)
    assert again == text
    assert "tokens are the recorded ones" in err


def test_a_replay_that_differs_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "run.jsonl"
    run(capsys, "generate", "-p", PROMPT, "-n", "6", "--temperature", "0", "--trace", str(trace))
    lines = trace.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[4])
    record["token"] = (record["token"] + 1) % 100
    trace.write_text("\n".join([*lines[:4], json.dumps(record), *lines[5:]]) + "\n", encoding="utf-8")
    _, err = run(capsys, "generate", "--replay", str(trace), "--temperature", "0", code=1)
    assert "token 3 differs" in err.splitlines()[-1]


def test_inspect_json(capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "inspect", "-o", "json")
    assert set(result) >= {"path", "format_version", "variants", "policy", "actions", "cost_model"}
    dense = next(action for action in result["actions"] if action["tag"] == "k100-s100-q8")
    assert dense["cost"] == 1.0
    assert all(set(action) >= {"tag", "cost", "loss", "bytes"} for action in result["actions"])
    assert result["selection"] is None
    assert min(action["cost"] for action in result["actions"]) < 0.9
    assert "k100-s100-q8" in run(capsys, "inspect")[0]


def test_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert "all as written" in run(capsys, "verify")[0]


def test_perplexity_is_a_mean_over_decode_steps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text((PROMPT + ". ") * 40, encoding="utf-8")
    argv = ("perplexity", "-f", str(tmp_path / "text.txt"), "-c", "32", "--chunks", "3")
    result = as_json(capsys, *argv, "-o", "json")
    keys = {
        "ppl",
        "stderr",
        "nll",
        "tokens",
        "chunks",
        "achieved_budget",
        "cost_model",
        "prefill",
        "provider",
        "device",
    }
    assert set(result) == keys
    assert (result["tokens"], result["chunks"], result["achieved_budget"]) == (3 * 15, 3, 1.0)
    last = run(capsys, *argv)[0].splitlines()[-1]
    assert last == f"Final estimate: PPL = {result['ppl']:.4f} +/- {result['stderr']:.5f}"
    cheap = as_json(capsys, *argv, "--schedule", "fixed:k100-s050-q4", "-o", "json")
    assert cheap["achieved_budget"] < 0.9
    assert cheap["nll"] != result["nll"]


@pytest.mark.slow
def test_a_cost_table_is_used_from_then_on(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    result = as_json(capsys, "profile", "--contexts", "16,64", "-r", "3", "--provider", "cpu", "--json")
    assert Path(result["path"]).is_relative_to(home)
    assert {row["context"] for row in result["rows"]} == {16, 64}
    assert all(row["ms"] > 0 for row in result["rows"])
    assert as_json(capsys, "inspect", "-o", "json")["cost_model"] == "measured"
    run_of = ("generate", "-p", PROMPT, "-n", "4", "--provider", "cpu", "--json")
    assert as_json(capsys, *run_of)["cost_model"] == "measured"


@pytest.mark.slow
def test_profile_reports_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(capsys, "profile", "--contexts", "16,64", "-r", "3", "--provider", "cpu", "--json")
    lines = [line.partition(" ...") for line in err.splitlines() if " ..." in line]
    stages = [f"{what} {length}" for length in (16, 64) for what in ("filling the cache to", "timing at")]
    assert [name for name, _, _ in lines] == ["trying settings of the processor", *stages]
    shares = [int(figures.partition("%")[0] or 0) for _, _, figures in lines[1:]]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[-1]


@pytest.mark.slow
def test_profile_refuses_contexts_beyond_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected lengths from 1 to" in run(capsys, "profile", "--contexts", "1000000", code=2)[1]


def test_chat_turns_the_dial_and_keeps_the_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "Hello\n/budget 0.7\n/schedule random\nAnd then?\n/stats\n/reset\n/exit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    results: list[Generation] = []
    bought = generate.bought
    monkeypatch.setattr(generate, "bought", lambda result, *how: results.append(result) or bought(result, *how))
    out, err = run(capsys, "chat", "-n", "6", "--temperature", "0", "--system", "Be brief.")
    assert len(out.splitlines()) >= 2
    assert "budget 0.7" in err
    assert "(random" in err
    first, second, *_ = results
    assert first.cached_tokens == 0
    assert second.cached_tokens >= first.prompt_tokens


def test_the_statistics_of_an_answer_are_of_its_own_budget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/budget 0.7\n/stats\n"))
    err = run(capsys, "chat", "-n", "6", "--temperature", "0", "--budget", "0.9")[1]
    assert [line.split(":")[1] for line in err.splitlines() if line.startswith("dial:")] == [" budget 0.9"] * 2
    assert "requested 0.900" in err


def test_one_question_says_once_what_the_dial_bought(capsys: pytest.CaptureFixture[str]) -> None:
    err = run(capsys, "chat", "-n", "6", "--temperature", "0", "--budget", "0.9", "-p", "Hello")[1]
    assert (err.count("dial:"), err.count("speed:")) == (1, 1)


@pytest.mark.parametrize("schedule", ["dense", "fixed:k100-s050-q4"])
def test_chat_takes_a_fixed_schedule_after_a_budget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/budget 0.5\n/schedule {schedule}\nHello\n/stats\n"))
    assert f"({schedule}" in run(capsys, "chat", "-n", "6", "--temperature", "0")[1]


@pytest.fixture
def endless(llama_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle without end tokens: only the limit or a signal ends its text."""
    folder = tmp_path / "endless"
    shutil.copytree(llama_bundle, folder)
    config = read_config(folder / CONFIG_NAME)
    (folder / FILE).unlink()
    files = {name: entry for name, entry in config.files.items() if name != FILE}
    config = replace(config, files=files, model=replace(config.model, eos_token_ids=()))
    (folder / CONFIG_NAME).write_text(json.dumps(config.to_json_dict()), encoding="utf-8")
    return folder


def test_ctrl_c_keeps_the_text_the_trace_and_the_statistics(tmp_path: Path, endless: Path) -> None:
    trace = tmp_path / "run.jsonl"
    argv = ("generate", "-m", str(endless), "-p", "a", "-n", "1000", "--temperature", "1", "--trace", str(trace))
    with started(*argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        first = process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first + rest
    assert b"achieved" in err
    assert err.splitlines()[-1] == STOPPED
    assert b"Traceback" not in err
    assert json.loads(trace.read_text(encoding="utf-8").splitlines()[-1])["step"] >= 0


def test_a_trace_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "run.jsonl"
    argv = ["generate", "-p", "a", "-n", "2", "--trace", str(trace)]
    command = [sys.executable, "-m", "sol_rt", *argv]
    header = TraceHeader("tiny", "", (1,), "a", "dense", 1.0, "bytes")
    trace.write_text(Trace(header, ()).to_jsonl(), encoding="utf-8")
    with trace.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert f"sol-rt: error: trace {trace}: another process is writing it; choose another file\n" in ended.stderr
        assert read_trace(trace).header == header
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    assert len(read_trace(trace).records) == 2


def test_ctrl_c_keeps_the_json_of_what_came(tmp_path: Path, endless: Path) -> None:
    trace = tmp_path / "run.jsonl"
    argv = ("generate", "-m", str(endless), "-p", "a", "-n", "1000", "--temperature", "1", "--json")
    with started(
        *argv, "--trace", str(trace), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not (trace.exists() and trace.stat().st_size > 1000) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == STOPPED
    result = json.loads(out)
    assert result["finish_reason"] == "closed"
    assert result["tokens"]


def test_ctrl_c_in_perplexity_keeps_the_estimate(tmp_path: Path, endless: Path) -> None:
    (tmp_path / "text.txt").write_text((PROMPT + ". ") * 20000, encoding="utf-8")
    argv = ("perplexity", "-m", str(endless), "-f", str(tmp_path / "text.txt"), "-c", "32")
    with started(*argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        seen = b""
        while b"windows ..." not in seen:  # said when the first one is done
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    estimate, stopped = err.splitlines()[-2:]
    assert stopped == STOPPED
    assert estimate.startswith(b"after ")
    assert b"PPL = " in estimate


BENCH = ("bench", "-p", "24", "-n", "8", "-r", "2")


def test_bench_json_is_a_list_of_rows_with_llama_benchs_keys(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(
        capsys, *BENCH, "-d", "0,40", "--budget", "1.0,0.6", "-t", str(providers.start_pool(None)), "-o", "json"
    )
    assert [row["test"] for row in rows] == ["pp24", "tg8", "tg8", "pp24 @ d40", "tg8 @ d40", "tg8 @ d40"]
    assert [row["budget"] for row in rows] == [None, 1.0, 0.6] * 2
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows[3:5]] == [(24, 0, 40), (0, 8, 40)]
    for row in rows:
        known = {"n_threads", "cpu_info", "model_filename", "model_size", "test_time"}
        figures = {"avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"}
        own = {"model", "provider", "version", "schedule", "achieved_budget", "gb_per_second", "bandwidth_share"}
        assert set(row) >= known | figures | own | {"peak_rss_mb", "read_gb_per_second", "onnxruntime", "actions"}
        assert len(row["samples_ts"]) == 2
        assert row["peak_rss_mb"] > 0
        assert row["n_threads"] == providers.start_pool(None)
        if library_path() is not None:
            assert row["read_gb_per_second"] > 0
    assert rows[1]["achieved_budget"] == 1.0
    assert rows[2]["achieved_budget"] < 1.0
    assert sum(rows[1]["actions"].values()) == 16


def test_bench_prints_a_markdown_table(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, *BENCH, "-n", "4", "--schedule", "fixed:k100-s100-q4", "--schedule", "dense")
    head, blank, *table = out.splitlines()
    assert "read bandwidth" in head
    assert blank == ""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len({len(row) for row in cells}) == 1
    tests = [(row[cells[0].index("test")], row[cells[0].index("schedule")]) for row in cells]
    assert tests[2:] == [
        ("pp24", "dense"),
        ("tg8", "fixed:k100-s100-q4"),
        ("tg8", "dense"),
        ("tg4", "fixed:k100-s100-q4"),
        ("tg4", "dense"),
    ]
    assert all("±" in row[cells[0].index("t/s")] for row in cells[2:])
    assert "tg8, fixed:k100-s100-q4 ..." in err


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("-p", "some"), "--n-prompt: got 'some'"),
        (("-p", ""), "--n-prompt"),
        (("-n", "-1"), "--n-gen: got -1"),
        (("-d", "1024"), "--n-depth: got 1024"),
        (("-p", "0", "-n", "0"), "no tokens"),
        (("--budget", "0.4,2"), "--budget: got 2"),
        (("--budget", "half"), "--budget: got 'half'"),
        (("--schedule", "best"), "best"),
        (("-r", "0"), "--repetitions"),
        (("-o", "xml"), "xml"),
        (("-m", "no-such-bundle"), "no-such-bundle"),
    ],
)
def test_bench_refuses_bad_input_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], part: str
) -> None:
    out, err = run(capsys, "bench", *argv, code=2)
    assert out == ""
    assert [line for line in err.splitlines() if part in line] == err.splitlines()[-1:]


@pytest.mark.slow
def test_bench_in_turn_gives_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    plain, turned = (as_json(capsys, *BENCH, "-d", "0,16", "--json", *more) for more in ((), ("--interleave",)))
    names = ("test", "schedule", "budget", "actions", "achieved_budget")
    assert [[row[name] for name in names] for row in turned] == [[row[name] for name in names] for row in plain]


def test_bench_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, *BENCH, "-d", "1010", "--budget", "1.0", "--json")
    assert [row["test"] for row in json.loads(out)] == ["tg8 @ d1010"]
    assert "pp24 @ d1010: left out" in err


def test_bench_without_the_library_says_why_there_is_no_bandwidth(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(threads: int) -> float:
        raise SolError("read bandwidth not measured: no library")

    monkeypatch.setattr("sol_rt.evaluation.speed.bandwidth.measure_apart", absent)
    out, err = run(capsys, *BENCH, "--json")
    assert {row["bandwidth_share"] for row in json.loads(out)} == {None}
    assert "no library" in err


@pytest.mark.slow
@pytest.mark.parametrize("form", ["md", "json"])
def test_ctrl_c_in_bench_keeps_finished_rows(form: str) -> None:
    argv = ("bench", "-p", "16", "-n", "900", "--budget", "1.0", "-r", "1000", "-n", "8", "-o", form)
    with started(*argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        seen = b""
        while b"tg900" not in seen:  # said when it begins, after the prompt's row
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == STOPPED
    rows = json.loads(out) if form == "json" else out.splitlines()[4:]
    assert len(rows) == 1
    assert "pp16" in str(rows[0])


def test_ctrl_c_in_a_piped_chat_ends_the_program(endless: Path) -> None:
    argv = ("chat", "-m", str(endless), "-n", "1000", "--temperature", "1")
    with started(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"Hello\nAnd then?\n")
        process.stdin.flush()  # and stays open: the program must not wait for more
        process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr
        assert process.stderr.read().splitlines()[-1] == STOPPED


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_leaves_nothing_of_an_export(number: signal.Signals, llama_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundles" / "out"
    output.parent.mkdir()
    with started("export", "-m", str(llama_checkpoint), "-o", str(output), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(output.parent.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(number)
        assert process.stderr
        err = process.stderr.read()
        assert process.wait(60) == 128 + number
    assert b"sol-rt: stopped by " in err  # the line of a stage may follow
    assert b"Traceback" not in err
    assert not list(output.parent.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(number: signal.Signals, endless: Path) -> None:
    """As under nohup, and in the background of a shell."""
    argv = ("generate", "-m", str(endless), "-p", "a", "-n", "300", "--temperature", "1")
    with started(*argv, ignored=number, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(4)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"  299  100%" in err  # steps after the first token


def test_a_reader_that_leaves_ends_the_program_quietly(endless: Path) -> None:
    argv = ("generate", "-m", str(endless), "-p", "a", "-n", "1000", "--temperature", "1")
    with started(*argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(4)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == READER_GONE
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_ctrl_c_in_chat_stops_the_answer_not_the_program(endless: Path) -> None:
    master, slave = pty.openpty()
    argv = ("chat", "-m", str(endless), "-n", "900", "--temperature", "1")
    with started(*argv, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        screen = b""

        def until(marker: bytes) -> None:
            nonlocal screen
            deadline = time.monotonic() + 60
            while marker not in screen and time.monotonic() < deadline:
                if select.select([master], [], [], 1.0)[0]:
                    screen += os.read(master, 4096)
            assert marker in screen, screen.decode(errors="replace")
            screen = screen.split(marker, 1)[1]

        until(b"> ")
        os.write(master, b"Hello\n")
        until(b"Hello\r\n")
        answer = b""  # the terminal gets escape sequences before it
        while len(re.sub(rb"\x1b\[[?0-9;]*[a-zA-Z]|\s", b"", answer)) < 4:
            assert select.select([master], [], [], 60.0)[0], "no answer came"
            answer += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        until(b"(stopped)")
        until(b"> ")
        os.write(master, b"/exit\n")
        try:
            while os.read(master, 4096):
                pass
        except OSError:  # the terminal closes when the program has gone
            pass
        assert process.wait(60) == 0
    os.close(master)


TELEMETRY = "ORT_DISABLE_TELEMETRY"


def alone(folder: Path) -> dict[str, str]:
    """The environment of a user who has set nothing, with empty folders in `folder`, and without a network."""
    kept = {name: value for name, value in os.environ.items() if name != TELEMETRY}
    return {**kept, **no_network.environment(folder)}


@pytest.mark.parametrize("argv", [("generate", "-p", "a", "-n", "4"), ("inspect",)], ids=lambda argv: argv[0])
def test_a_command_writes_under_its_home_alone_and_asks_no_network(argv: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sol_rt", *argv]
    subprocess.run(command, env=alone(tmp_path / "machine"), stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert no_network.traces(tmp_path / "machine") == []  # $SOL_RT_HOME is elsewhere


@pytest.mark.slow
def test_a_program_that_stays_open_asks_no_network(tmp_path: Path) -> None:
    command, environment = [sys.executable, "-m", "sol_rt", "chat", "-n", "4"], alone(tmp_path / "machine")
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"a\n")
        process.stdin.flush()
        process.stdout.readline()
        time.sleep(12)  # telemetry of ONNX Runtime looks for its server after 9
        process.stdin.close()
        assert process.wait(60) == 0
    assert no_network.traces(tmp_path / "machine") == []


def test_telemetry_that_the_user_turned_on_stays_on() -> None:
    program = f"import os, sol_rt; print(os.environ[{TELEMETRY!r}])"
    environment = {name: value for name, value in os.environ.items() if name != TELEMETRY}
    for given, expected in (({}, "1"), ({TELEMETRY: "0"}, "0")):
        command = [sys.executable, "-c", program]
        assert subprocess.check_output(command, env={**environment, **given}, text=True).strip() == expected


BAD = {
    "BITS": "nan", "BUDGET": "2", "BUDGET_MAX": "2", "BUDGET_MIN": "-1", "CACHE_BYTES": "-1",
    "CHANNEL_DENSITY": "x", "CTX_SIZE": "99999", "DEBUG": "x", "DEVICE": "-1",
    "FREQUENCY_PENALTY": "nan", "GOVERNOR": "x", "HOST": "0.0.0.0", "KV_DENSITY": "2", "MAX_LOSS": "-1",
    "MAX_NEW_TOKENS": "0", "MIN_P": "x", "NATIVE_OPS": "x", "PORT": "99999", "PREFILL": "x", "PRESENCE_PENALTY": "nan",
    "PROVIDER": "x", "QUEUE": "-1", "REPETITION_PENALTY": "0", "SCHEDULE": "fixed:x", "SEED": "-1", "SESSIONS": "0",
    "SYSTEM": "\udcff", "TARGET_LATENCY": "0", "TARGET_QUEUE": "-1",
    "TEMPERATURE": "inf", "THREADS": "0", "TOKENS_PER_SECOND": "0", "TOP_K": "-1", "TOP_P": "nan", "VERIFY": "x",
}  # fmt: skip
"""A wrong value of every variable that sets an option."""
OF_SERVE = {
    "BUDGET_MAX", "BUDGET_MIN", "CACHE_BYTES", "HOST", "PORT", "QUEUE", "SESSIONS", "TARGET_LATENCY", "TARGET_QUEUE",
}  # fmt: skip


def test_every_variable_of_an_option_has_a_wrong_value() -> None:
    commands = typer.main.get_command(make_app(COMMANDS)).commands.values()  # type: ignore[attr-defined]
    variables = {parameter.envvar for command in commands for parameter in command.params if parameter.envvar}
    assert variables == {f"SOL_RT_{name}" for name in BAD}


@pytest.mark.parametrize(
    ("name", "value"),
    [*BAD.items(), ("MAX_LOSS", "x"), ("SCHEDULE", "x"), ("BITS", "99"), ("TOKENS_PER_SECOND", "inf"), ("TOP_P", "2")],
)
def test_an_error_that_comes_from_a_variable_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"SOL_RT_{name}", value)
    monkeypatch.delenv("SOL_RT_API_KEY", raising=False)
    command = ["serve"] if name in OF_SERVE else ["generate", "-p", "a"]
    out, err = run(capsys, *(["chat", "-p", "a"] if name == "SYSTEM" else command), code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith(f" (from $SOL_RT_{name})\n")


@pytest.fixture(scope="module")
def once_measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("losses") / "tiny", losses=True)


@pytest.fixture
def with_losses(once_measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with losses, in a home that keeps the costs of its actions from one test to the next."""
    monkeypatch.setenv("SOL_RT_HOME", str(once_measured.with_name("home")))
    return once_measured


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: str) -> None:
    """Sets variables of the environment, written as `BUDGET=0.8 BITS=6`."""
    for name, _, value in (each.partition("=") for each in variables.split()):
        monkeypatch.setenv(f"SOL_RT_{name}", value)


@pytest.mark.parametrize(
    ("variables", "argv", "dial"),
    [
        ("BUDGET=0.8", "", "budget 0.8"),
        ("BUDGET=80%", "--max-loss 2%", "perplexity at most 2% over dense"),
        ("MAX_LOSS=0", "--budget 0.8", "budget 0.8"),
        ("MAX_LOSS=2%", "--budget 0.8", "budget 0.8"),
        ("MAX_LOSS=2% BITS=5", "--budget 0.8", "budget 0.8"),
        ("BUDGET=0.8 MAX_LOSS=2%", "--bits 6", "bits 6"),
        ("BITS=6", "--kv-density 0.9", "kv density 0.9, bits 6"),
        ("BUDGET=0.8", "--tokens-per-second 1", "1 tokens/s"),
        ("BUDGET=0.8", "--schedule dense", "dense"),
        ("KV_DENSITY=0.9 GOVERNOR=1", "--schedule fixed:k100-s100-q4", "fixed:k100-s100-q4"),
        ("SCHEDULE=dense", "--budget 0.8", "budget 0.8"),
        ("BUDGET=0.8", "--schedule uniform", "budget 0.8"),
        ("SCHEDULE=uniform", "--max-loss 2%", "perplexity at most 2% over dense"),
        ("MAX_LOSS=2%", "--schedule uniform", "none given, so dense"),
        ("GOVERNOR=1", "--bits 6", "bits 6"),
        ("BUDGET=0.8", "--lossless", "dense"),
        ("SCHEDULE=uniform GOVERNOR=1", "--lossless", "dense"),
    ],
)
def test_the_dial_of_the_command_line_wins_over_variables(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    with_losses: Path,
    variables: str,
    argv: str,
    dial: str,
) -> None:
    set_variables(monkeypatch, variables)
    _, err = run(capsys, "generate", "-m", str(with_losses), "-p", "w1", "-n", "4", *argv.split())
    assert re.search(rf"^dial: {re.escape(dial)}[:,]", err, re.MULTILINE), err


@pytest.mark.parametrize(
    ("variables", "argv", "named"),
    [
        ("BUDGET=0.8 MAX_LOSS=2%", "", "$SOL_RT_BUDGET and $SOL_RT_MAX_LOSS"),
        ("BUDGET=0.8 MAX_LOSS=2%", "--schedule hull", "$SOL_RT_BUDGET and $SOL_RT_MAX_LOSS"),
        ("BUDGET=0.8 SCHEDULE=dense", "", "$SOL_RT_BUDGET and $SOL_RT_SCHEDULE"),
        ("BITS=6 GOVERNOR=1", "", "$SOL_RT_GOVERNOR and $SOL_RT_BITS"),
        ("BUDGET=0.8 BITS=6", "", "$SOL_RT_BUDGET and $SOL_RT_BITS"),
    ],
)
def test_variables_that_contradict_each_other_are_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    with_losses: Path,
    variables: str,
    argv: str,
    named: str,
) -> None:
    set_variables(monkeypatch, variables)
    _, err = run(capsys, "generate", "-m", str(with_losses), "-p", "w1", *argv.split(), code=2)
    assert err.endswith(f" (from {named})\n")


@pytest.mark.parametrize(
    ("variable", "argv"), [("BUDGET=0.8", ["--schedule", "dense"]), ("SCHEDULE=dense", ["-b", "0.8"])]
)
def test_bench_takes_the_command_line_before_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, argv: list[str]
) -> None:
    monkeypatch.setenv(*f"SOL_RT_{variable}".split("="))
    run(capsys, "bench", "-p", "0", "-n", "2", "-r", "1", *argv)
