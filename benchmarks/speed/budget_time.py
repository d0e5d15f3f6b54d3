"""Measures how much decode time a budget saves: the time per token at each budget, relative to budget 1.0.

    sol-rt profile -m BUNDLE
    python benchmarks speed.budget_time BUNDLE -d 64 -n 64 -r 10

Prints a Markdown table with a row per budget: achieved budget, milliseconds per token, and the ratio to budget 1.0.
Generations at all budgets take turns, another one first in each round, and a ratio compares two generations of the same
round. Times cover the whole decode loop, including sampling and text. Figures are medians over the rounds, with
quartiles.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from report import quartiles, rotated
from sol_rt import SolModel
from sol_rt.engine.hardware import processor_name

import onnxruntime as ort


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-d", "--depth", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps of a generation")
    parser.add_argument("-r", "--rounds", type=int, default=10)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-b", "--budgets", default="0.7,0.5,0.4", help="separated by commas")
    parser.add_argument("-s", "--schedule", default="hull")
    args = parser.parse_args()
    model = SolModel.from_pretrained(args.bundle, threads=args.threads, provider="cpu")
    prompt = np.random.default_rng(0).integers(0, model.bundle.config.model.vocab_size, args.depth).tolist()
    budgets = [1.0, *(float(part) for part in args.budgets.split(","))]
    times: dict[float, list[float]] = {budget: [] for budget in budgets}
    achieved: dict[float, float] = {}
    for number in range(args.rounds + 1):  # the first round is the warm-up
        for budget in rotated(budgets, number):
            run = model.generate(
                prompt, budget=budget, schedule=args.schedule, max_new_tokens=args.count + 1, eos_token_id=[]
            )
            achieved[budget] = run.achieved_budget
            if number:
                times[budget].append(1e3 / run.tokens_per_second)
    print(
        f"{processor_name()}, {model.provider.threads} threads, onnxruntime {ort.__version__}, "
        f"costs {model.cost.name}, "
        f"{args.schedule}, context {args.depth}, {args.rounds} interleaved rounds of {args.count} steps, "
        f"{time.strftime('%Y-%m-%d')}\n"
    )
    print("| budget | achieved by the cost model | ms a token | measured, over budget 1.0 |\n|---|---|---|---|")
    for budget in budgets:
        ratios = [own / dense for own, dense in zip(times[budget], times[1.0], strict=True)]
        print(f"| {budget} | {achieved[budget]:.3f} | {quartiles(times[budget])} | {quartiles(ratios, 3)} |")


if __name__ == "__main__":
    main()
