"""Compares two bundles of one model: the loss of the second over the first, and the decode speed of both.

    python benchmarks quality.pair FIRST SECOND -f TEXT --chunks 40      paired difference of their losses
    python benchmarks quality.pair FIRST SECOND -d 512,2048,8000         decode speed, in turn

Prints one line per comparison. Losses are those of `sol-rt perplexity`; the standard error of their mean difference
treats windows as independent. For speed, both caches hold the same random tokens, rounds of steps alternate between
the bundles, and a ratio compares two rounds that follow each other.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np

from report import quartiles
from sol_rt.bundle.actions import Action
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.generate.model import SolModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs=2, metavar="BUNDLE", help="folder, or the name of an exported bundle")
    parser.add_argument("-a", "--action", help="default: dense")
    parser.add_argument("-f", "--file", type=Path, help="text to score")
    parser.add_argument("-c", "--ctx-size", type=int, default=512, help="tokens per window")
    parser.add_argument("--chunks", type=int, default=40, help="largest number of windows")
    parser.add_argument("-d", "--depths", help="tokens in the cache before timed steps, separated by commas")
    parser.add_argument("-n", "--count", type=int, default=32, help="steps per round")
    parser.add_argument("-r", "--rounds", type=int, default=20)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    models = [SolModel.from_pretrained(name, threads=args.threads, provider="cpu") for name in args.bundles]
    action = Action.parse(args.action) if args.action else models[0].bundle.config.dense
    if args.file:
        compare_losses(models, action, args.file.read_text(encoding="utf-8"), args.ctx_size, args.chunks)
    for depth in [int(depth) for depth in args.depths.split(",")] if args.depths else []:
        compare_speed(models, action, depth, args.count, args.rounds)


def compare_losses(models: list[SolModel], action: Action, text: str, size: int, chunks: int) -> None:
    """Prints both perplexities, and the mean difference in nats per token with its standard error."""
    cut = text_windows(text, models[0].tokenizer, models[0].bundle.config.model, size, chunks)
    scored = size - size // 2 - 1

    def loss(model: SolModel, window: list[int]) -> float:
        scores = model.score(window, context=size // 2, schedule=f"fixed:{action.tag}")
        return -float(np.mean(scores.logprobs[-scored:]))

    losses = np.array([[loss(model, window) for window in cut] for model in models])  # [2, windows]
    difference = losses[1] - losses[0]
    error = difference.std(ddof=1) / math.sqrt(len(cut))
    first, second = np.exp(losses.mean(1))
    print(
        f"{action.tag}, {len(cut)} windows of {size}, {scored * len(cut)} tokens: "
        f"perplexity {first:.4f} and {second:.4f}, difference {difference.mean():+.5f} ± {error:.5f} nats"
    )


def compare_speed(models: list[SolModel], action: Action, depth: int, count: int, rounds: int) -> None:
    """Prints the tokens per second of both bundles, and the ratio of the second to the first.

    Each figure is a median over the rounds, with quartiles.
    """
    engines = [model.engine for model in models]
    ids = np.random.default_rng(0).integers(0, engines[0].bundle.config.model.vocab_size, depth)
    for engine in engines:
        engine.reset()
        engine.forward(ids, action)
    rates = np.empty((2, rounds + 1))
    for i in range(rounds + 1):  # the first round is the warm-up
        for j, engine in enumerate(engines):
            engine.truncate(depth - 1)
            engine.forward(ids[-1:], action)  # with all that the rewind left undone
            token, began = 1, time.perf_counter()
            for _ in range(count):
                token = int(engine.forward([token], action).logits[0].argmax())
            rates[j, i] = count / (time.perf_counter() - began)
    rates = rates[:, 1:]
    print(
        f"{action.tag}, depth {depth}, {rounds} rounds of {count} steps: "
        f"{quartiles(rates[0])} and {quartiles(rates[1])} tokens/s, ratio {quartiles(rates[1] / rates[0])}"
    )


if __name__ == "__main__":
    main()
