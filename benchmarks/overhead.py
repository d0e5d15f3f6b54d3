"""What choosing costs: policy, controller, sampling and switching between variants, as a share of a dense step.

    python benchmarks/overhead.py BUNDLE -d 64 -n 64 -r 10

Generations take turns: dense, and each schedule at the budget. Of every token the time inside ONNX Runtime is told
from the rest, so that a row's overhead is its own run's and no machine's mood. Switching is measured apart: the dense
variant and the cheapest one alternate, against each staying, at one context. Shares are of the dense step of the same
round; figures are medians over the rounds, with quartiles.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
from peer_report import quartiles

from sol_rt import SolModel
from sol_rt.actions import Action
from sol_rt.cost import processor_name
from sol_rt.engine import Engine

PARTS = ("graph", "policy", "host")


class RunTimes:
    """Milliseconds spent inside ONNX Runtime since the last `take`, the model's graphs and the policy's apart."""

    def __init__(self) -> None:
        self.graph = self.policy = 0.0

    def take(self) -> tuple[float, float]:
        taken = self.graph, self.policy
        self.graph = self.policy = 0.0
        return taken


@contextmanager
def timed_runs() -> Iterator[RunTimes]:
    """Times every run of every session."""
    times, run = RunTimes(), ort.InferenceSession.run_with_iobinding
    of_policy: dict[int, bool] = {}

    def timed(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
        start = time.perf_counter()
        run(session, binding)
        elapsed = (time.perf_counter() - start) * 1e3
        if id(session) not in of_policy:
            of_policy[id(session)] = session.get_outputs()[0].name == "action_logits"
        if of_policy[id(session)]:
            times.policy += elapsed
        else:
            times.graph += elapsed

    ort.InferenceSession.run_with_iobinding = timed
    try:
        yield times
    finally:
        ort.InferenceSession.run_with_iobinding = run


def generation(model: SolModel, times: RunTimes, prompt: list[int], count: int, **dial: object) -> np.ndarray:
    """Median milliseconds a token of each of PARTS, over `count` decode steps."""
    rows = []
    stream = model.stream(prompt, max_new_tokens=count + 1, eos_token_id=[], **dial)
    next(stream)
    times.take()
    start = time.perf_counter()
    for _ in stream:
        elapsed = (time.perf_counter() - start) * 1e3
        graph, policy = times.take()
        rows.append((graph, policy, elapsed - graph - policy))
        start = time.perf_counter()
    return np.median(rows, axis=0)


def switching(engine: Engine, context: int, dense: Action, cheap: Action, count: int) -> float:
    """Milliseconds that a step costs more after a step of the other action than after one of its own."""

    def steps(actions: list[Action]) -> dict[Action, float]:
        times: dict[Action, list[float]] = {}
        for action in actions:
            engine.truncate(context)
            start = time.perf_counter()
            engine.forward([1], action)
            times.setdefault(action, []).append((time.perf_counter() - start) * 1e3)
        return {action: float(np.median(values)) for action, values in times.items()}

    stayed = steps([dense] * count) | steps([cheap] * count)
    changed = steps([dense, cheap] * count)
    return float(np.mean([changed[action] - stayed[action] for action in stayed]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-d", "--depth", type=int, default=64, help="tokens in the cache before the first step")
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps of a row and a round")
    parser.add_argument("-r", "--rounds", type=int, default=10)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-b", "--budget", type=float, default=0.6)
    args = parser.parse_args()
    model = SolModel.from_pretrained(args.bundle, threads=args.threads, provider="cpu")
    config = model.bundle.config
    prompt = np.random.default_rng(0).integers(0, config.model.vocab_size, args.depth).tolist()
    rows: dict[str, dict[str, object]] = {"dense": {}, "uniform": {"schedule": "uniform", "budget": args.budget}}
    if config.policy is not None:
        rows["sol"] = {"schedule": "sol", "budget": args.budget}
    cheapest = min(config.variants.values(), key=lambda variant: variant.weight_bytes)
    cheap = Action(100, cheapest.prune, cheapest.bits)
    found: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    switches = []
    with timed_runs() as times:
        for number in range(args.rounds + 1):  # the first is the warm-up
            parts = {name: generation(model, times, prompt, args.count, **dial) for name, dial in rows.items()}
            switch = switching(model.engine, args.depth, config.dense, cheap, args.count)
            if number:
                switches.append(switch)
                for name, part in parts.items():
                    found[name].append(part)
    dense = np.array(found["dense"])[:, 0]
    print(
        f"{processor_name()}, {args.threads} threads, onnxruntime {ort.__version__}, context {args.depth}, budget "
        f"{args.budget}, {args.rounds} interleaved rounds of {args.count} steps, {time.strftime('%Y-%m-%d')}\n"
    )
    print(f"dense step {quartiles(dense.tolist())} ms; switching {quartiles(1e3 * np.array(switches))} µs a step\n")
    print(
        "| | graph, ms | policy, µs | host, µs | policy + host + switching, % of a dense step |\n|---|---|---|---|---|"
    )
    for name, parts in found.items():
        graph, policy, host = np.array(parts).T
        extra = policy + host + (0 if name == "dense" else np.array(switches))
        cells = (graph, 1e3 * policy, 1e3 * host, 100 * extra / dense)
        print(f"| {name} | {' | '.join(quartiles(cell.tolist()) for cell in cells)} |")


if __name__ == "__main__":
    main()
