"""Time of a token by two schedules at the same budget.

    python benchmarks speed.schedule_time smollm2-135m -b 0.54 --schedules hull,sol -d 256 -n 128 -r 12

Costs are the device's milliseconds where `sol-rt profile` has measured them. Two schedules that hold one budget take
the same time in the model's graphs; what differs is the time around them. A round is a generation by each schedule
after the same prompt, in turn. Figures are medians over the rounds, with quartiles; the ratio is that of a round.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from report import machine, quartiles, rotated
from sol_rt.generate.model import SolModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-b", "--budget", type=float, required=True)
    parser.add_argument("--schedules", default="hull,sol", help="the first is what the others are compared with")
    parser.add_argument("-d", "--depth", type=int, default=256, help="tokens in the cache at the start")
    parser.add_argument("-n", "--count", type=int, default=128, help="decode steps per generation")
    parser.add_argument("-r", "--rounds", type=int, default=12)
    parser.add_argument("-t", "--threads", type=int)
    arguments = parser.parse_args()
    names = arguments.schedules.split(",")
    print(f"{machine()}; {arguments.bundle}, budget {arguments.budget:g}, {arguments.count} tokens behind "
          f"{arguments.depth}, {arguments.rounds} rounds\n")  # fmt: skip
    print("| schedule | achieved | ms a token | over " + names[0] + " |")
    print("|---|--:|--:|--:|")
    model = SolModel.from_pretrained(arguments.bundle, threads=arguments.threads)
    ids = np.random.default_rng(0).integers(0, model.bundle.config.model.vocab_size, arguments.depth).tolist()
    generations(model, ids, names, arguments)  # a round to warm up
    rounds = [generations(model, ids, rotated(names, turn), arguments) for turn in range(arguments.rounds)]
    for name in names:
        times = [row[name][0] for row in rounds]
        over = [row[name][0] / row[names[0]][0] for row in rounds]
        print(f"| `{name}` | {rounds[-1][name][1]:.3f} | {quartiles(times, 3)} | {quartiles(over, 3)} |")


def generations(
    model: SolModel, ids: list[int], names: list[str], arguments: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """A generation by each schedule: milliseconds a token, and the achieved budget."""
    found = {}
    for name in names:
        stream = model.stream(
            ids,
            budget=arguments.budget,
            schedule=name,
            max_new_tokens=arguments.count + 1,
            eos_token_id=[],
            do_sample=False,
            reuse_cache=True,
        )
        next(stream)
        start, steps = time.perf_counter(), sum(1 for _ in stream)
        seconds = time.perf_counter() - start
        assert stream.result is not None  # the stream has ended
        found[name] = seconds / steps * 1e3, stream.result.achieved_budget
    return found


if __name__ == "__main__":
    main()
