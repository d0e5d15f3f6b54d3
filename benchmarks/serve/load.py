"""Times that clients of a server see as more of them ask at once, with the dial fixed and moved by load.

    python benchmarks serve.load smollm2-135m --clients 1,2,4,8,16 --seconds 10 --target-latency 60

`sol-rt serve` runs as a process and is asked over loopback. Each client asks for one answer after the other, each with
a prompt of its own and budget 1. Fixed: nothing lowers it. Free: load does, between the bounds, towards the target.
The two servers take turns. First token: from the request to the first text. Between tokens: from one text to the next,
as they arrive. Answer: from the request to its last text.

With `-f TEXT` the divergence from dense is measured on the text at each budget that answers achieved, to 0.05.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import httpx
import numpy as np

from quality.promise import spread_windows, under_dials
from report import FOLDER, facts, machine, write_page
from sol_rt import SolModel
from sol_rt.budget.dial import Dial

FORM = "sol_rt.serving_load"
_BUDGET_STEP = 0.05  # to which budgets are told apart where losses are measured
_CONTEXT = 128  # tokens before the steps that are measured, about an answer's
_CLOSE = ("Connection", "close")
_TOPICS = ("rivers", "bridges", "glass", "winter", "bread", "clocks", "whales", "maps", "salt", "trains")


@dataclass
class Seen:
    """Times that clients saw.

    Attributes:
        first, between, whole: seconds to the first text, from each text to the next, and to an answer's end.
        tokens: tokens of all answers.
        prompts: tokens of all prompts.
        sols: the objects `sol` of the answers, each with its number of tokens.
        seconds: from the first request to the last answer.
        own_seconds: CPU time of the clients meanwhile.
    """

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    prompts: int = 0
    sols: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    seconds: float = 0.0
    own_seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--seconds", type=float, default=10.0, help="time in which clients begin answers, of each row")
    parser.add_argument("-n", "--count", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--target-latency", type=float, default=60.0, help="milliseconds between tokens")
    parser.add_argument("--budget-min", type=float, default=0.4)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("-f", "--file", type=Path, help="held-out text on which to measure the loss")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "serving_load.json")
    arguments = parser.parse_args()
    common = ["--sessions", str(arguments.sessions), "--threads", str(arguments.threads)]
    bounds = ["--budget-min", str(arguments.budget_min), "--target-latency", str(arguments.target_latency)]
    counts, rows = [int(count) for count in arguments.clients.split(",")], []
    with served(arguments.bundle, *common) as fixed, served(arguments.bundle, *common, *bounds) as free:
        servers = {"fixed": fixed, "free": free}
        for address in servers.values():
            asyncio.run(load(address, 1, until(1.0), arguments.count, budget=1.0))  # warms up
        for clients, (dial, address) in itertools.product(counts, servers.items()):
            seen = asyncio.run(load(address, clients, until(arguments.seconds), arguments.count, budget=1.0))
            rows.append({"dial": dial, "clients": clients, **summary(seen)})
            print(line(rows[-1]), flush=True)
    if arguments.file is not None:
        measure_losses(arguments, rows)
    document = facts(FORM, arguments.bundle, None, arguments.threads) | {"settings": settings(arguments), "rows": rows}
    write_page(arguments.output, json.dumps(document, indent=1) + "\n")
    write_page(arguments.output.with_suffix(".md"), page(arguments, rows))
    print("\n" + page(arguments, rows), end="")


@contextmanager
def served(bundle: str, *options: str) -> Iterator[str]:
    """The address of a `sol-rt serve` of its own, which ends with the context."""
    with started([sys.executable, "-m", "sol_rt", "serve", bundle, "--port", "0", *options]) as (address, _):
        yield address


@contextmanager
def started(command: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's process, which ends with the context, and the first address that it says on stderr."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        match = next((found for text in process.stderr if (found := re.search(r"http://\S+", text))), None)
        if match is None:
            sys.exit(f"error: the server did not start: {' '.join(command)}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # else it would wait for a reader
        yield match[0], process
    finally:
        process.terminate()
        process.wait(60)


def questions(first: int = 0) -> Iterator[str]:
    """Prompts that differ from their first words on, without end, numbered from the first one."""
    for number in itertools.count(first):
        yield f"Question {number}: tell me in detail about {_TOPICS[number % len(_TOPICS)]}."


def until(seconds: float) -> Iterator[str]:
    """The prompts until so many seconds have passed."""
    end = time.perf_counter() + seconds
    return itertools.takewhile(lambda _: time.perf_counter() < end, questions())


async def load(address: str, clients: int, asked: Iterator[str], count: int, **fields: Any) -> Seen:
    """Lets clients ask, each for one answer after the other, until the prompts end.

    Bytes are noted as they arrive and read afterwards: whoever asks shares the server's cores.
    """
    seen, begun, used = Seen(), time.perf_counter(), time.process_time()
    answers: list[tuple[float, _Arrivals]] = []

    async def ask_on() -> None:
        for question in asked:
            answers.append(await ask(address, question, count, **fields))

    await asyncio.gather(*(ask_on() for _ in range(clients)))
    seen.seconds, seen.own_seconds = time.perf_counter() - begun, time.process_time() - used
    for before, arrivals in answers:
        read(seen, before, arrivals)
    return seen


class _Arrivals(asyncio.Protocol):
    """One request, and the bytes of its answer, each with the time at which it came."""

    def __init__(self, request: bytes, connection: h11.Connection) -> None:
        self._request, self.connection = request, connection
        self.parts: list[tuple[float, bytes]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.parts.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)


async def ask(address: str, question: str, count: int, **fields: Any) -> tuple[float, _Arrivals]:
    """Asks for one answer, with further fields in the request. Returns when it asked, and what came."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": count,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    url, data, connection = httpx.URL(address), json.dumps(body).encode(), h11.Connection(h11.CLIENT)
    about = {"Host": url.netloc.decode(), "Content-Type": "application/json", "Content-Length": str(len(data))}
    headers: list[tuple[str, str]] = [*about.items(), _CLOSE]
    head = h11.Request(method="POST", target=url.path + "/chat/completions", headers=headers)
    sent = b"".join(connection.send(event) or b"" for event in (head, h11.Data(data=data), h11.EndOfMessage()))
    before = time.perf_counter()
    _, arrivals = await asyncio.get_running_loop().create_connection(
        lambda: _Arrivals(sent, connection), url.host, url.port or 80
    )
    await arrivals.closed
    return before, arrivals


