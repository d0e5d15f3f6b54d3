"""Thousands of requests of every kind to one `sol-rt serve`: is each answer right, and does the server stay as it was?

    python benchmarks serve.soak --requests 10000

Clients of every protocol ask at once. Some leave in the middle or before the first token, read slowly, send what is
no request, move the dial, or flood the queue; the server is ended and started again under load. Every answer that
arrives whole has to be the text that its prompt gets alone, greedily. After each phase nothing may run or wait, the
server says that it is well, and its memory, threads and descriptors are read. Exits with 1 where something failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from report import FOLDER, machine, write_page

TINY = Path(__file__).parents[2] / "runtime_tests/golden/tiny"
MOST_GROWTH = 1000.0
"""Kilobytes by which the server's memory may grow in 1,000 requests, after its warm-up."""
TOKENS = 24
_PHASE = 250
_RESTARTS = 8
_FLOOD = 60
_WORDS = ("the sea", "a red hat", "two birds", "cold tea", "old maps", "a long road", "bread", "north wind", "a key")
_ENDED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectError, httpx.WriteError, httpx.CloseError)
_MALFORMED: tuple[bytes, ...] = (
    b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"messages": 5}', b'{"messages": []}', b'{"messages": [{}]}',
    b"[" * 50_000, b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
    b'{"messages": [{"role": "user", "content": "x"}], "budget": 7}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}], "stop": [1]}',
    b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}}',
    b'{"messages": [{"role": "user", "content": "' + b"x " * 4000 + b'"}]}',
)  # fmt: skip


@dataclass
class Soak:
    """The state of a run.

    Attributes:
        folder: for the server's caches.
        rng: draws what is asked.
        expected: the text of each prompt's greedy answer.
        address, process: of the server in service.
        said, reader: its lines on stderr, and what reads them.
        counts: requests by kind and outcome.
        wrong: what must not happen, in words.
        samples: (requests so far, KB resident, threads, descriptors) of the last server.
        restarts, done: numbers so far.
    """

    folder: Path
    rng: random.Random
    expected: dict[str, str] = field(default_factory=dict)
    address: str = ""
    process: asyncio.subprocess.Process | None = None
    said: list[str] = field(default_factory=list)
    reader: asyncio.Task[None] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[tuple[int, int, int, int]] = field(default_factory=list)
    restarts: int = 0
    done: int = 0

    def fail(self, text: str) -> None:
        self.wrong.append(text[:500])
        print(f"FAILED {text[:500]}", file=sys.stderr, flush=True)

    async def start(self) -> None:
        """Starts the server. Raises RuntimeError with what it said if it does not come up."""
        options = ["--port", "0", "--sessions", "4", "--queue", "24", "--cache-dir", str(self.folder / "caches")]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sol_rt", "serve", str(TINY), *options, "--cache-bytes", str(4 << 20),
            "--threads", "1", stderr=subprocess.PIPE,
        )  # fmt: skip
        self.said, stderr = [], self.process.stderr
        assert stderr is not None
        while line := (await stderr.readline()).decode(errors="replace"):
            self.said.append(line)
            if match := re.search(r"http://\S+(?=/v1)", line):
                self.address = match[0]
                break
        else:
            raise RuntimeError("".join(self.said))

        async def read_on() -> None:
            while text := await stderr.readline():
                self.said.append(text.decode(errors="replace"))

        self.reader = asyncio.create_task(read_on())
        self.samples.clear()

    async def stop(self) -> None:
        """Ends the server as an operator would, and looks at how it went."""
        assert self.process is not None
        assert self.reader is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(self.process.wait(), 60)
        except asyncio.TimeoutError:
            self.process.kill()
            self.fail("the server did not end within 60 s")
            return
        await self.reader
        if code != 143 or "Traceback" in "".join(self.said):
            self.fail(f"the server ended with {code}: {''.join(self.said)[-400:]}")


def text_of(kind: str, body: Any) -> str:
    """The text of a whole answer, by protocol."""
    if kind == "anthropic":
        return "".join(part["text"] for part in body["content"])
    if kind == "ollama":
        return str(body["message"]["content"])
    if kind == "responses":
        return "".join(part["text"] for item in body["output"] for part in item.get("content", ()))
    return str(body["choices"][0]["message"]["content"] or "")


