"""Decode speed of every variant of a bundle, interleaved in one run, as a Markdown table.

    python benchmarks/speed.py BUNDLE -d 64 -n 64 -r 10
    ... --keep 100,25      attention keeps to cross with the variants

Median and quartiles over the repetitions, after a warm-up; the ratio is to the dense action of the same repetition.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import onnxruntime as ort
from against_genai import cpu_name, decode_ms, quartiles

from sol_rt.actions import Action
from sol_rt.bundle import Bundle
from sol_rt.engine import Engine
from sol_rt.home import find_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-d", "--depth", type=int, default=64, help="tokens in the cache before the first step")
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps a repetition")
    parser.add_argument("-r", "--repetitions", type=int, default=10)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", default="100", help="percent of old KV pages, separated by commas")
    args = parser.parse_args()
    bundle = Bundle.open(find_bundle(args.bundle))
    engine, dense = Engine(bundle, threads=args.threads, provider="cpu"), bundle.config.dense
    variants = sorted(bundle.config.variants.values(), key=lambda variant: -variant.weight_bytes)
    keeps = [int(keep) for keep in args.keep.split(",")]
    actions = [Action(keep, variant.prune, variant.bits) for variant in variants for keep in keeps]
    tokens = np.random.default_rng(0).integers(1000, bundle.config.model.vocab_size // 2, args.depth).tolist()
    rates: dict[str, list[float]] = {}
    for repetition in range(args.repetitions + 1):  # the first is the warm-up
        for action in actions:
            rate = args.count / decode_ms(engine, tokens, args.count, action, dense) * 1e3
            if repetition:
                rates.setdefault(action.tag, []).append(rate)
    print(
        f"{cpu_name()}, {args.threads} threads, onnxruntime {ort.__version__}, context {args.depth}, "
        f"{args.repetitions} interleaved repetitions of {args.count} steps, {time.strftime('%Y-%m-%d')}\n"
    )
    print("| action | tokens/s | × dense |\n|---|---|---|")
    for action in actions:
        ratios = [own / base for own, base in zip(rates[action.tag], rates[dense.tag], strict=True)]
        print(f"| `{action.tag}` | {quartiles(rates[action.tag])} | {quartiles(ratios)} |")


if __name__ == "__main__":
    main()
