"""Several threads on one model, and on several: text is never mixed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.budget.dial import Dial
from sol_rt.bundle import weights
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.distribution import Distribution, SoftmaxSums, native_sums, numpy_sums
from sol_rt.engine.step import StepOutput
from sol_rt.errors import BusyError, UsageError
from sol_rt.generate.native.session import Session

LONG = {"max_new_tokens": 48, "eos_token_id": []}
PROMPTS = [f"w{n} w{n + 1} w{2 * n} w7" for n in range(1, 7)]
HOW = [{"budget": 1.0}, {"budget": 0.7, "schedule": "sol"}, {"budget": 0.7, "schedule": "uniform"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("threads") / "tiny", policy=True, losses=True)


@pytest.fixture
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle, provider="cpu")


def at_once(*work: Callable[[], object]) -> list[object]:
    """Runs functions in threads that start together; returns their results in order."""
    barrier = threading.Barrier(len(work))

    def run(function: Callable[[], object]) -> object:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


@pytest.mark.parametrize("how", HOW)
def test_threads_on_one_model_get_the_text_of_their_own_run(model: SolModel, how: dict[str, object]) -> None:
    alone = [model.generate(prompt, **how, **LONG).tokens for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in alone}) > 1
    for _ in range(3):
        together = at_once(*(lambda p=prompt: model.generate(p, **how, **LONG).tokens for prompt in PROMPTS))
        assert together == alone


def test_generating_and_scoring_at_once(model: SolModel) -> None:
    tokens = list(range(3, 60))
    text, scores = model.generate(PROMPTS[0], **LONG).tokens, model.score(tokens).logprobs
    for _ in range(3):
        got, scored = at_once(
            lambda: model.generate(PROMPTS[0], **LONG).tokens, lambda: model.score(tokens).logprobs.tolist()
        )
        assert got == text
        assert scored == scores.tolist()


def test_models_of_their_own_run_at_once(bundle: Path) -> None:
    models = [SolModel.from_pretrained(bundle, provider="cpu") for _ in range(3)]
    alone = [models[0].generate(prompt, budget=0.7, **LONG).tokens for prompt in PROMPTS[:3]]
    for _ in range(3):
        together = at_once(
            *(
                lambda m=each, p=prompt: m.generate(p, budget=0.7, **LONG).tokens
                for each, prompt in zip(models, PROMPTS, strict=False)
            )
        )
        assert together == alone


@pytest.mark.parametrize("sums", [native_sums(), numpy_sums])
def test_softmax_sums_of_several_threads(sums: Callable[[np.ndarray], SoftmaxSums]) -> None:
    draw = np.random.default_rng(0)
    rows = [draw.standard_normal(200).astype(np.float32) for _ in range(4)]
    alone = [sums(row) for row in rows]
    wrong = at_once(
        *(lambda r=row, a=one: sum(sums(r) != a for _ in range(5000)) for row, one in zip(rows, alone, strict=True))
    )
    assert wrong == [0] * 4


def test_a_decoder_in_another_thread_does_not_disturb_a_run(model: SolModel) -> None:
    alone = model.generate(PROMPTS[0], **LONG).tokens
    decoder = model.decoder(Dial(budget=1.0))
    refused, ended = [], threading.Event()

    def intrude() -> None:
        while not ended.is_set():
            try:
                decoder.prefill([1, 2, 3])
            except BusyError:
                refused.append(1)

    thread = threading.Thread(target=intrude)
    thread.start()
    try:
        got = []
        while len(got) < 5:
            with suppress(BusyError):  # the other thread was in
                got.append(model.generate(PROMPTS[0], **LONG).tokens)
    finally:
        ended.set()
        thread.join(60)
    assert got == [alone] * 5
    assert refused


def test_a_call_that_is_refused_leaves_an_open_stream_alone(model: SolModel) -> None:
    alone = model.generate(PROMPTS[0], **LONG).tokens
    stream = model.stream(PROMPTS[0], **LONG)
    first = next(stream).token
    with pytest.raises(UsageError, match="prompt"):
        model.generate(123)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="score"):
        model.score([1, 2], context=9)
    with pytest.raises(BusyError):
        in_thread(lambda: model.generate(PROMPTS[1], **LONG))
    assert [first, *(step.token for step in stream)] == alone


def in_thread(function: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_an_open_stream_keeps_other_threads_out(model: SolModel) -> None:
    alone = model.generate(PROMPTS[0], **LONG).tokens
    stream = model.stream(PROMPTS[0], **LONG)
    first = [next(stream).token for _ in range(5)]
    for call in (
        lambda: model.generate(PROMPTS[1], **LONG),
        lambda: model.score([1, 2, 3]),
        lambda: next(model.stream(PROMPTS[1], **LONG)),
    ):
        with pytest.raises(BusyError, match=r"busy.*MainThread.*has a stream open"):
            in_thread(call)
    assert first + [step.token for step in stream] == alone
    assert in_thread(lambda: model.generate(PROMPTS[0], **LONG).tokens) == alone  # it has ended


def test_a_dropped_or_closed_stream_is_not_open(model: SolModel) -> None:
    next(model.stream(PROMPTS[0], **LONG))
    in_thread(lambda: model.generate(PROMPTS[1], **LONG))
    stream = model.stream(PROMPTS[0], **LONG)
    next(stream)
    stream.close()
    in_thread(lambda: model.generate(PROMPTS[1], **LONG))
    ended = in_thread(lambda: _started(model))  # its thread has ended, so nobody waits for it
    model.generate(PROMPTS[1], **LONG)
    with pytest.raises(BusyError):
        next(ended)  # type: ignore[call-overload]


def _started(model: SolModel) -> Iterator[object]:
    stream = model.stream(PROMPTS[0], **LONG)
    next(stream)
    return stream


def test_within_a_thread_the_newest_generation_wins(model: SolModel) -> None:
    alone = model.generate(PROMPTS[1], **LONG).tokens
    old = model.stream(PROMPTS[0], **LONG)
    next(old)
    assert [step.token for step in model.stream(PROMPTS[1], **LONG)] == alone
    with pytest.raises(BusyError, match="interrupted"):
        next(old)


ENGINE_CALLS: dict[str, Callable[[Session], object]] = {
    "step": lambda engine: engine.forward([5], engine.bundle.config.dense),
    "several tokens": lambda engine: engine.forward([5, 6], engine.bundle.config.dense),
    "truncate": lambda engine: engine.truncate(1),
    "reset": lambda engine: engine.reset(),
    "active channels": lambda engine: engine.set_active_channels(engine.bundle.config.dense.variant, {}),
}


@pytest.mark.parametrize("name", ENGINE_CALLS)
def test_a_call_of_the_engine_between_two_tokens_ends_the_stream(model: SolModel, name: str) -> None:
    alone = model.generate(PROMPTS[0], **LONG).tokens
    for run in (in_thread, lambda function: function()):
        stream = model.stream(PROMPTS[0], **LONG)
        first = [next(stream).token for _ in range(3)]
        run(lambda: ENGINE_CALLS[name](model.engine))
        with pytest.raises(BusyError, match="interrupted by a call of its engine"):
            next(stream)
        assert first == alone[:3]
        assert stream.result is not None
        assert stream.result.tokens == first
        with pytest.raises(StopIteration):
            next(stream)
    assert model.generate(PROMPTS[0], **LONG).tokens == alone


def test_a_call_of_the_engine_that_changes_nothing_leaves_the_stream_alone(model: SolModel) -> None:
    alone = model.generate(PROMPTS[0], **LONG).tokens
    stream = model.stream(PROMPTS[0], **LONG)
    first = [next(stream).token for _ in range(3)]
    model.engine.truncate(model.engine.length)
    with pytest.raises(UsageError):
        model.engine.forward([-1], model.bundle.config.dense)
    assert first + [step.token for step in stream] == alone


def test_any_thread_may_take_the_next_token_and_close(model: SolModel) -> None:
    alone = model.generate(PROMPTS[0], **LONG).tokens
    stream = model.stream(PROMPTS[0], **LONG)
    assert [in_thread(lambda: next(stream).token) for _ in range(len(alone))] == alone
    stream = model.stream(PROMPTS[0], **LONG)
    started, taken = threading.Event(), []

    def consume() -> None:
        for step in stream:
            taken.append(step.token)
            started.set()

    thread = threading.Thread(target=consume)
    thread.start()
    assert started.wait(60)
    stream.close()
    thread.join(60)
    assert not thread.is_alive()
    assert taken == alone[: len(taken)]
    assert stream.result is not None
    assert stream.result.tokens == taken


def test_a_stream_that_was_only_made_disturbs_nobody(model: SolModel) -> None:
    how = {"budget": 0.7, "schedule": "sol", **LONG}
    alone = [step.action for step in model.stream(PROMPTS[0], **how)]
    stream = model.stream(PROMPTS[0], **how)
    taken = []
    for step in stream:
        taken.append(step.action)
        model.stream(PROMPTS[1], **how)
    assert taken == alone
    first, second = model.stream(PROMPTS[0], **how), model.stream(PROMPTS[0], **how)
    assert [step.action for step in first] == alone
    assert [step.action for step in second] == alone


def test_a_second_thread_in_a_decoder_or_an_engine_is_refused(model: SolModel) -> None:
    decoder = model.decoder(Dial(budget=1.0))
    with model.engine.exclusive():
        for call in (
            lambda: decoder.prefill([1, 2, 3]),
            lambda: model.engine.forward([1], model.bundle.config.dense),
            lambda: model.engine.reset(),
        ):
            with pytest.raises(BusyError, match="busy in another thread"):
                in_thread(call)
    decoder.prefill([1, 2, 3])
    decoder.step(4)
    assert issubclass(BusyError, UsageError)


def test_two_sessions_that_open_at_once_share_their_weights(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy and the dense graph both read the embedding, and are opened in two threads. Session options hold no
    reference, so a value that one thread made and the other replaced would be read after it was freed.
    """
    shared, both, make = SharedWeights(Bundle.open(bundle)), threading.Barrier(2), weights._as_ort_value

    def make_together(*arguments: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            both.wait(1)
        return make(*arguments)

    monkeypatch.setattr(weights, "_as_ort_value", make_together)
    one, other = at_once(lambda: shared.value("embed.base"), lambda: shared.value("embed.base"))
    assert one is other is shared.value("embed.base")


def refused_stream(model: SolModel) -> None:
    with pytest.raises(UsageError, match="budget"):
        model.stream(PROMPTS[1], budget=5)


DISTURBANCES: dict[str, Callable[[SolModel], object]] = {
    **{name: lambda model, call=call: call(model.engine) for name, call in ENGINE_CALLS.items()},
    "score": lambda model: model.score([1, 2, 3]),
    "decoder": lambda model: model.decoder(Dial(budget=1.0)),
    "generate": lambda model: model.generate(PROMPTS[1], max_new_tokens=3),
    "refused stream": refused_stream,
    "check": lambda model: model.check(Dial(budget=0.5)),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_stream_that_has_not_begun_is_disturbed_by_nothing(model: SolModel, name: str) -> None:
    alone = model.generate(PROMPTS[0], **LONG).tokens
    stream = model.stream(PROMPTS[0], **LONG)
    DISTURBANCES[name](model)
    assert [step.token for step in stream] == alone


def test_a_decoder_and_a_stream_take_turns(model: SolModel) -> None:
    alone = model.generate(PROMPTS[0], **LONG).tokens
    decoder = model.decoder(Dial(budget=1.0))
    decoder.prefill([1, 2, 3])
    stream, refused = model.stream(PROMPTS[0], **LONG), Dial(budget=0.5, tokens_per_second=1.0)
    decoder.step(4)  # a stream that was only made leaves it alone
    first = next(stream).token
    with pytest.raises(UsageError, match="contradict"):
        model.decoder(refused)
    assert [first, *(step.token for step in stream)] == alone
    stream = model.stream(PROMPTS[0], **LONG)
    next(stream)
    decoder.prefill([1, 2, 3])
    with pytest.raises(BusyError, match="interrupted"):
        stream.budget = 0.5
    stream.close()  # the decoder's results stay
    decoder.step(4)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_request_is_refused_while_another_thread_generates(model: SolModel) -> None:
    running, go_on = threading.Event(), threading.Event()

    class Waiting:
        name = "waiting"

        def __init__(self, controller: Any) -> None:
            self._dense = controller.dense

        def choose(self, step: Any) -> Any:
            running.set()
            assert go_on.wait(60)
            return self._dense

    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(lambda: model.generate(PROMPTS[0], schedule=Waiting, **LONG).tokens)
        try:
            assert running.wait(60)
            with pytest.raises(UsageError, match="budget"):
                model.stream(PROMPTS[0], budget=5)
            model.check(Dial(budget=0.5))
        finally:
            go_on.set()
        assert text.result(60) == model.generate(PROMPTS[0], budget=1.0, **LONG).tokens


INSIDE: dict[str, Callable[[SolModel], object]] = {
    "generate": lambda model: model.generate(PROMPTS[0], max_new_tokens=2),
    "score": lambda model: model.score([1, 2, 3]),
    "forward": lambda model: model.engine.forward([1], model.bundle.config.dense),
    "token": lambda model: next(model.stream(PROMPTS[0])),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("whole", [True, False], ids=["score", "generate"])
def test_a_schedule_that_uses_its_model_is_refused(model: SolModel, name: str, whole: bool) -> None:
    """Also where the core runs in another thread than the caller's."""
    seen: list[object] = []

    class Nosy:
        name = "nosy"

        def __init__(self, controller: Any) -> None:
            self._dense = controller.dense

        def choose(self, step: Any) -> Any:
            model.check(Dial(budget=0.5))  # needs no turn
            with pytest.raises(BusyError, match="asks this function"):
                INSIDE[name](model)
            seen.append(step)
            return self._dense

    if whole:
        assert model.score([1, 2, 3, 4], schedule=Nosy).logprobs.size == 3
    else:
        assert len(model.generate(PROMPTS[0], schedule=Nosy, max_new_tokens=3, eos_token_id=[]).tokens) == 3
    assert len(seen) == 2


def test_ctrl_c_twice_ends_a_long_run(model: SolModel) -> None:
    """The main thread presses it in a step that a prompt's engine takes part in; the session is well afterwards."""

    class Slow:
        def truncate(self, length: int) -> None: ...

        def reusable_prefix(self, length: int) -> int:
            return length

        def forward(self, tokens: Any, action: Any, *, num_logits: int = 1) -> Any:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)  # the main thread handles it
            dims = model.bundle.config.model
            zeros = np.zeros((num_logits, dims.vocab_size), np.float32)
            return StepOutput(zeros, np.zeros((num_logits, dims.hidden_size), np.float32), Distribution(zeros[-1]))

    session = model.session(Slow())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            session.forward([1, 2, 3], model.bundle.config.dense)
    finally:
        signal.signal(signal.SIGINT, before)
    assert session.length == 3  # it came too late for the run, and is not meant for the next one
    assert session.tokens == [1, 2, 3]


def test_an_exit_while_a_thread_generates_is_clean(bundle: Path) -> None:
    code = (
        "import sys, threading, time\n"
        "from sol_rt import SolModel\n"
        "model = SolModel.from_pretrained(sys.argv[1], provider='cpu', measure_costs=False)\n"
        "def run():\n"
        "    while True:\n"
        "        model.generate('w1 w2 w3', max_new_tokens=200, eos_token_id=[])\n"
        "threading.Thread(target=run, daemon=True).start()\n"
        "time.sleep(0.3)\n"
    )
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code, str(bundle)], timeout=120).returncode == 0
