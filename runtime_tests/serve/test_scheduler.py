"""The scheduler on a tiny model: order, prompts in chunks, and reading of requests."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.random_decoder import describe
from helpers.tiny_bundle import with_losing_prompts, write_bundle
from sol_rt.errors import SolError
from sol_rt.generate.model import SolModel
from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.serve.answer_dial import AnswerDial
from sol_rt.serve.request import FieldError, read_chat, read_completion
from sol_rt.serve.scheduler import BACKGROUND_ROUNDS, ClosingError, Event, Job, QueueFullError, Scheduler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    bundle = write_bundle(
        tmp_path_factory.mktemp("scheduled") / "tiny", decoder=replace(describe("llama"), max_context=8192), losses=True
    )
    return SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)


class Listener:
    """Collects the events of jobs in the order in which they came."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event | None]] = []
        self.begun: dict[str, threading.Event] = {}
        self.ended: dict[str, threading.Event] = {}

    def job(self, model: SolModel, name: str, prompt: list[int], count: int, *, background: bool = False) -> Job:
        ended = self.ended[name] = threading.Event()
        begun = self.begun[name] = threading.Event()

        def tell(event: Event | None) -> None:
            self.events.append((name, event))
            begun.set()
            if not isinstance(event, GeneratedToken):
                ended.set()

        stream = model.stream(prompt, max_new_tokens=count, eos_token_id=[], reuse_cache=True)
        return Job(stream, prompt, tell, AnswerDial(stream), background)

    def tokens(self, name: str) -> list[int]:
        return [event.token for who, event in self.events if who == name and isinstance(event, GeneratedToken)]


def test_a_long_prompt_lets_others_go_on(model: SolModel) -> None:
    """While one prompt of many chunks is read, an answer that runs gets a token after each chunk."""
    long = [3 + n % 80 for n in range(1500)]
    alone = model.generate(long, max_new_tokens=3, eos_token_id=[]).tokens
    model.engine.reset()
    listener, scheduler = Listener(), Scheduler(model, sessions=2)
    try:
        first, second = listener.job(model, "short", [4, 5], 2000), listener.job(model, "long", long, 3)
        scheduler._chunk = 64
        scheduler.submit(first)
        assert listener.begun["short"].wait(60)
        before = len(listener.events)
        scheduler.submit(second)
        for ended in listener.ended.values():
            assert ended.wait(120)
    finally:
        scheduler.close()
    names = [name for name, _ in listener.events][before:]
    assert names[: names.index("long")].count("short") >= 2
    assert listener.tokens("long") == alone
    assert second.cached == 0


def test_every_chunk_of_a_prompt_runs_by_the_variant_that_the_core_chose(tmp_path: Path) -> None:
    bundle = with_losing_prompts(
        write_bundle(tmp_path / "tiny", decoder=replace(describe("llama"), max_context=8192), losses=True), q4=0.001
    )
    cheap = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    prompt = [3 + n % 80 for n in range(600)]
    listener, scheduler = Listener(), Scheduler(cheap, sessions=1)
    try:
        scheduler.submit(listener.job(cheap, "one", prompt, 3))
        assert listener.ended["one"].wait(60)
    finally:
        scheduler.close()
    result = listener.events[-1][1]
    assert isinstance(result, Generation)
    assert (result.prefill, result.cached_tokens) == ("s100-q4", 0)
    dense = cheap.generate(prompt, max_new_tokens=1, reuse_cache=True, schedule="dense")
    assert (dense.prefill, dense.cached_tokens) == ("s100-q8", 0)


def test_who_is_in_the_background_gives_way(model: SolModel) -> None:
    listener, scheduler = Listener(), Scheduler(model, sessions=2)
    try:
        jobs = [listener.job(model, "back", [4, 5], 400, background=True), listener.job(model, "front", [6, 7], 100)]
        for job in jobs:
            scheduler.submit(job)
        for ended in listener.ended.values():
            assert ended.wait(120)
    finally:
        scheduler.close()
    names = [name for name, event in listener.events if isinstance(event, GeneratedToken)]
    first = names.index("front")
    last = len(names) - names[::-1].index("front")
    assert names[first:last].count("back") <= 100 / BACKGROUND_ROUNDS + 1


def test_a_cancelled_job_ends_and_a_full_queue_refuses(model: SolModel) -> None:
    listener, scheduler = Listener(), Scheduler(model, sessions=1, queue=1)
    try:
        running, waiting = listener.job(model, "runs", [4, 5], 8000), listener.job(model, "waits", [6, 7], 3)
        scheduler.submit(running)
        scheduler.submit(waiting)
        with pytest.raises(QueueFullError):
            scheduler.submit(listener.job(model, "refused", [8], 3))
        waiting.cancelled = True
        waiting = listener.job(model, "waits", [6, 7], 3)
        scheduler.submit(waiting)
        running.cancelled = True
        assert listener.ended["runs"].wait(60)
        assert listener.ended["waits"].wait(60)
    finally:
        scheduler.close()
    assert len(listener.tokens("waits")) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN = """model messages prompt stop n tools budget temperature stream_options logprobs seed max_tokens logit_bias
    max_completion_tokens echo best_of top_p max_loss schedule"""
