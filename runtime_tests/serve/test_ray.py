"""The example on Ray Serve, with two replicas on two nodes of a local cluster."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import pytest

from helpers.places import ROOT

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "ray_serve.py"
LEAST = 0.5
NODES = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_log_monitor": False}
cluster = Cluster(initialize_head=True, head_node_args={
    **node, "include_dashboard": False, "no_monitor": True, "temp_dir": sys.argv[1]
})
cluster.add_node(**node)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
"""Two nodes with room for a replica each, until stdin ends."""
UNENDING = {"temperature": 0, "logit_bias": {"2": -100}}


class Clients:
    """Clients of the address that all replicas have."""

    def __init__(self, address: str, bundle: Path) -> None:
        self.http, self._bundle = httpx.Client(base_url=address, timeout=120), bundle

    def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> tuple[str, dict[str, Any]]:
        """The replica that answers, and the answer."""
        answer = self.http.post(path, json={"temperature": 0, "max_tokens": 8, **fields})
        assert answer.status_code == 200, answer.text
        return answer.headers["x-sol-replica"], answer.json()

    def servers(self) -> list[psutil.Process]:
        wanted = {"sol_rt", "serve", str(self._bundle)}
        return [each for each in psutil.process_iter(["cmdline"]) if wanted <= set(each.info["cmdline"] or ())]

    def figures(self, name: str) -> dict[str, int]:
        """A figure of each replica's metrics: those that a hundred requests reach."""
        found = {}
        for _ in range(100):
            answer = self.http.get("/metrics")
            match = re.search(rf"^sol_rt_{name} (\S+)", answer.text, re.MULTILINE)
            assert match, answer.text
            found[answer.headers["x-sol-replica"]] = int(float(match[1]))
            if len(found) == 2:
                break
        return found


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def messages(first: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "w1 w2 w3"}, {"role": "user", "content": first}]


