"""Events of answers on their way from the scheduler's thread to event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sol_rt.generate.model import SolModel
from sol_rt.serve.answers import Answer, Mail, prepare
from sol_rt.serve.metrics import Metrics
from sol_rt.serve.request import Asked
from sol_rt.serve.scheduler import ClosingError, Scheduler


class Parts:
    """A scheduler with two sessions, and what answers need beside it."""

    def __init__(self, model: SolModel) -> None:
        self.model, self.mail = model, Mail()
        self.scheduler = Scheduler(model, sessions=2, deliver=self.mail.deliver)
        self.metrics = Metrics(self.scheduler)

    async def start(self, count: int, prompt: str = "w3 w4") -> Answer:
        asked = Asked(prompt, {"budget": 1.0, "temperature": 0, "logit_bias": {0: -100, 2: -100}}, count)
        answer = Answer(self.scheduler, self.mail, await prepare(self.model, asked), asked, self.metrics)
        answer.start()
        return answer

    async def tokens(self, count: int, prompt: str) -> list[int]:
        answer, found = await self.start(count, prompt), []
        while made := await answer.tokens():
            found += [token.token for token, _ in made]
        return found


@pytest.fixture
def parts(model: SolModel) -> Iterator[Parts]:
    parts = Parts(model)
    yield parts
    parts.scheduler.close()


def test_what_waits_for_a_slow_reader_comes_in_pieces(parts: Parts) -> None:
    async def read() -> tuple[list[int], list[int], Answer]:
        answer, sizes, found = await parts.start(200), [], []
        while answer.job.dial.made < 200:
            time.sleep(0.01)  # the loop, too
        parts.scheduler.close()
        parts.mail.close()
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 0)
        while made := await answer.tokens():
            assert len(turns) == len(sizes) + 1  # another one had its turn
            asyncio.get_running_loop().call_soon(turns.append, 0)
            sizes.append(len(made))
            found += [token.token for token, _ in made]
        return sizes, found, answer

    sizes, found, answer = asyncio.run(read())
    assert sizes == [64, 64, 64, 8]
    assert answer.result is not None
    assert found == answer.result.tokens


def test_each_event_loop_gets_its_own_answers(parts: Parts) -> None:
    prompts = ["w3 w4", "w5 w6 w7"]
    alone = [asyncio.run(parts.tokens(300, prompt)) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda prompt: asyncio.run(parts.tokens(300, prompt)), prompts))
    assert together == alone
    assert [len(tokens) for tokens in alone] == [300, 300]


def test_a_loop_that_has_closed_keeps_nothing_from_another(parts: Parts) -> None:
    left = asyncio.run(parts.start(2000))
    assert len(asyncio.run(parts.tokens(300, "w5 w6 w7"))) == 300
    left.job.cancelled = True


def test_an_error_comes_after_the_tokens(parts: Parts) -> None:
    async def read() -> int:
        answer, count = await parts.start(4000), 0
        while not answer.job.dial.made:
            time.sleep(0.01)
        parts.scheduler.close()
        try:
            while made := await answer.tokens():
                count += len(made)
        except ClosingError:
            return answer.job.dial.made - count
        return -1

    assert asyncio.run(read()) == 0


def test_the_dial_moves_while_a_prompt_runs(parts: Parts) -> None:
    """A client holds the dial and waits for the session, which the scheduler holds while it steps."""

    async def read() -> int:
        answer, count = await parts.start(20, "w3 w4 " * 100), 0

        def move() -> None:
            while answer.job.dial.made < 10:
                answer.job.dial.ask(0.9)

        moved = asyncio.get_running_loop().run_in_executor(None, move)
        while made := await asyncio.wait_for(answer.tokens(), 60):
            count += len(made)
        await asyncio.wait_for(moved, 60)
        return count

    assert [asyncio.run(read()) for _ in range(5)] == [20] * 5


def test_a_wait_that_is_too_long_says_so(parts: Parts) -> None:
    async def read() -> list[object]:
        first, second = await parts.start(8000), await parts.start(8000, "w5 w6 w7")
        waits = await parts.start(3, "w8")
        found = [await waits.tokens(0.05)]
        first.job.cancelled = second.job.cancelled = True
        while made := await waits.tokens(60):
            found += made
        return found

    nothing, *made = asyncio.run(read())
    assert nothing is None
    assert len(made) == 3