def request_of(kind: str, prompt: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a greedy request, by protocol."""
    messages = [{"role": "user", "content": prompt}]
    common: dict[str, Any] = {"model": "tiny", "temperature": 0, "budget": 1.0}
    if kind == "anthropic":
        return "/v1/messages", {**common, "messages": messages, "max_tokens": TOKENS}
    if kind == "ollama":
        options = {"num_predict": TOKENS, "temperature": 0, "budget": 1.0}
        return "/api/chat", {"model": "tiny", "messages": messages, "stream": False, "options": options}
    if kind == "responses":
        return "/v1/responses", {**common, "input": prompt, "max_output_tokens": TOKENS}
    return "/v1/chat/completions", {**common, "messages": messages, "max_tokens": TOKENS}


class Clients:
    """Requests of every kind, each of which returns its outcome. `check` compares a whole answer."""

    def __init__(self, soak: Soak, http: httpx.AsyncClient) -> None:
        self._soak, self._http, self._rng = soak, http, soak.rng
        self.kinds: dict[str, tuple[float, Callable[[], Awaitable[str]]]] = {
            **{kind: (8, partial(self.whole, kind)) for kind in ("chat", "anthropic", "ollama", "responses")},
            "stream": (30, self.stream),
            "leaves": (12, self.leaves),
            "leaves early": (8, self.leaves_early),
            "slow reader": (2, self.slow),
            "malformed": (15, self.malformed),
            "no HTTP": (2, self.no_http),
            "moves the dial": (5, self.moves),
            "too long": (0.3, self.too_long),
            "flood": (0.3, self.flood),
        }

    async def whole(self, kind: str) -> str:
        prompt = self._rng.choice(list(self._soak.expected))
        path, body = request_of(kind, prompt)
        answer = await self._http.post(self._soak.address + path, json=body)
        if answer.status_code != 200:
            return self.refused(answer)
        return self.check(prompt, text_of(kind, answer.json()))

    def check(self, prompt: str, text: str) -> str:
        if text != self._soak.expected[prompt]:
            self._soak.fail(f"got {text!r} for {prompt[:60]!r}, expected {self._soak.expected[prompt]!r}")
            return "wrong"
        return "right"

    def refused(self, answer: httpx.Response) -> str:
        if answer.status_code not in (429, 503):
            self._soak.fail(f"status {answer.status_code}: {answer.text[:200]}")
        return str(answer.status_code)

    async def stream(self, pause: float = 0.0, leave_after: int = 1 << 30, **fields: Any) -> str:
        prompt = self._rng.choice(list(self._soak.expected))
        path, body = request_of("chat", prompt)
        text, ended = "", False
        async with self._http.stream(
            "POST", self._soak.address + path, json={**body, "stream": True, **fields}
        ) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return self.refused(answer)
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        if chunk["error"]["code"] != "closing":
                            self._soak.fail(f"a stream ended with {chunk['error']}")
                        return "closing"
                    if fields.get("budget", 1.0) < 1.0 and not text:
                        moved = f"{self._soak.address}/v1/budget/{chunk['id']}"
                        await self._http.post(moved, json={"budget": self._rng.uniform(0.3, 1.0)})
                    text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                    leave_after -= 1
                    if not leave_after:
                        return "left"
                await asyncio.sleep(pause)
        if not ended:
            self._soak.fail(f"a stream ended without its end after {text!r}")
            return "cut"
        return self.check(prompt, text) if "budget" not in fields else "ended"

    async def leaves(self) -> str:
        return await self.stream(leave_after=self._rng.randint(1, TOKENS))

    async def leaves_early(self) -> str:
        path, body = request_of("chat", self._rng.choice(list(self._soak.expected)))
        with suppress(httpx.TimeoutException):
            await self._http.post(self._soak.address + path, json=body, timeout=self._rng.uniform(0.001, 0.05))
        return "left"

    async def slow(self) -> str:
        return await self.stream(pause=0.02)

    async def moves(self) -> str:
        return await self.stream(budget=0.5, messages=[{"role": "user", "content": f"{self._rng.random()} tea"}])

    async def malformed(self) -> str:
        path = self._rng.choice(["/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses"])
        body = self._rng.choice(_MALFORMED)
        if self._rng.random() < 0.5:
            body = bytes(self._rng.choice(body or b"{") for _ in range(self._rng.randint(0, 200)))
        answer = await self._http.post(self._soak.address + path, content=body)
        if answer.status_code >= 500 and answer.status_code != 503:  # a field that one refuses is unknown to another
            self._soak.fail(f"status {answer.status_code} for {body[:100]!r} to {path}")
        return str(answer.status_code)

    async def no_http(self) -> str:
        host, port = self._soak.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        writer.write(
            self._rng.choice(
                [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", head + b"Content-Length: 900\r\n\r\n{", head + b"x" * 3000,
                 head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", head + b"Content-Length: -1\r\n\r\n"]
            )
        )  # fmt: skip
        with suppress(ConnectionError, asyncio.TimeoutError):
            await writer.drain()
            await asyncio.wait_for(reader.read(100), 0.2)
        writer.close()
        return "closed"

    async def too_long(self) -> str:
        try:
            answer = await self._http.post(self._soak.address + "/v1/chat/completions", content=b" " * (9 << 20))
        except _ENDED:
            return "closed"
        if answer.status_code not in (413, 503):
            self._soak.fail(f"status {answer.status_code} for 9 MB")
        return str(answer.status_code)

    async def flood(self) -> str:
        found = await asyncio.gather(*(self.whole("chat") for _ in range(_FLOOD)), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, _ENDED):
                raise each
        self._soak.done += len(found) - 1
        self._soak.counts.update(f"flood: {each}" for each in found if isinstance(each, str))
        return "over"


async def run(requests: int, clients: int, folder: Path) -> Soak:
    """Runs the soak to its end."""
    soak = Soak(folder, random.Random(0))
    await soak.start()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        for number in range(60):  # some share their beginning, some are long enough to be kept
            words = " ".join(soak.rng.choice(_WORDS) for _ in range(soak.rng.choice([1, 3, 12])))
            prompt = f"{number % 7} {words} {number}"
            path, body = request_of("chat", prompt)
            answer = await http.post(soak.address + path, json=body)
            soak.expected[prompt] = text_of("chat", answer.raise_for_status().json())
        asking = Clients(soak, http)
        weights = [weight for weight, _ in asking.kinds.values()]

        async def ask_on(until: int) -> None:
            while soak.done < until:
                soak.done += 1
                kind = soak.rng.choices(list(asking.kinds), weights)[0]
                try:
                    outcome = await asking.kinds[kind][1]()
                except (*_ENDED, OSError) as error:
                    outcome = "lost connection"
                    if not restarting:
                        soak.fail(f"{kind}: {error!r} while the server was in service")
                    await serving.wait()
                soak.counts[f"{kind}: {outcome}"] += 1

        serving, restarting = asyncio.Event(), False
        serving.set()
        begun = time.monotonic()
        while soak.done < requests:
            phase = [asyncio.create_task(ask_on(min(soak.done + _PHASE, requests))) for _ in range(clients)]
            if soak.restarts < _RESTARTS:
                await asyncio.sleep(soak.rng.uniform(0.2, 1.5))
                restarting = True
                serving.clear()
                soak.restarts += 1
                await soak.stop()
                await soak.start()
                serving.set()
            await asyncio.gather(*phase)
            restarting = False
            await settle(soak, http)
            print(f"{soak.done} requests, {time.monotonic() - begun:.0f} s, {soak.samples[-1:]}", file=sys.stderr)
    await soak.stop()
    return soak


async def settle(soak: Soak, http: httpx.AsyncClient) -> None:
    """Waits until nothing runs, then reads what the server holds."""
    for _ in range(300):
        text = (await http.get(soak.address + "/metrics")).text
        if all(f"sol_rt_{name} 0.0" in text for name in ("running", "waiting")):
            break
        await asyncio.sleep(0.1)
    else:
        soak.fail("answers run or wait though nobody asks")
    if (await http.get(soak.address + "/health")).status_code != 200:
        soak.fail("the server says that it is not well")
    if statuses := re.findall(r'sol_rt_requests_total\{.*status="(5\d\d)"\} (\S+)', text):
        for status, number in statuses:
            if status != "503":
                soak.fail(f"{number} answers have status {status}")
    assert soak.process is not None
    folder = Path(f"/proc/{soak.process.pid}")
    status = (folder / "status").read_text(encoding="utf-8")
    resident, threads = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "Threads"))
    soak.samples.append((soak.done, resident, threads, len(list((folder / "fd").iterdir()))))


def slope(soak: Soak) -> float | None:
    """Kilobytes that memory grew by in 1,000 requests, without the last server's warm-up; None for few samples."""
    samples = soak.samples[len(soak.samples) // 2 :]  # before, floods widen the pools of threads and memory
    if len(samples) < 4:
        return None
    done, resident = np.array([each[:2] for each in samples], np.float64).T
    return float(np.polyfit(done, resident, 1)[0]) * 1e3


def page(soak: Soak, grown: float | None) -> str:
    """The results in Markdown."""
    outcomes = "\n".join(f"| {name} | {count} |" for name, count in sorted(soak.counts.items()))
    first, last = soak.samples[0], soak.samples[-1]
    growth = "too few requests to tell" if grown is None else f"{grown:+.0f} KB in 1,000 requests"
    return (
        f"{machine()}; {soak.done} requests, {soak.restarts} restarts, {len(soak.wrong)} failures. The last server: "
        f"{first[1] >> 10} MB at first, {last[1] >> 10} MB at the end, {growth}; {first[2]} and {last[2]} threads, "
        f"{first[3]} and {last[3]} descriptors.\n\n| request: outcome | number |\n|---|--:|\n{outcomes}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "serving_soak.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = asyncio.run(run(arguments.requests, arguments.clients, Path(folder)))
    grown = slope(soak)
    if grown is not None and grown > MOST_GROWTH:
        soak.fail(f"memory grew by {grown:.0f} KB in 1,000 requests, expected at most {MOST_GROWTH:g}")
    write_page(arguments.output, page(soak, grown))
    print(page(soak, grown), end="")
    if soak.wrong:
        sys.exit(f"error: serve.soak: {len(soak.wrong)} failures; the first: {soak.wrong[0]}")


if __name__ == "__main__":
    main()
