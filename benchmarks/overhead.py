"""Measures what choosing actions costs: policy, controller and switching of variants, relative to a dense step.

    python benchmarks/overhead.py BUNDLE -d 64 -n 64 -r 10

Prints a Markdown table with a row for dense and for each schedule at the budget. For every token the program separates
the time in the model's graph, the time in schedule (including its policy) and controller, and the rest of the decode
loop: text, softmax, sampling. Switching is measured on its own: steps that alternate between the dense and the
cheapest variant are compared with steps that stay on one variant, at one context. Generations take turns, and shares
are relative to the dense step of the same round. Figures are medians over the rounds, with quartiles.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from peer_report import quartiles

from sol_rt import SolModel
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.schedules.constant import ConstantSchedule
from sol_rt.budget.schedules.policy import SolSchedule
from sol_rt.budget.schedules.uniform import UniformSchedule
from sol_rt.bundle.actions import Action
from sol_rt.engine.engine import Engine
from sol_rt.engine.hardware import processor_name

import onnxruntime as ort


class Clock:
    """Milliseconds since the last `take`: in the model's graphs (`graph`), in the policy's graph (`policy`), and in
    schedule and controller, including the policy (`choosing`).
    """

    def __init__(self) -> None:
        self.graph = self.policy = self.choosing = 0.0

    def take(self) -> tuple[float, float, float]:
        taken = self.graph, self.policy, self.choosing
        self.graph = self.policy = self.choosing = 0.0
        return taken


@contextmanager
def clocked() -> Iterator[Clock]:
    """Times every run of every session, every choice and every charge."""
    clock, policies = Clock(), {}
    replaced: list[tuple[type, str, Any]] = []

    def time_calls(owner: type, name: str, part: Callable[[Any], str]) -> None:
        call = getattr(owner, name)

        def timed(self: Any, *arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(self, *arguments)
            elapsed = (time.perf_counter() - start) * 1e3
            key = part(self)
            setattr(clock, key, getattr(clock, key) + elapsed)
            return result

        replaced.append((owner, name, call))
        setattr(owner, name, timed)

    def graph_or_policy(session: ort.InferenceSession) -> str:
        if id(session) not in policies:
            policies[id(session)] = session.get_outputs()[0].name == "action_logits"
        return "policy" if policies[id(session)] else "graph"

    time_calls(ort.InferenceSession, "run_with_iobinding", graph_or_policy)
    time_calls(Controller, "record", lambda _: "choosing")
    for schedule in (ConstantSchedule, UniformSchedule, SolSchedule):
        time_calls(schedule, "choose", lambda _: "choosing")
    try:
        yield clock
    finally:
        for owner, name, call in replaced:
            setattr(owner, name, call)


def generation(model: SolModel, clock: Clock, prompt: list[int], count: int, **dial: Any) -> np.ndarray:
    """Median milliseconds per token over `count` decode steps: graph, policy, choosing (including policy), rest."""
    rows = []
    stream = model.stream(prompt, max_new_tokens=count + 1, eos_token_id=[], **dial)
    next(stream)
    clock.take()
    start = time.perf_counter()
    for _ in stream:
        elapsed = (time.perf_counter() - start) * 1e3
        graph, policy, choosing = clock.take()
        rows.append((graph, policy, choosing, elapsed - graph - choosing))
        start = time.perf_counter()
    return np.median(rows, axis=0)


def switching(engine: Engine, context: int, dense: Action, cheap: Action, count: int) -> float:
    """Milliseconds that a step takes longer after a step of the other action than after a step of the same action."""

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
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps per row and round")
    parser.add_argument("-r", "--rounds", type=int, default=10)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-b", "--budget", type=float, default=0.6)
    args = parser.parse_args()
    model = SolModel.from_pretrained(args.bundle, threads=args.threads, provider="cpu", measure_costs=False)
    config = model.bundle.config
    prompt = np.random.default_rng(0).integers(0, config.model.vocab_size, args.depth).tolist()
    rows: dict[str, dict[str, object]] = {"dense": {}, "uniform": {"schedule": "uniform", "budget": args.budget}}
    if config.policy is not None:
        rows["sol"] = {"schedule": "sol", "budget": args.budget}
    cheapest = min(config.variants.values(), key=lambda variant: variant.weight_bytes)
    cheap = Action(1.0, cheapest.channel_density, cheapest.bits)
    found: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    switches = []
    with clocked() as clock:
        for number in range(args.rounds + 1):  # the first round is the warm-up
            parts = {name: generation(model, clock, prompt, args.count, **dial) for name, dial in rows.items()}
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
    columns = ("graph, ms", "policy, µs", "policy + controller, µs", "rest of the loop, µs", "choosing, %", "all, %")
    print(f"| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name, rounds in found.items():
        graph, policy, choosing, rest = np.array(rounds).T
        extra = choosing + (0 if name == "dense" else np.array(switches))
        cells = (graph, 1e3 * policy, 1e3 * choosing, 1e3 * rest, 100 * extra / dense, 100 * (extra + rest) / dense)
        print(f"| {name} | {' | '.join(quartiles(cell.tolist()) for cell in cells)} |")
    print("\nchoosing: policy + controller + switching, in % of a dense step; all: with the rest of the loop")


if __name__ == "__main__":
    main()
