"""sol_rt against onnxruntime-genai int4 (accuracy level 4) on the same weights, interleaved in one run.

    python benchmarks/against_genai.py BUNDLE GENAI_FOLDER --peer-python PEER/bin/python

Prints, as Markdown, decode speed at a context of 64 and prefill of 512 tokens of both, and the ratios with their spread
over the repetitions (median, and the quartiles in brackets). `make peer` makes the environment and the peer's model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from sol_rt.actions import Action
from sol_rt.bundle import Bundle
from sol_rt.engine import Engine
from sol_rt.home import find_bundle


class Peer:
    """The genai worker process; `ask` sends one request and waits for its answer."""

    def __init__(self, python: Path, folder: Path, threads: int) -> None:
        worker = Path(__file__).with_name("genai_worker.py")
        command = [str(python), str(worker), str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self.read()["version"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the peer's process ended; its message is above")
        return dict(json.loads(line))

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()


def decode_ms(engine: Engine, tokens: list[int], count: int, action: Action, dense: Action) -> float:
    """Milliseconds of `count` greedy steps after a dense prefill of `tokens`."""
    engine.reset()
    token = int(engine.forward(tokens, dense).logits[0].argmax())
    start = time.perf_counter()
    for _ in range(count):
        token = int(engine.forward([token], action).logits[0].argmax())
    return (time.perf_counter() - start) * 1e3


def prefill_ms(engine: Engine, tokens: list[int], action: Action) -> float:
    engine.reset()
    start = time.perf_counter()
    engine.forward(tokens, action)
    return (time.perf_counter() - start) * 1e3


def quartiles(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("genai", type=Path)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps a repetition")
    parser.add_argument("-r", "--repetitions", type=int, default=10)
    args = parser.parse_args()
    bundle = Bundle.open(find_bundle(args.bundle))
    peer = Peer(args.peer_python, args.genai, args.threads)
    engine = Engine(bundle, threads=args.threads, provider="cpu")
    rng = np.random.default_rng(0)
    words = [int(t) for t in rng.integers(1000, 20000, 512)]
    dense = bundle.config.dense
    actions = {tag: Action.parse(tag) for tag in ("k100-s100-q4", "k100-s050-q4", "k100-s100-q8")}
    rates: dict[str, list[float]] = {}
    for round_number in range(args.repetitions + 1):  # the first is the warm-up
        row = {
            "genai decode": args.count / peer.ask(do="decode", tokens=words[:64], count=args.count)["ms"] * 1e3,
            **{
                tag: args.count / decode_ms(engine, words[:64], args.count, action, dense) * 1e3
                for tag, action in actions.items()
            },
            "genai prefill": 512 / peer.ask(do="prefill", tokens=words)["ms"] * 1e3,
            "prefill q4": 512 / prefill_ms(engine, words, actions["k100-s100-q4"]) * 1e3,
            "prefill q8": 512 / prefill_ms(engine, words, dense) * 1e3,
        }
        if round_number:
            for name, value in row.items():
                rates.setdefault(name, []).append(value)
    ratio = lambda a, b: quartiles([x / y for x, y in zip(rates[a], rates[b], strict=True)])  # noqa: E731
    print(
        f"{cpu_name()}, {args.threads} threads, onnxruntime {ort.__version__}, onnxruntime-genai {peer.version}, "
        f"{args.repetitions} interleaved repetitions of {args.count} steps, {time.strftime('%Y-%m-%d')}\n"
    )
    print("| | tokens/s, median [quartiles] |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {quartiles(values)} |")
    print("\n| ratio | median [quartiles] |\n|---|---|")
    print(f"| decode @64, k100-s100-q4 / genai int4 | {ratio('k100-s100-q4', 'genai decode')} |")
    print(f"| prefill 512, q4 / genai int4 | {ratio('prefill q4', 'genai prefill')} |")
    print(f"| prefill 512, q8 (the dense action) / genai int4 | {ratio('prefill q8', 'genai prefill')} |")
    print(f"| k100-s050-q4 / k100-s100-q8 | {ratio('k100-s050-q4', 'k100-s100-q8')} |")


if __name__ == "__main__":
    main()
