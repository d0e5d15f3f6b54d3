"""Tokens per second of several sessions that decode in rounds, which read the weights once for all of them.

    python benchmarks speed.batch -m smollm2-135m -d 512 -n 64 -r 6

Prints a row per number of sessions: tokens per second of all of them together in rounds, the same over one session, and
the same where the sessions step one by one. Each session has a prompt of its own. Numbers of sessions take turns, and a
ratio compares two runs of the same turn. Figures are medians over the turns, with quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np

from report import machine, quartiles, rotated
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.session import Session
from sol_rt.generate.stream import Stream, next_of_each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help="folder, or the name of an exported bundle")
    parser.add_argument("-c", "--sessions", default="2,4,8", help="numbers besides 1, separated by commas")
    parser.add_argument("-b", "--budget", type=float, default=1.0)
    parser.add_argument("-d", "--depth", type=int, default=512, help="tokens in each cache at the start")
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps of each session in a run")
    parser.add_argument("-r", "--rounds", type=int, default=6)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    counts = sorted({1, *map(int, args.sessions.split(","))})
    model = SolModel.from_pretrained(args.model, threads=args.threads, provider="cpu")
    sessions = [model.session() for _ in range(max(counts))]
    vocab = model.bundle.config.model.vocab_size
    prompts = [np.random.default_rng(seed).integers(0, vocab, args.depth).tolist() for seed in range(len(sessions))]
    runs = [(count, take) for count in counts for take in (next_of_each, one_by_one)]
    rates: dict[tuple[int, Callable[..., object]], list[float]] = {run: [] for run in runs}
    for number in range(args.rounds + 1):  # the first round is the warm-up
        for count, take in rotated(runs, number):
            streams = [started(model, *pair, args) for pair in zip(sessions[:count], prompts, strict=False)]
            begun = time.perf_counter()
            for _ in range(args.count):
                take(streams)
            if number:
                rates[count, take].append(count * args.count / (time.perf_counter() - begun))
            for stream in streams:
                stream.close()
    print(f"{machine()}, {model.provider.threads} threads; {args.model}, budget {args.budget:g}, "
          f"{args.count} tokens behind {args.depth}, {args.rounds} rounds\n")  # fmt: skip
    print("| sessions | tokens per second | over one session | one by one |\n|--:|--:|--:|--:|")
    for count in counts:
        own = rates[count, next_of_each]
        over = [rate / one for rate, one in zip(own, rates[1, one_by_one], strict=True)]
        print(f"| {count} | {quartiles(own)} | {quartiles(over)} | {quartiles(rates[count, one_by_one])} |")


def one_by_one(streams: Sequence[Stream]) -> None:
    """A step of each stream in turn."""
    for stream in streams:
        next(stream)


def started(model: SolModel, session: Session, prompt: list[int], args: argparse.Namespace) -> Stream:
    """A stream in a session, after its first token."""
    stream = model.stream(
        prompt, budget=args.budget, max_new_tokens=args.count + 2, eos_token_id=[], do_sample=False, reuse_cache=True
    )
    stream.move_to(session)
    next(stream)
    return stream


if __name__ == "__main__":
    main()
