"""Measures decode steps while another program takes a processor: two threads or more beside one thread.

    python benchmarks/noise.py smollm2-135m -a k100-s100-q4 --rounds 8

Each number of threads runs in a process of its own, and they take turns. In every round the other program, an endless
loop, is either away, free to move, or bound to the last processor. Prints Markdown: mean milliseconds of a step, and
the ratio of the many threads' mean to that of one thread under the same conditions, median [quartiles] over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from other_build import use
from peer_report import quartiles

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.engine.hardware import processor_name
from sol_rt.store.home import find_bundle

_ENDLESS = "while True: pass"
_RECOVERY_SECONDS = 4.0  # after the other program has left, a team takes its members back within 3.2 s
CONDITIONS = ("alone", "beside a free loop", "beside a bound loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of a bundle")
    parser.add_argument("-a", "--action", default="k100-s100-q4")
    parser.add_argument("-d", "--depth", type=int, default=512, help="tokens in the cache")
    parser.add_argument("-s", "--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("-r", "--rounds", type=int, default=6)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--library", type=Path, help="another build of the operators")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        _work(arguments)
        return
    counts = (1, arguments.threads)
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    workers = {
        count: subprocess.Popen([*command, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for count in counts
    }
    times: dict[tuple[str, int], list[float]] = {(how, count): [] for how in CONDITIONS for count in counts}
    for turn in range(arguments.rounds + 1):
        for how in CONDITIONS:
            if how == CONDITIONS[0]:
                time.sleep(_RECOVERY_SECONDS)
            for count in random.sample(counts, 2):
                milliseconds = _measured(workers[count], how)
                if turn:  # the first round warms up
                    times[how, count].append(milliseconds)
    for worker in workers.values():
        worker.communicate()
    print(f"{processor_name()}; {arguments.bundle}, {arguments.action} after {arguments.depth} tokens\n")
    print(f"| | 1 thread, ms | {arguments.threads} threads, ms | ratio |\n|---|--:|--:|--:|")
    for how in CONDITIONS:
        one, many = times[how, 1], times[how, arguments.threads]
        ratios = [b / a for a, b in zip(one, many, strict=True)]
        print(f"| {how} | {statistics.median(one):.2f} | {statistics.median(many):.2f} | {quartiles(ratios)} |")


def _measured(worker: subprocess.Popen[str], how: str) -> float:
    loop = None
    if how != CONDITIONS[0]:
        loop = subprocess.Popen([sys.executable, "-c", _ENDLESS])
        if how == CONDITIONS[2]:
            os.sched_setaffinity(loop.pid, {max(os.sched_getaffinity(0))})
        time.sleep(0.2)
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
        return float(json.loads(worker.stdout.readline()))
    finally:
        if loop is not None:
            loop.kill()
            loop.wait()


def _work(arguments: argparse.Namespace) -> None:
    """Answers each line on stdin with the mean time of steps."""
    if arguments.library is not None:
        use(arguments.library)
    bundle = Bundle.open(find_bundle(arguments.bundle))
    engine = Engine(bundle, provider="cpu", threads=arguments.worker)
    action = Action.parse(arguments.action)
    tokens = np.random.default_rng(0).integers(100, bundle.config.model.vocab_size - 100, 1 << 16).tolist()
    engine.forward(tokens[: arguments.depth], bundle.config.dense)
    for _ in sys.stdin:
        steps, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < arguments.seconds or not steps:
            engine.truncate(arguments.depth)
            engine.forward((tokens[steps],), action)
            steps += 1
        print(json.dumps(spent * 1e3 / steps), flush=True)


if __name__ == "__main__":
    main()
