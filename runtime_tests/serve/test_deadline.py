"""Deadlines: which are refused at once, what meets the others, and what ends early."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.random_decoder import describe
from helpers.servers import in_thread
from helpers.tiny_bundle import write_bundle
from sol_rt.serve.app import Server
from sol_rt.serve.deadline import SPARE, Pace, budget_in_time, estimate
from sol_rt.serve.load import LoadSettings
from sol_rt.serve.request import FieldError, read_completion

NEVER = {"0": -100, "2": -100}
"""A bias that keeps the tiny model from ending."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoder = replace(describe("llama"), max_context=8192)
    return write_bundle(tmp_path_factory.mktemp("in_time") / "tiny", decoder=decoder, losses=True)


@pytest.fixture(scope="module")
def serving(bundle: Path) -> Iterator[tuple[str, Server]]:
    with in_thread(bundle, sessions=1, load=LoadSettings(0.45)) as found:
        yield found


@pytest.fixture
def slow(serving: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> tuple[str, Server]:
    """The server with steps of a millisecond and more, which it believes to take no time."""
    control = serving[1].scheduler.control
    control.pace = Pace()
    monkeypatch.setattr(control, "took", lambda token, seconds: time.sleep(1e-3))
    return serving


def ask(address: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"prompt": "w3 w4", "temperature": 0, "logit_bias": NEVER, **fields}
    return httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=60)


def test_what_can_t_be_met_is_said_at_once(serving: tuple[str, Server]) -> None:
    address, server = serving
    assert ask(address, max_tokens=20).status_code == 200  # measures the times
    made = server.metrics.text()
    for way in ({"deadline_ms": 1}, {"headers": {"X-Sol-Deadline-Ms": "1"}}):
        refused = ask(address, max_tokens=4000, **way)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, "deadline_impossible", "deadline_ms")
        assert refused.headers["x-should-retry"] == "false"
        assert "ms: queue 0.00 s, prompt" in error["message"]
        assert "at budget 0.45" in error["message"]
    assert _generated(server.metrics.text()) == _generated(made)


def test_an_answer_in_time_says_so(serving: tuple[str, Server]) -> None:
    sol = ask(serving[0], max_tokens=5, deadline_ms=60_000).json()["sol"]
    assert (sol["deadline_met"], sol["reason"]) == (True, "asked")
    assert "deadline_met" not in ask(serving[0], max_tokens=5).json()["sol"]


def test_the_budget_falls_where_time_is_short(serving: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitates a machine whose dense steps would take 5/3 of the time that there is, less what is spared."""
    address, server = serving
    control = server.scheduler.control
    monkeypatch.setattr(control, "took", lambda token, seconds: None)
    control.pace = Pace(dense_ms=60_000 * (1 - SPARE) / 40 / 0.6)
    answer = ask(address, max_tokens=40, budget=1, deadline_ms=60_000).json()
    sol = answer["sol"]
    assert (sol["reason"], sol["deadline_met"], sol["asked"]) == ("deadline", True, {"budget": 1})
    assert sol["achieved_budget"] < 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_misses_ends_with_its_text(slow: tuple[str, Server], stream: bool) -> None:
    fields = {"max_tokens": 8000, "deadline_ms": 1000}
    if not stream:
        answer = ask(slow[0], **fields).json()
        choice = answer["choices"][0]
    else:
        lines = ask(slow[0], stream=True, stream_options={"include_usage": True}, **fields).text.splitlines()
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        answer = chunks[-1]
        finish = [each["choices"][0]["finish_reason"] for each in chunks if each["choices"]][-1]
        text = "".join(each["choices"][0]["text"] for each in chunks if each["choices"])
        choice = {"text": text, "finish_reason": finish}
    assert answer["sol"]["deadline_met"] is False
    assert choice["finish_reason"] == "length"
    assert 0 < answer["usage"]["completion_tokens"] < 8000
    assert len(choice["text"].split()) == answer["usage"]["completion_tokens"]


def test_without_a_number_of_tokens_the_deadline_ends_the_answer(slow: tuple[str, Server]) -> None:
    body = {"messages": [{"role": "user", "content": "w3 w4"}], "logit_bias": NEVER}
    address = f"{slow[0]}/v1/chat/completions"
    httpx.post(address, json={**body, "max_tokens": 1}, timeout=60)  # loads what conversations need
    answer = httpx.post(address, json={**body, "deadline_ms": 1000}, timeout=60).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 0 < answer["usage"]["completion_tokens"] < 8000
    assert answer["sol"]["reason"] == "asked"


def test_a_deadline_that_passes_in_the_queue(slow: tuple[str, Server]) -> None:
    body = {"prompt": "w3", "max_tokens": 8000, "logit_bias": NEVER, "stream": True}
    with httpx.stream("POST", f"{slow[0]}/v1/completions", json=body, timeout=60) as running:
        lines = running.iter_lines()
        next(lines)
        missed = ask(slow[0], max_tokens=2, deadline_ms=1000)
    assert (missed.status_code, missed.json()["error"]["code"]) == (504, "deadline_missed")
    assert missed.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("given", [0, -1, "soon", True])
def test_what_is_no_deadline_is_refused(given: Any) -> None:
    with pytest.raises(FieldError, match="deadline_ms"):
        read_completion({"prompt": "a", "deadline_ms": given}, {}, "tiny")


PACES = st.builds(Pace, st.floats(0.1, 500), st.floats(1, 1e4), st.floats(0, 100))
COUNTS = st.integers(1, 5000)


@given(PACES, st.integers(0, 20), st.integers(1, 8), COUNTS, COUNTS, st.floats(0.05, 1), st.floats(0, 8))
def test_an_estimate_grows_with_all_there_is_to_do(
    pace: Pace, ahead: int, sessions: int, prompt: int, tokens: int, budget: float, others: float
) -> None:
    def seconds(**more: Any) -> float:
        given = {"ahead": ahead, "prompt": prompt, "tokens": tokens, "budget": budget, "others": others, **more}
        return estimate(pace, sessions=sessions, **given).seconds

    least = seconds()
    for name, more in (("ahead", ahead + 1), ("prompt", prompt + 9), ("tokens", tokens + 9), ("others", others + 1)):
        assert seconds(**{name: more}) >= least


@given(st.floats(0.1, 100), COUNTS, st.floats(0.1, 500), st.floats(0, 4))
def test_the_budget_in_time_takes_the_time_left(left: float, tokens: int, dense_ms: float, others: float) -> None:
    budget = budget_in_time(left, tokens, dense_ms, others)
    assert tokens * (budget + others) * dense_ms / 1e3 <= left
    assert budget_in_time(left, tokens + 1, dense_ms, others) <= budget


def _generated(metrics: bytes) -> bytes:
    return next(line for line in metrics.splitlines() if line.startswith(b"sol_rt_generated_tokens_total"))