NAMES = st.sampled_from(KNOWN.split())


@given(st.dictionaries(NAMES | st.text(max_size=6), JSON, max_size=6), st.booleans())
def test_any_body_is_read_or_refused(body: dict[str, Any], chat: bool) -> None:
    read = read_chat if chat else read_completion
    try:
        asked = read(body, {}, "tiny")
    except FieldError:
        return
    json.dumps(asked.ignored).encode()
    assert len(asked.ignored) <= len(body)


@pytest.mark.parametrize(
    "body",
    [{"n": True}, {"best_of": True}, {"echo": True}, {"max_tokens": 0}, {"budget": 10**400}, {"model": "other"}],
)
def test_what_would_be_a_wrong_answer_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        read_completion({"prompt": "a", **body}, {}, "tiny")


def test_the_order_of_the_dial() -> None:
    def dial(body: dict[str, Any], **headers: str) -> dict[str, Any]:
        given = {f"x-sol-{name.replace('_', '-')}": text for name, text in headers.items()}
        return dict(read_completion({"prompt": "a", "model": "a:b@0.4", **body}, given, "a:b").arguments)

    assert dial({}) == {"budget": 0.4}
    assert dial({}, max_loss="0.1") == {"max_loss": 0.1}
    assert dial({"max_loss": 0.2}, budget="0.5") == {"max_loss": 0.2}
    assert dial({"schedule": "uniform"}) == {"budget": 0.4, "schedule": "uniform"}
    assert dial({"lossless": True}, budget="0.5", schedule="uniform") == {"lossless": True}
    assert dial({}, lossless="true") == {"lossless": True}
    assert dial({"max_loss": 0.2}, lossless="true") == {"max_loss": 0.2}
    assert dial({"lossless": False}, lossless="true", budget="0.5") == {"budget": 0.5}
    for body, headers in (({"lossless": True, "budget": 1}, {}), ({}, {"lossless": "true", "budget": "0.5"})):
        with pytest.raises(FieldError, match="leave out budget"):
            dial(body, **headers)


def test_two_conversations_keep_their_caches(model: SolModel) -> None:
    """They begin alike, as by a chat template: the second takes an empty session all the same."""
    scheduler, cached = Scheduler(model, sessions=3), []
    first, second = [5, 6, 7, *range(10, 80)], [5, 6, 7, *range(80, 9, -1)]
    try:
        for prompt in (first, second, first, second):
            listener = Listener()
            job = listener.job(model, "one", prompt, 3)
            scheduler.submit(job)
            assert listener.ended["one"].wait(60)
            cached.append(job.cached)
    finally:
        scheduler.close()
    assert cached == [0, 0, len(first) - 1, len(second) - 1]


def test_requests_are_checked_beside_answers_that_run(model: SolModel) -> None:
    scheduler, listener = Scheduler(model, sessions=2), Listener()
    try:
        for number in range(40):
            scheduler.submit(listener.job(model, str(number), [4 + number, 5, 6], 5))
            model.stream([4, 5], max_new_tokens=3)
        assert all(ended.wait(60) for ended in listener.ended.values())
    finally:
        scheduler.close()
    assert not [event for _, event in listener.events if isinstance(event, Exception)]


def test_where_telling_fails_all_jobs_end(model: SolModel) -> None:
    def fail(event: Event | None) -> None:
        raise RuntimeError("gone")

    scheduler, listener = Scheduler(model, sessions=1), Listener()
    later = listener.job(model, "later", [4, 5], 5)
    stream = model.stream([4, 5], max_new_tokens=3, reuse_cache=True)
    scheduler.submit(Job(stream, [4, 5], fail, AnswerDial(stream)))
    with contextlib.suppress(ClosingError):
        scheduler.submit(later)
        assert listener.ended["later"].wait(60)
    scheduler.close()
    assert not scheduler.alive()
    with pytest.raises(ClosingError):
        scheduler.submit(later)


def test_a_panic_ends_all_jobs_with_an_error(model: SolModel) -> None:
    """A panic of a library in Rust is no Exception."""

    class Panic(BaseException):
        pass

    def fail(event: Event | None) -> None:
        raise Panic

    scheduler, listener = Scheduler(model, sessions=2), Listener()
    other = listener.job(model, "other", [4, 5], 8000)
    stream = model.stream([6, 7], max_new_tokens=3, reuse_cache=True)
    scheduler.submit(other)
    scheduler.submit(Job(stream, [6, 7], fail, AnswerDial(stream)))
    assert listener.ended["other"].wait(60)
    assert isinstance(error := listener.events[-1][1], SolError)
    assert "ended by Panic" in str(error)
    assert not scheduler.alive()
    scheduler.close()


def test_where_a_scheduler_closes_all_jobs_end(model: SolModel) -> None:
    listener, scheduler = Listener(), Scheduler(model, sessions=1)
    for name in ("one", "two"):
        scheduler.submit(listener.job(model, name, [4, 5], 8000))
    scheduler.close()
    assert all(ended.is_set() for ended in listener.ended.values())
