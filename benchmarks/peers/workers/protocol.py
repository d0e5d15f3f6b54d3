"""The protocol of an engine behind a pipe: one JSON request per line on stdin, one JSON answer per line on stdout.

Every engine runs under its own Python, because the environments of the engines exclude each other. Only this module
takes times, so that all engines are timed alike. The first line out is {"version": text, "settings": text}. The
requests:

    {"do": "prompt", "tokens": [...], "room": n}    -> {"ms": time of the tokens into an empty cache, last logits too}
    {"do": "decode", "count": n}                    -> {"ms": time of n greedy steps after that prompt}

`room` is the number of steps that may follow. A decode request first rewinds to the prompt and takes one untimed step,
so any number of decode requests can share one prompt. "action" is the tag of an action, for engines that have actions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol


class Worker(Protocol):
    """Interface of an engine. The batch size is 1 and decoding is greedy."""

    version: str
    settings: str
    action: str | None  # set before every request

    def reset(self, capacity: int) -> None:
        """Empties the cache and makes room for `capacity` tokens."""

    def prompt(self, tokens: Sequence[int]) -> None:
        """Appends tokens, in batches of the engine's preferred size, and computes the logits of the last token."""

    def rewind(self, length: int) -> None:
        """Drops all tokens except the first `length`."""

    def step(self) -> None:
        """Appends the likeliest token by the last logits and computes the next ones."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every worker takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def serve(worker: Worker, **more: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers requests until stdin ends; `more` holds the handlers of requests that only this engine answers."""
    print(json.dumps({"version": worker.version, "settings": worker.settings}), flush=True)
    tokens: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        worker.action = request.get("action")
        if request["do"] in more:
            answer = more[request["do"]](request)
        elif request["do"] == "prompt":
            tokens = request["tokens"]
            worker.reset(len(tokens) + request.get("room", 0) + 2)
            start = time.perf_counter()
            worker.prompt(tokens)
            answer = {"ms": (time.perf_counter() - start) * 1e3}
        elif request["do"] == "decode":
            worker.rewind(len(tokens) - 1)
            worker.prompt(tokens[-1:])
            worker.step()
            start = time.perf_counter()
            for _ in range(request["count"]):
                worker.step()
            answer = {"ms": (time.perf_counter() - start) * 1e3}
        else:
            sys.exit(f"request: got {request['do']!r}, expected one of {', '.join(['prompt', 'decode', *more])}")
        print(json.dumps(answer), flush=True)
