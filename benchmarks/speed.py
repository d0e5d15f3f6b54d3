"""Measures the decode speed of every variant of a bundle, interleaved in one run.

    python benchmarks/speed.py BUNDLE -d 64 -n 64 -r 10
    ... --kv-density 1,0.25  KV densities to combine with the variants

Prints a Markdown table with a row per action: median and quartiles over the repetitions, and the ratio to the dense
action of the same repetition. The measurement is that of `sol-rt bench --interleave`.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from peer_report import quartiles

from sol_rt.bundle.actions import Action
from sol_rt.evaluation.speed.bench import Bench, plan
from sol_rt.generate.model import SolModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-d", "--depth", type=int, default=64, help="tokens in the cache before the first step")
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps per repetition")
    parser.add_argument("-r", "--repetitions", type=int, default=10)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--kv-density", default="1", help="shares of the old tokens read, separated by commas")
    args = parser.parse_args()
    kv_densities = [float(share) for share in args.kv_density.split(",")]
    if 1.0 not in kv_densities:
        parser.error("--kv-density: 1 belongs to the dense action, which the others are compared with")
    model = SolModel.from_pretrained(args.bundle, threads=args.threads, provider="cpu", measure_costs=False)
    config, bench = model.bundle.config, Bench(model)
    variants = sorted(config.variants.values(), key=lambda variant: -variant.weight_bytes)
    actions = [
        Action(kv_density, variant.channel_density, variant.bits) for variant in variants for kv_density in kv_densities
    ]
    tags = [action.tag for action in actions]
    schedules = [f"fixed:{tag}" for tag in tags]
    tests = plan(model, n_prompt=(), n_gen=(args.count,), n_depth=(args.depth,), schedules=schedules).tests
    rows = bench.run_in_turn(tests, args.repetitions)
    rates = {tag: np.array(row.samples_ts) for tag, row in zip(tags, rows, strict=True)}
    setup = bench.setup
    print(
        f"{setup.cpu_info}, {setup.n_threads} threads, onnxruntime {setup.onnxruntime}, context {args.depth}, "
        f"{args.repetitions} interleaved repetitions of {args.count} steps, {time.strftime('%Y-%m-%d')}\n"
    )
    print("| action | tokens/s | × dense |\n|---|---|---|")
    for tag in tags:
        print(f"| `{tag}` | {quartiles(rates[tag])} | {quartiles(rates[tag] / rates[config.dense.tag])} |")


if __name__ == "__main__":
    main()
