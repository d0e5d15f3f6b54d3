"""Servers to ask: `sol-rt serve` as a process, and one in a thread of the test, whose parts the test may choose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from sol_rt.generate.model import SolModel
from sol_rt.serve import answers, app
from sol_rt.serve.answers import Prepared
from sol_rt.serve.app import Server, Settings
from sol_rt.serve.pieces import Piece
from sol_rt.serve.request import Asked, FieldError


@contextmanager
def served(bundle: Path, *options: str, **environment: str) -> Iterator[str]:
    """A server's address. The server has ended, and without an error, when the context has."""
    command = [sys.executable, "-m", "sol_rt", "serve", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if match := re.search(r"http://\S+", line):
            break
    else:
        pytest.fail("".join(said))
    rest = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    rest.start()
    try:
        yield match[0].removesuffix("/v1")
    finally:
        process.terminate()
        code = process.wait(30)
        rest.join()
    assert code == 143, said
    assert "Traceback" not in "".join(said), "".join(said)


@contextmanager
def in_thread(
    bundle: Path, parser: Callable[[Any], Any] | None = None, **settings: Any
) -> Iterator[tuple[str, Server]]:
    """A server's address and the server, with settings of the test's own, and a parser in place of the real one."""
    model = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    server = Server(model, Settings(**{"name": "tiny", **settings}))
    running = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        with nullcontext() if parser is None else _parsed_by(parser, model):
            yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}", server
    finally:
        server.scheduler.close()
        running.should_exit = True
        thread.join()


@contextmanager
def _parsed_by(parser: Callable[[Any], Any], model: SolModel) -> Iterator[None]:
    """Gives the answers of a model another parser."""

    async def prepare(asked_of: SolModel, asked: Asked) -> Prepared:
        prepared = await answers.prepare(asked_of, asked)
        return replace(prepared, parser=parser(asked)) if asked_of is model else prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "prepare", prepare)
        yield


class Script:
    """A parser that says its own pieces in place of the text: one list with each token, and what is left at the end."""

    def __init__(self, *pieces: Sequence[Piece]) -> None:
        self._pieces = list(pieces)

    def feed(self, text: str) -> list[Piece]:
        return list(self._pieces.pop(0)) if self._pieces else []

    def finish(self) -> list[Piece]:
        return [piece for pieces in self._pieces for piece in pieces]


def thinks_and_calls(asked: Any) -> Script:
    """Two pieces of reasoning, text, a call in pieces, and another whose end comes with the end of 12 tokens."""
    return Script(
        [Piece("reasoning", "let me ")],
        [Piece("reasoning", "see")],
        [Piece("text", "I ask.")],
        [Piece("tool", "", 0, "weather", "call_a"), Piece("tool", '{"city":', 0)],
        [Piece("tool", ' "Ulm"}', 0)],
        [Piece("tool", '{"zone":', 1, "time", "call_b")],
        *[[]] * 6,
        [Piece("tool", ' "CET"}', 1)],
    )


def outcome(read: Callable[..., Any], body: dict[str, Any]) -> Any:
    """The request without what was ignored, or why it is refused."""
    try:
        return replace(read(body, {}, "tiny"), ignored=())
    except FieldError as error:
        return error.reason


WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT_TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "weather", "description": "w3", "parameters": WEATHER}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
}
CHAT_WITH_TOOLS: list[dict[str, Any]] = [
    {"role": "system", "content": "w7"},
    {"role": "user", "content": "w3"},
    {
        "role": "assistant",
        "content": "w4",
        "reasoning_content": "w5",
        "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}},
            {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_0", "content": "w8"},
    {"role": "tool", "tool_call_id": "call_1", "content": "w9"},
    {"role": "user", "content": "w10"},
]
"""A conversation in chat's shape, which each protocol has in its own."""


def running(address: str) -> int:
    """Number of answers that run."""
    return _figure(address, "running")


@contextmanager
def left(address: str, tokens: int = 8000) -> Iterator[None]:
    """Checks that an answer of so many tokens, whose client leaves within the context, ends before it has them."""
    before = _figure(address, "generated_tokens_total")
    yield
    for _ in range(100):
        if running(address) == 0:
            break
        time.sleep(0.1)
    assert running(address) == 0
    assert _figure(address, "generated_tokens_total") - before < tokens


def _figure(address: str, name: str) -> int:
    match = re.search(rf"^sol_rt_{name} (\S+)", httpx.get(f"{address}/metrics").text, re.MULTILINE)
    assert match is not None
    return int(float(match[1]))