@contextmanager
def nodes(environment: dict[str, str]) -> Iterator[str]:
    """A cluster's address. Ray gives a node half a minute to start, too little on a machine with much else to do."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, ExitStack() as ends:
        command = [sys.executable, "-c", NODES, folder]
        for _ in range(3):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            assert process.stdin is not None
            assert process.stdout is not None
            ends.callback(process.wait, 60)
            ends.callback(process.stdin.close)
            if address := process.stdout.readline().strip():
                yield address
                return
        pytest.fail("Ray starts no nodes")


@pytest.fixture(scope="module")
def clients(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    pytest.importorskip("ray.serve", reason="ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    clients = Clients(f"http://127.0.0.1:{port}", bundle.resolve())
    with nodes(environment) as address, log.open("w") as said:
        example = subprocess.Popen(
            [sys.executable, str(EXAMPLE), str(bundle), "--replicas=2", f"--least={LEAST}", f"--port={port}"],
            env=environment | {"RAY_ADDRESS": address},
            stdout=said,
            stderr=said,
        )

        def ready() -> bool:
            assert example.poll() is None, log.read_text()
            try:
                return clients.http.get("/health").status_code == 200 and len(clients.figures("running")) == 2
            except httpx.TransportError:
                return False

        try:
            until(ready, 180)
            yield clients
        finally:
            example.terminate()
            example.wait(60)
    until(lambda: not clients.servers())


def test_there_is_a_replica_on_each_node(clients: Clients) -> None:
    found = [next(each.pid for each in server.parents() if each.name() == "raylet") for server in clients.servers()]
    assert len(found) == len(set(found)) == 2


def test_a_conversation_stays_where_its_cache_is(clients: Clients) -> None:
    places = set()
    for number in range(20):
        begun = messages(f"w{number} w5 w6")
        place, answer = clients.ask(messages=begun)
        said = {"role": "assistant", "content": answer["choices"][0]["message"]["content"].strip()}
        again, answer_again = clients.ask(messages=[*begun, said, {"role": "user", "content": "w7"}])
        assert again == place
        cached = answer_again["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= answer["usage"]["prompt_tokens"]
        places.add(place)
    assert len(places) == 2


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"messages": messages("w3")[1:]}),
        ("/v1/responses", {"input": messages("w3"), "max_tokens": None, "max_output_tokens": 8}),
        ("/v1/completions", {"prompt": "w3 w4"}),
        ("/api/chat", {"messages": messages("w3"), "stream": False}),
    ],
)
def test_every_protocol_is_known(clients: Clients, path: str, fields: dict[str, Any]) -> None:
    """One request a dozen times."""
    assert len({clients.ask(path, **fields)[0] for _ in range(12)}) == 1


def test_what_is_no_question_passes(clients: Clients) -> None:
    assert clients.http.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert "text/html" in clients.http.get("/").headers["content-type"]
    wrong = clients.http.post("/v1/chat/completions", content=b"{")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "invalid_request_error")
    assert clients.http.get("/v1/models", headers={"Origin": "http://elsewhere"}).status_code == 403
    assert clients.http.get("/v1/models", headers={"Host": "elsewhere"}).status_code == 421


def test_budgets_fall_with_the_load(clients: Clients) -> None:
    """Each of the eight sessions has a request before others come that last as long."""

    def budget(number: int, **fields: Any) -> float:
        content = messages(f"w{number} w6")
        _, answer = clients.ask(messages=content, max_tokens=800, **UNENDING, **{"budget": 1, **fields})
        assert answer["sol"]["asked"] == {"budget": fields.get("budget", 1)}
        found: float = answer["sol"]["requested_budget"]
        return found

    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(budget, number) for number in range(22)]
        first = pool.submit(budget, 22, service_tier="priority")
        little = pool.submit(budget, 23, budget=0.3)
        found = [each.result() for each in asked]
    assert max(found) == 1.0
    assert min(found) == pytest.approx(LEAST)
    assert len(set(found)) > 2
    assert (first.result(), little.result()) == (1.0, pytest.approx(0.3))
    assert budget(24) == 1.0


def test_an_answer_streams(clients: Clients) -> None:
    fields = {"messages": messages("w9"), "max_tokens": 40, **UNENDING}
    place, whole = clients.ask(**fields)
    with clients.http.stream("POST", "/v1/chat/completions", json={**fields, "stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["x-sol-replica"], lines.pop()) == (place, "[DONE]")
    deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
    assert len(deltas) >= 40
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]


def test_an_answer_ends_without_its_client(clients: Clients) -> None:
    before = sum(clients.figures("generated_tokens_total").values())
    fields = {"messages": messages("w10"), "max_tokens": 8000, "stream": True, **UNENDING}
    with clients.http.stream("POST", "/v1/chat/completions", json=fields) as answer:
        next(answer.iter_lines())
    until(lambda: not any(clients.figures("running").values()))
    assert sum(clients.figures("generated_tokens_total").values()) - before < 8000


def test_others_answer_for_a_server_that_dies(clients: Clients) -> None:
    """While all of them have answers to give."""
    conversations = [messages(f"w{number} w11") for number in range(16)]
    homes = [clients.ask(messages=each)[0] for each in conversations]
    assert len(set(homes)) == 2
    dead = clients.servers()[0]
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(clients.ask, messages=each, max_tokens=1500, **UNENDING) for each in conversations]
        time.sleep(0.3)
        dead.kill()
        places = [each.result()[0] for each in asked]
    moved = {home for home, place in zip(homes, places, strict=True) if home != place}
    assert len(moved) == 1
    until(lambda: moved.isdisjoint(found := clients.figures("running")) and len(found) == 2)
    assert dead.pid not in [each.pid for each in clients.servers()]


def test_a_wrong_model_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="ray is not installed")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "no-such-model"],
        env=os.environ | {"SOL_RT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("error: model 'no-such-model': ")
