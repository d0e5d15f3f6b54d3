"""Several `sol-rt serve` behind one address, with Ray Serve: a conversation stays where its cache is.

    pip install 'ray[serve]>=2.60' httpx
    python examples/ray_serve.py smollm2-135m --replicas 2

Every node of the cluster (RAY_ADDRESS; by default this machine alone) has the bundle at the same path. Requests that
begin alike go to the same replica, by consistent hashing, or to the next where that is full or gone. Where more run
than there are sessions, budgets of new ones fall with the load, down to --least. Clients use http://127.0.0.1:8000 as
they would a single server, but for `/v1/budget/ID`, which needs the replica that answers.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import httpx
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sol_rt import SolError
from sol_rt.store.home import find_bundle

SESSIONS = 4  # answers that a replica runs at a time
OF_ONE_CONNECTION = {"connection", "content-length", "date", "expect", "keep-alive", "server", "transfer-encoding"}


def passed(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers without those that belong to one connection."""
    return {name: value for name, value in headers.items() if name not in OF_ONE_CONNECTION}


def beginning_of(asked: Mapping[str, Any]) -> str:
    """Digest of what all requests of a conversation have: the messages up to its first question."""
    turns = asked.get("messages") or asked.get("input") or asked.get("prompt")
    roles = [isinstance(turn, dict) and turn.get("role") for turn in turns] if isinstance(turns, list) else []
    shared = json.dumps(turns[: roles.index("user") + 1]) if "user" in roles else json.dumps(turns)[:200]
    return hashlib.sha256(shared.encode()).hexdigest()


@serve.deployment(
    max_ongoing_requests=2 * SESSIONS,  # one waits at the server for each that runs
    request_router_config=RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
        request_router_kwargs={"num_fallback_replicas": 1000},  # one that is full leaves requests to any other
    ),
)
class Replica:
    """A `sol-rt serve` on this node. It ends with its server; Ray then starts another."""

    def __init__(self, model: str, least: float) -> None:
        command = [sys.executable, "-m", "sol_rt", "serve", model, "--port=0"]
        command += [f"--sessions={SESSIONS}", f"--budget-min={least}"]
        self._server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._said = iter(self._server.stderr or ())
        found = next(filter(None, (re.search(r"http://[^/\s]+", line) for line in self._said)), None)
        if found is None:
            raise RuntimeError(f"sol-rt serve {model} ended with {self._server.wait()}")
        self._http = httpx.AsyncClient(base_url=found[0], timeout=None)
        self._name = {"x-sol-replica": serve.get_replica_context().replica_id.unique_id}
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for line in self._said:
            print(line, end="", file=sys.stderr)
        os._exit(1)

    async def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> AsyncIterator[Any]:
        """The answer's status and headers, then its content as it comes."""
        try:
            async with self._http.stream(method, path, headers=headers, content=body) as answer:
                yield answer.status_code, passed(answer.headers) | self._name
                async for part in answer.aiter_raw():
                    yield part
        except httpx.TransportError:
            self._server.kill()
            os._exit(1)


@serve.deployment(max_ongoing_requests=256, max_queued_requests=256, ray_actor_options={"num_cpus": 0})
class Door:
    """Passes requests on, each with the budget that the load allows."""

    def __init__(self, replicas: Any, sessions: int) -> None:
        self._replicas, self._sessions, self._running = replicas, sessions, set()

    async def __call__(self, request: Request) -> Response:
        headers, body, asked, beginning = passed(request.headers), await request.body(), None, ""
        with suppress(ValueError, RecursionError):  # the server says what is wrong
            asked = json.loads(body)
        if isinstance(asked, dict):
            self._running.add(task := asyncio.current_task())
            task.add_done_callback(self._running.discard)
            beginning = beginning_of(asked)
            if (share := self._sessions / len(self._running)) < 1:
                headers["x-sol-budget-max"] = f"{share:.3f}"
        call = request.method, request.url.path, headers, body
        ask = self._replicas.options(stream=True, session_id=beginning).answer.remote
        parts = ask(*call)
        try:
            status, told = await anext(parts)
        except RayActorError:  # the replica ended first: another one answers
            parts = ask(*call)
            status, told = await anext(parts)
        return StreamingResponse(parts, status, told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--least", type=float, default=0.5, help="budget that load may lower to")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    bundle, count = str(find_bundle(arguments.model).resolve()), arguments.replicas
    serve.start(proxy_location="HeadOnly", http_options={"port": arguments.port})
    replicas = Replica.options(num_replicas=count).bind(bundle, arguments.least)
    serve.run(Door.bind(replicas, count * SESSIONS), blocking=True)


if __name__ == "__main__":
    try:
        main()
    except SolError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
