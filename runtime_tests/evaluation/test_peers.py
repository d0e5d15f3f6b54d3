"""The comparison with peers: its arithmetic, which rows it takes, and the pipe that engines answer through."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.bad_options import assert_refused
from helpers.tiny_bundle import write_bundle
from peers import cold, peer_models, peer_report, peers
from peers.peer_report import best, ratios, tables
from peers.workers.client import WorkerError, WorkerProcess, engines_of
from peers.workers.scoring import scorer
from report import quartiles
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.step import StepOutput
from sol_rt.errors import SolError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.session import Session
from sol_rt.generate.results import GeneratedToken
from sol_rt.generate.stream import Stream

RATES = st.lists(st.floats(1, 1e4), min_size=1, max_size=9)

# an engine that answers a further request, `calls`, with everything it was told to do
RECORDER = """
import sys
sys.path.insert(0, sys.argv[1])
from protocol import serve

class Recorder:
    version, settings, action = "1", "none", None
    calls = []
    def reset(self, capacity): self.calls.append(["reset", capacity])
    def prompt(self, tokens): self.calls.append(["prompt", tokens, self.action])
    def rewind(self, length): self.calls.append(["rewind", length])
    def step(self): self.calls.append(["step", self.action])

    def default(self, request):
        self.calls.append(["default", request["tokens"], request.get("action")])
        return {"ms": 1, "variant": "s100-q4"}

