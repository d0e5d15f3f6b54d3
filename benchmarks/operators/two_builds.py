"""Compares two builds of the native core, libsol_rt, on one bundle: speed in turn, and whether logits are equal.

    python benchmarks operators.two_builds smollm2-135m before.so after.so -d 64,512,4000 -r 20
    python benchmarks operators.two_builds smollm2-135m before.so after.so --prompt 512 -r 10

Each build runs in a process of its own, which stays open. Rounds of steps, or of one prompt, alternate between the two,
in random order. A ratio is the first build's median step over the second's in one round: above 1 the second is faster.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from report import BENCHMARKS, quartiles

_PAUSE_SECONDS = 0.1  # the other build's threads spin for tens of milliseconds after their last step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of a bundle")
    parser.add_argument("libraries", nargs=2, type=Path, metavar="LIBRARY")
    parser.add_argument("-a", "--actions", default="k100-s100-q8,k100-s100-q4,k100-s050-q4")
    parser.add_argument("-d", "--depths", default="64,512,4000", help="tokens in the cache, separated by commas")
    parser.add_argument("--prompt", type=int, metavar="TOKENS", help="time a prompt of so many instead of steps")
    parser.add_argument("-n", "--count", type=int, default=24, help="steps per round")
    parser.add_argument("-r", "--rounds", type=int, default=20)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--copies", action="store_true", help="steps read copies of matrices, measured or not")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        _work(arguments)
        return
    command = [sys.executable, str(BENCHMARKS), "operators.two_builds", *sys.argv[1:]]
    workers = [
        subprocess.Popen([*command, "--worker", str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for library in arguments.libraries
    ]
    for depth in [0] if arguments.prompt else map(int, arguments.depths.split(",")):
        for worker in workers:
            _ask(worker, {"fill": depth})
        for action in arguments.actions.split(","):
            asked = {"action": action, "count": arguments.count, "prompt": arguments.prompt}
            first, second = (_ask(worker, asked) for worker in workers)  # the warm-up
            equal = "equal logits" if first["logits"] == second["logits"] else "OTHER LOGITS"
            steps: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.rounds):
                order = [0, 1]
                random.shuffle(order)
                for index in order:
                    time.sleep(_PAUSE_SECONDS)
                    steps[index].append(float(_ask(workers[index], asked)["ms"]))
            ratios = [one / other for one, other in zip(*steps, strict=True)]
            before, after = map(statistics.median, steps)
            at = arguments.prompt or depth
            print(f"{action} @ {at}: {before:.2f} -> {after:.2f} ms, ratio {quartiles(ratios)}, {equal}", flush=True)
    for worker in workers:
        worker.communicate()


def _ask(worker: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(request) + "\n")
    worker.stdin.flush()
    return dict(json.loads(worker.stdout.readline()))


def _use(library: Path) -> None:
    """Makes every engine that this process opens from here on run in `library`."""
    from sol_rt.native import library as binding

    binding.core_path = library.resolve  # type: ignore[attr-defined]


def _work(arguments: argparse.Namespace) -> None:
    """Answers requests on stdin: fills the cache, or times steps of an action."""
    _use(arguments.worker)
    from sol_rt.bundle.actions import Action
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.generate.native.engine import Engine
    from sol_rt.store.home import find_bundle

    bundle = Bundle.open(find_bundle(arguments.bundle))
    opened = Engine(bundle, provider="cpu", threads=arguments.threads)
    if arguments.copies:
        opened.set_tuning(replace(opened.tuning(), copies=True))
    tokens = np.random.default_rng(0).integers(100, bundle.config.model.vocab_size - 100, 1 << 16).tolist()
    depth = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "fill" in request:
            depth = int(request["fill"])
            opened.reset()
            if depth:
                opened.forward(tokens[:depth], bundle.config.dense)
            print(json.dumps({}), flush=True)
            continue
        action, times, digest = Action.parse(request["action"]), [], hashlib.sha256()
        opened.truncate(depth)
        steps = [(token,) for token in tokens[depth : depth + request["count"]]]
        for step in [tokens[: request["prompt"]]] if request["prompt"] else steps:
            began = time.perf_counter()
            output = opened.forward(step, action)
            times.append((time.perf_counter() - began) * 1e3)
            digest.update(output.logits.tobytes())
        print(json.dumps({"ms": statistics.median(times), "logits": digest.hexdigest()}), flush=True)


if __name__ == "__main__":
    main()
