"""Measures fresh processes: from the start to the first token of a prompt, beside the peers, and a one-token command.

    python benchmarks peers.cold smollm2-135m --peers llama.cpp,genai -r 5
    ... --prefill s100-q4    sol_rt a second time, with prompts by this variant; without, prompts run dense

Every engine is started anew in each round, in turn, another one first each time, and gets a prompt of 512 tokens three
times. Prints Markdown: seconds from the start of the process to the first token, milliseconds of the first prompt and
of the last one, and the rate of the first as a share of the last. Files lie in the cache of the system. The models of
the peers are those that peers.py made. sol_rt reads its tokenizer too, as llama.cpp reads its vocabulary; genai and
optimum are given tokens and read none.
Below the table: seconds that `sol-rt generate -n 1` takes from command to exit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from peers.peer_models import bundle_of, model_of
from peers.workers.client import WorkerProcess, engines_of
from report import quartiles, rotated
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.hardware import processor_name
from sol_rt.store.pull import resolve

PROMPT = 512

Times = dict[str, list[float]]
"""Times by engine, one a round."""


def measured(
    starts: Mapping[str, Callable[[], WorkerProcess]], words: list[int], rounds: int
) -> tuple[Times, Times, Times]:
    """Seconds from start to first token, and milliseconds of the first prompt and of the last, the engines in turn.

    Each round begins with another engine.
    """
    times: list[Times] = [{engine: [] for engine in starts} for _ in range(3)]
    first, cold, warm = times
    for turn in range(rounds + 1):
        for engine in rotated(list(starts), turn):
            began = time.perf_counter()
            with starts[engine]() as worker:
                took = float(worker.ask(do="prompt", tokens=words)["ms"])
                ready = time.perf_counter() - began
                again = [float(worker.ask(do="prompt", tokens=words)["ms"]) for _ in range(2)]
            if turn:  # the first round brings the files into the system's cache
                first[engine].append(ready)
                cold[engine].append(took)
                warm[engine].append(again[-1])
    return first, cold, warm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="alias, .gguf or checkpoint folder")
    parser.add_argument("--peers", default="llama.cpp,genai", help="names separated by commas; empty for none")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--prefill", metavar="VARIANT", help="start sol_rt a second time, with prompts by this variant")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs; a checkout is compiled when run
    checkpoint, name = resolve(arguments.model, lambda step, done, total: None)
    bundle = Bundle.open(bundle_of(arguments.model, name))
    threads = arguments.threads
    own = partial(WorkerProcess.start, "sol_rt", sys.executable, bundle.path, threads)
    starts = {"sol_rt": own}
    if variant := arguments.prefill:
        if variant not in bundle.config.variants:
            has = ", ".join(bundle.config.variants)
            parser.error(f"--prefill: got {variant!r}, expected a variant of this bundle: {has}")
        starts[f"sol_rt --prefill {variant}"] = partial(own, options=("--prefill", variant))
    for peer in filter(None, arguments.peers.split(",")):
        python = (arguments.environments / peer / "bin/python").absolute()
        model = model_of(peer, checkpoint, python, arguments.environments / "models" / name)
        starts |= {engine: partial(WorkerProcess.start, engine, python, model, threads) for engine in engines_of(peer)}
    words = np.random.default_rng(0).integers(0, bundle.config.model.vocab_size, PROMPT).tolist()
    first, cold, warm = measured(starts, words, arguments.rounds)
    print(f"{processor_name()}, {arguments.threads} threads, {name}, {arguments.rounds} rounds: median [quartiles]\n")
    print("| | start to first token, s | × sol_rt | first prompt, ms | warm, ms | first rate, of warm |")
    print("|---|--:|--:|--:|--:|--:|")
    for engine in starts:
        ratio = quartiles([a / b for a, b in zip(first[engine], first["sol_rt"], strict=True)])
        share = quartiles([b / a for a, b in zip(cold[engine], warm[engine], strict=True)])
        times = [statistics.median(each[engine]) for each in (first, cold, warm)]
        print(f"| {engine} | {times[0]:.2f} | {ratio} | {times[1]:.0f} | {times[2]:.0f} | {share} |")
    command = [sys.executable, "-m", "sol_rt", "generate", "-m", str(bundle.path), "-p", "Hello", "-n", "1"]
    spent = []
    for _ in range(arguments.rounds + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        spent.append(time.perf_counter() - began)
    print(f"\n`sol-rt generate -n 1`: {quartiles(spent[1:])} s from command to exit")


if __name__ == "__main__":
    main()