own = Recorder()
serve(own, calls=lambda request: {"calls": Recorder.calls}, default=own.default)
"""


@pytest.fixture
def recorder() -> WorkerProcess:
    folder = str(Path(peers.__file__).parent / "workers")
    return WorkerProcess("recorder", [sys.executable, "-c", RECORDER, folder])


def test_the_spread_is_median_and_quartiles() -> None:
    assert quartiles([5, 1, 4, 2, 3]) == "3.00 [2.00, 4.00]"
    assert quartiles([1, 2], 1) == "1.5 [1.2, 1.8]"


def test_the_best_peer_has_the_highest_median_not_the_highest_rate() -> None:
    assert best({"steady": [10, 11, 12], "lucky": [9, 9, 100]}) == "steady"


@given(RATES, st.floats(0.1, 10))
def test_ratios_are_taken_within_a_repetition(rates: list[float], factor: float) -> None:
    np.testing.assert_allclose(ratios([factor * rate for rate in rates], rates), factor, rtol=1e-12)


def test_ratios_need_the_same_repetitions() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([1, 2], [1])


def test_tables_name_the_best_peer_of_each_row() -> None:
    first = peer_report.Test("pp512", {"k100-s100-q4": [300, 600]}, {"a": [100, 200], "b": [150, 300]})
    second = peer_report.Test("tg64 @ d64", {"k100-s100-q4": [30, 30]}, {"a": [20, 20], "b": [10, 10]})
    lines = tables([first, second], ["a", "b"], "k100-s100-q8").splitlines()
    assert lines[2] == "| pp512 | 150.0 [125.0, 175.0] | 225.0 [187.5, 262.5] |"
    two, three = "2.00 [2.00, 2.00]", "3.00 [3.00, 3.00]"
    assert lines[7] == f"| pp512 | `k100-s100-q4` | 450.0 [375.0, 525.0] | {two} (b) | {three} | {two} |"
    assert lines[8].startswith("| tg64 @ d64 | `k100-s100-q4` | 30.0 [30.0, 30.0] | 1.50 [1.50, 1.50] (a) | 1.50")
    assert {line.count("|") for line in lines[5:]} == {7}


def test_perplexities_stand_beside_the_speeds_of_their_depth() -> None:
    nats = {"k100-s100-q8": [1.0, 2.0, 3.0], "k100-s100-q4": [1.1, 2.1, 3.1], "a": [1.0, 2.0, 3.3]}
    prompt = peer_report.Test("pp512", {"k100-s100-q4": [300]}, {"a": [100], "a -fa 0": [90]})
    scored = peer_report.Test(
        "tg2 @ d8", {"k100-s100-q4": [30], "k100-s100-q8": [20]}, {"a": [20], "a -fa 0": [10]}, {}, 8, nats
    )
    lines = tables([prompt, scored], ["a", "a -fa 0"], "k100-s100-q8").splitlines()
    assert lines[4] == f"| perplexity @ d8 | {math.exp(2.1):.2f} (+10.5 ± 10.0%) |  |"
    assert [line.split("|")[-2].strip() for line in lines[8:]] == [
        "",
        f"{math.exp(2.1):.2f} (+10.5 ± 0.0%)",
        f"{math.exp(2):.2f}",
    ]
    assert {line.count("|") for line in lines[6:]} == {8}
    rows = {row["name"]: row for row in peer_report.as_json(scored, "k100-s100-q8")["rows"]}
    assert rows["a"]["over_dense"] == pytest.approx(0.1)
    assert rows["a"]["over_dense_stderr"] == pytest.approx(0.1)
    assert rows["k100-s100-q8"]["tokens"] == 3
    assert "ppl" not in rows["a -fa 0"]


@given(st.integers(4096, 32768))
def test_the_sparse_row_reads_512_tokens_or_more_and_one_percent_less_would_not(depth: int) -> None:
    action = peers.sparse_action(depth, 16)
    assert (action.channel_density, action.bits) == (1.0, 4)
    assert action.pages(depth, 16) >= 32
    assert action.kv_density == 0.01 or Action(action.kv_density - 0.01, 1.0, 4).pages(depth, 16) < 32


def test_a_decode_request_rewinds_to_its_prompt_and_takes_one_step_more_than_it_counts(recorder: WorkerProcess) -> None:
    with recorder:
        recorder.ask(do="prompt", tokens=[7, 8, 9], room=2)
        for tag in ("x", "y"):
            assert recorder.ask(do="decode", count=2, action=tag)["ms"] > 0
        calls = recorder.ask(do="calls")["calls"]
    assert calls[:2] == [["reset", 7], ["prompt", [7, 8, 9], None]]
    for index, tag in enumerate("xy"):
        assert calls[2 + 5 * index : 7 + 5 * index] == [["rewind", 2], ["prompt", [9], tag], *[["step", tag]] * 3]
    assert len(calls) == 12


def test_every_entry_is_measured_in_every_turn_and_the_warm_up_is_left_out(recorder: WorkerProcess) -> None:
    with recorder:
        entries = [peers.Entry(recorder, "x"), peers.Entry(recorder, "y"), peers.Entry(recorder, do="default")]
        rates = peers.measure(entries, {"do": "prompt", "tokens": [1]}, 1, 2)
        calls = recorder.ask(do="calls")["calls"]
    assert {name: len(values) for name, values in rates.items()} == {"x": 2, "y": 2, "default": 2}
    made = [call[2] or call[0] for call in calls if call[0] != "reset"]
    assert made == ["x", "y", "default", "y", "default", "x", "default", "x", "y"]


def test_fresh_processes_take_turns_at_being_the_first() -> None:
    started: list[str] = []

    def start(name: str) -> WorkerProcess:
        started.append(name)
        return WorkerProcess(name, [sys.executable, "-c", RECORDER, str(Path(peers.__file__).parent / "workers")])

    found = cold.measured({name: partial(start, name) for name in "abc"}, [1, 2], 2)
    assert started == list("abcbcacab")
    assert [{name: len(times) for name, times in each.items()} for each in found] == [dict.fromkeys("abc", 2)] * 3
    assert all(times > 0 for each in found for rows in each.values() for times in rows)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to read a process's state from")
def test_llama_cpp_is_measured_with_and_without_flash_attention(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "{\\"version\\": \\"1\\", \\"settings\\": \\"$*\\"}"\ncat\n')
    python.chmod(0o755)
    said = {}
    for engine in engines_of("llama.cpp"):
        with WorkerProcess.start(engine, python, tmp_path / "file.gguf", 2) as worker:
            said[worker.name] = worker.settings
    assert said.keys() == {"llama.cpp", "llama.cpp -fa 0"}
    assert all("/llama_cpp_worker.py " in each and "file.gguf --threads 2" in each for each in said.values())
    assert ["--no-flash-attention" in each for each in said.values()] == [False, True]
    assert engines_of("genai") == ("genai",)


def test_a_worker_that_is_not_asked_is_stopped(recorder: WorkerProcess) -> None:
    def state() -> str:
        return Path(f"/proc/{recorder.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    with recorder:
        for _ in range(2):
            deadline = time.monotonic() + 10  # the signal is on its way when the answer is read
            while state() != "T" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert state() == "T"
            recorder.ask(do="calls")
    with pytest.raises(ProcessLookupError):
        os.kill(recorder.pid, 0)


def test_a_worker_that_ends_is_said(recorder: WorkerProcess) -> None:
    with recorder, pytest.raises(WorkerError, match="recorder: its process ended with 1"):
        recorder.ask(do="nonsense")


def test_a_worker_that_was_killed_is_said(recorder: WorkerProcess) -> None:
    with recorder:
        os.kill(recorder.pid, signal.SIGKILL)
        os.waitid(os.P_PID, recorder.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(WorkerError, match="recorder: its process ended with -9"):
            recorder.ask(do="calls")


def test_a_tool_that_fails_for_a_peers_model_is_named() -> None:
    with pytest.raises(SolError, match=r"exit\(3\): ended with 3"):
        peer_models.run_tool([sys.executable, "-c", "exit(3)"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--peers", "llama.cpp,vllm"],
        ["--depths", "64,0"],
        ["--depths", "64,many"],
        ["-n", "0"],
        ["-r", "0"],
        ["-t", "-1"],
        ["--actions", "k100-s100-q4,fast"],
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(peers, "run", argv, argv[0], monkeypatch, capsys)


def test_an_environment_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    monkeypatch.setattr(peers, "resolve", lambda *how: (tmp_path / "tiny.gguf", "tiny"))
    monkeypatch.setattr(peers, "bundle_of", lambda *how: bundle)
    args = argparse.Namespace(
        model="tiny.gguf",
        environments=tmp_path,
        peers=["genai"],
        actions=[Action(1.0, 1.0, 4)],
        depths=[64],
        count=8,
        file=None,
    )
    with pytest.raises(UsageError, match=r"genai.bin.python: .*make peers"):
        next(peers.run(args))
    args.actions = [Action(1.0, 1.0, MIXED)]
    with pytest.raises(UsageError, match="--actions k100-s100-qmix: no variant s100-qmix"):
        next(peers.run(args))


def test_a_prompt_runs_by_default_dense_and_under_the_variants_of_the_actions(
    recorder: WorkerProcess, tmp_path: Path
) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "tiny"))
    actions = [Action(0.3, 1.0, 4), Action(1.0, 1.0, 4), Action(1.0, 0.5, 4)]
    with recorder:
        args = argparse.Namespace(depths=[8], repetitions=1, count=2)
        prompt, decoding = peers.tests(recorder, [], actions, bundle, args)
        calls = recorder.ask(do="calls")["calls"]
    tags = ["k100-s100-q4", "k100-s050-q4", "k100-s100-q8"]
    assert [call[2] for call in calls if call[0] == "prompt" and len(call[1]) == peers.PROMPT][:3] == tags
    assert list(prompt.own) == ["default", *tags]
    told = {tags[0]: "(`--prefill s100-q4`)", tags[1]: "(`--prefill s050-q4`)"}
    assert prompt.notes == {"default": "(prompt by `s100-q4`)", **told}
    assert decoding.notes == {}
    assert list(decoding.own) == [action.tag for action in actions]
    row = tables(
        [peer_report.Test("pp512", {tags[0]: [2.0]}, {"a": [1.0]}, prompt.notes)], ["a"], tags[-1]
    ).splitlines()[-1]
    assert row.startswith("| pp512 | `k100-s100-q4` (`--prefill s100-q4`) | 2.0")


def test_a_page_says_what_was_measured(recorder: WorkerProcess, tmp_path: Path) -> None:
    """A sparse action among the rows too, which a prompt has nothing to say of."""
    config = Bundle.open(write_bundle(tmp_path / "tiny")).config
    with recorder:
        args = argparse.Namespace(
            model="smollm2-135m",
            peers=["llama.cpp"],
            depths=[64],
            repetitions=2,
            count=32,
            threads=1,
            actions=[Action(0.5, 1.0, 4)],
            file=Path("valid.txt"),
            windows=3,
            scored=64,
        )
        rates = {"k050-s100-q4": [10.0, 10.0]}
        decoding = {"pp512": 0, "tg32 @ d64": 64}
        results = [
            peer_report.Test(name, rates, {"recorder": [5.0, 5.0]}, {}, depth) for name, depth in decoding.items()
        ]
        page = peers.report(recorder, [recorder], results, config, args)
    assert page.count("`k050-s100-q4` after 64 tokens reads 8 of 16 old pages") == 1
    assert "`tg32 @ d512`: 32 decode steps" in page
    assert "over 2 repetitions, all" in page
    assert "PEERS=llama.cpp DEPTHS=64 TEXT=valid.txt" in page
    assert '--actions k050-s100-q4 --windows 3 --scored 64"' in page
    assert "Perplexity: of 3 windows of\nvalid.txt the 64 tokens after the depth" in page
    assert "`default` is the time to the first token" in page
    args.file = None
    assert "--windows" not in peers.report(recorder, [recorder], results, config, args)


def test_the_sparse_row_comes_once_and_only_where_the_bundle_has_its_variant(tmp_path: Path) -> None:
    sparse = peers.sparse_action(8000, 16)
    bundle = Bundle.open(write_bundle(tmp_path / "tiny"))
    assert peers._with_sparse([Action(1.0, 1.0, 4)], 8000, bundle) == ["k100-s100-q4", sparse.tag]
    assert peers._with_sparse([sparse], 8000, bundle) == [sparse.tag]


@given(st.lists(st.integers(0, 4), min_size=4, max_size=12), st.integers(0, 99))
def test_scored_are_the_tokens_after_the_first_half_and_one(window: list[int], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 30, (len(window), 5)).astype(np.float32)
    (scored,) = scorer(lambda tokens, first: np.array_split(logits[first:-1], 2))({"windows": [window]})["nll"]
    assert len(scored) == len(window) - len(window) // 2 - 1
    for position, nats in zip(range(len(window) // 2 + 1, len(window)), scored, strict=True):
        row = [float(x) for x in logits[position - 1]]
        expected = math.log(math.fsum(math.exp(x - max(row)) for x in row)) + max(row) - row[window[position]]
        assert nats == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_default_prompt_is_that_of_a_generation_without_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(peers.__file__).parent / "workers"))
    bundle, prompt = write_bundle(tmp_path / "tiny"), [5, 6, 7]
    own = importlib.import_module("sol_rt_worker").SolRt(bundle, None)
    model = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    expected = model.generate(prompt, max_new_tokens=1, eos_token_id=[]).prefill
    for _ in range(2):
        answer = own.default({"tokens": prompt})
        assert answer["variant"] == expected
        assert answer["ms"] > 0


def test_a_start_runs_prompts_by_its_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, ran = write_bundle(tmp_path / "tiny"), []
    monkeypatch.syspath_prepend(str(Path(peers.__file__).parent / "workers"))
    worker = importlib.import_module("sol_rt_worker")
    forward = Session.forward

    def noted(self: Session, tokens: list[int], action: Action, **how: Any) -> StepOutput:
        ran.append((len(tokens), action.tag))
        return forward(self, tokens, action, **how)

    monkeypatch.setattr(Session, "forward", noted)
    for options, prompt in (((None,), "k100-s100-q8"), (("s100-q4",), "k100-s100-q4")):
        own = worker.SolRt(bundle, None, *options)  # the pool of the tests
        assert own.settings.startswith(f"prompt by {prompt} ")
        for own.action in (None, "k100-s050-q6"):
            own.reset(8)
            own.prompt([5, 6, 7])
    assert [tag for _, tag in ran] == ["k100-s100-q8", "k100-s050-q6", "k100-s100-q4", "k100-s050-q6"]
    with WorkerProcess.start("sol_rt", sys.executable, bundle, 1, options=("--prefill", "s100-q4")) as started:
        assert started.settings == own.settings
        assert started.ask(do="prompt", tokens=[5, 6, 7])["ms"] > 0


def test_the_runtime_takes_the_steps_that_it_is_timed_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    monkeypatch.syspath_prepend(str(Path(peers.__file__).parent / "workers"))
    own = importlib.import_module("sol_rt_worker").SolRt(bundle, None)
    taken: list[GeneratedToken] = []
    step = Stream.__next__
    monkeypatch.setattr(Stream, "__next__", lambda self: taken.append(step(self)) or taken[-1])
    prompt = [5, 6, 7, 8]
    own.reset(12)
    own.prompt(prompt)
    for own.action in ("k100-s050-q6", "k100-s100-q4"):
        taken.clear()
        own.rewind(3)
        own.prompt(prompt[3:])
        for _ in range(5):
            own.step()
        assert [each.action.tag for each in taken[1:]] == [own.action] * 5
        tokens = [each.token for each in taken]
        model = SolModel.from_pretrained(bundle, measure_costs=False)
        expected = model.generate(prompt, schedule=f"fixed:{own.action}", max_new_tokens=6, eos_token_id=[])
        assert tokens == expected.tokens


def test_the_runtime_scores_what_its_perplexity_command_scores(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    window = np.random.default_rng(2).integers(3, 86, 24).tolist()
    tags = ["k100-s100-q8", "k050-s100-q4"]
    with WorkerProcess.start("sol_rt", sys.executable, bundle, 1) as worker:
        scored = worker.ask(do="nll", windows=[window], context=12, actions=tags)["nll"]
    assert list(scored) == tags
    model = SolModel.from_pretrained(bundle, measure_costs=False)
    for tag in tags:
        expected = model.score(window, context=12, schedule=f"fixed:{tag}").logprobs[1:]
        np.testing.assert_allclose(scored[tag], -expected, rtol=1e-4)  # batches round otherwise than steps