def read(seen: Seen, before: float, arrivals: _Arrivals) -> None:
    """Notes the times of an answer that was asked for then."""
    asked, first, rest = before, True, b""
    for now, part in [*arrivals.parts, (0.0, b"")]:
        arrivals.connection.receive_data(part)
        while not isinstance(event := arrivals.connection.next_event(), (type(h11.NEED_DATA), h11.ConnectionClosed)):
            if isinstance(event, h11.Response) and event.status_code != 200:
                sys.exit(f"error: the server answers with status {event.status_code}")
            if not isinstance(event, h11.Data):
                continue
            *lines, rest = (rest + bytes(event.data)).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line.removeprefix(b"data: "))
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    (seen.first if first else seen.between).append(now - before)
                    before, first = now, False
                elif chunk.get("usage"):
                    made = chunk["usage"]["completion_tokens"]
                    seen.tokens += made
                    seen.prompts += chunk["usage"]["prompt_tokens"]
                    if "sol" in chunk:
                        seen.sols.append((made, chunk["sol"]))
        if isinstance(event, h11.ConnectionClosed):
            seen.whole.append(before - asked)
            return


def summary(seen: Seen) -> dict[str, Any]:
    """Figures of a row of sol_rt; times in milliseconds, loss in nats a token."""
    weights = np.array([made for made, _ in seen.sols], np.float64)
    budgets = np.array([sol["achieved_budget"] for _, sol in seen.sols])
    losses = np.array([sol["expected_loss"] or 0.0 for _, sol in seen.sols])
    tokens: Counter[int] = Counter()
    for made, sol in seen.sols:
        tokens[round(sol["achieved_budget"] / _BUDGET_STEP)] += made
    return {
        **times(seen),
        "achieved_budget": float(np.average(budgets, weights=weights)),
        "expected_loss": float(np.average(losses, weights=weights)),
        "budgets": dict(tokens),
        "reasons": dict(Counter(sol["reason"] for _, sol in seen.sols)),
    }


def measure_losses(arguments: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """Adds to each row the divergence from dense in nats a token, on windows of the text at the row's budgets."""
    model = SolModel.from_pretrained(arguments.bundle, provider="cpu", threads=arguments.threads)
    steps = sorted({step for row in rows for step in row["budgets"]})
    dials = [Dial(budget=min(step * _BUDGET_STEP, 1.0)) for step in steps]
    windows = spread_windows(model.bundle, arguments.file, 8, _CONTEXT + 129)
    found = np.mean([under_dials(model, window, _CONTEXT, dials)[:, 1].mean(axis=1) for window in windows], axis=0)
    for row in rows:
        tokens = row["budgets"]
        row["measured_loss"] = sum(count * found[steps.index(step)] for step, count in tokens.items()) / sum(
            tokens.values()
        )


def times(seen: Seen) -> dict[str, Any]:
    """Figures of a row of any server."""
    return {
        "answers": len(seen.first),
        "tokens_per_second": seen.tokens / seen.seconds,
        "client_us_per_token": seen.own_seconds / seen.tokens * 1e6,
        **percentiles("first_token_ms", seen.first),
        **percentiles("between_tokens_ms", seen.between),
        **percentiles("answer_ms", seen.whole),
    }


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    middle, high = np.percentile(seconds, [50, 95]) * 1e3
    return {f"{name}_p50": float(middle), f"{name}_p95": float(high)}


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings that are not facts of the machine."""
    names = ("seconds", "count", "sessions", "target_latency", "budget_min")
    return {name: getattr(arguments, name) for name in names}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"| {row['dial']} | {row['clients']} | {row['tokens_per_second']:.1f} | {row['first_token_ms_p50']:.0f} | "
        f"{row['first_token_ms_p95']:.0f} | {row['between_tokens_ms_p50']:.1f} | {row['between_tokens_ms_p95']:.1f} | "
        f"{row['answer_ms_p50']:.0f} | {row['answer_ms_p95']:.0f} | "
        f"{row['achieved_budget']:.2f} | {row['expected_loss']:.4f} | {row.get('measured_loss', math.nan):.4f} |"
    )


def page(arguments: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    head = (
        f"{machine()}; {arguments.bundle}, {arguments.threads} threads, {arguments.sessions} sessions, "
        f"{arguments.count} tokens an answer, {arguments.seconds:g} s a row; free: {arguments.budget_min:g} to 1, "
        f"target {arguments.target_latency:g} ms between tokens\n\n"
        "| dial | clients | tokens/s | first token, ms: p50 | p95 | between tokens, ms: p50 | p95 | "
        "answer, ms: p50 | p95 | budget | expected nats | measured |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    )
    return head + "\n".join(map(line, rows)) + "\n"


if __name__ == "__main__":
    main()
