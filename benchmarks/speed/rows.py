"""Time of a call of 1 to 16 tokens, over that of one: what a shared read of the weights saves.

    python benchmarks speed.rows -m smollm2-135m -d 64,512,2048 -r 12 -o rows.json

Each call continues one text, whose cache is cut back to its depth after it, and gives the logits of every token. A
round has a call of each action and count, in turn. Figures are medians over the rounds, with quartiles; the factor is
that of a round.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from report import facts, machine, quartiles, rotated, write_page
from sol_rt.bundle.actions import Action
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.session import Session

_Calls = dict[tuple[Action, int], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help="folder, or the name of an exported bundle")
    parser.add_argument("-d", "--depths", default="64,512,2048", help="tokens in the cache before a call")
    parser.add_argument("-c", "--counts", default=",".join(map(str, range(1, 17))), help="tokens of a call, 1 too")
    parser.add_argument("-b", "--bits", default="8,4,3", help="of the weights; left out where the bundle lacks them")
    parser.add_argument("-r", "--rounds", type=int, default=12)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, help="JSON file of the figures")
    arguments = parser.parse_args()
    depths, counts, bits = (
        [int(value) for value in given.split(",")] for given in (arguments.depths, arguments.counts, arguments.bits)
    )
    if 1 not in counts:
        parser.error(f"--counts: got {arguments.counts}, expected 1 among them, which others are compared with")
    model = SolModel.from_pretrained(arguments.model, threads=arguments.threads)
    actions = _actions(model, bits)
    ids = np.random.default_rng(0).integers(0, model.bundle.config.model.vocab_size, max(depths) + max(counts)).tolist()
    print(f"{machine()}; {arguments.model}, {arguments.rounds} rounds\n")
    figures = []
    for depth in depths:
        calls = _rounds(model.engine, ids, depth, actions, counts, arguments.rounds)
        for action in actions:
            print(f"Behind {depth} tokens, `{action.tag}`:\n\n| tokens | ms a call | over one |\n|--:|--:|--:|")
            for count in counts:
                times = np.array(calls[action, count])
                over = times / np.array(calls[action, 1])
                print(f"| {count} | {quartiles(times, 2)} | {quartiles(over, 2)} |")
                figures.append(_figure(depth, action, count, times, over))
            print()
    if arguments.output is not None:
        head = facts("sol-rt-rows", arguments.model, None, model.provider.threads)
        document = {**head, "rounds": arguments.rounds, "calls": figures}
        write_page(arguments.output, json.dumps(document, indent=1) + "\n")


def _actions(model: SolModel, bits: list[int]) -> list[Action]:
    """The action of all pages and most channels for each of the bit-widths that the bundle has."""
    config = model.bundle.config
    widest = [Action(1.0, max(v.channel_density for v in config.variants.values() if v.bits == b), b)
              for b in bits if any(v.bits == b for v in config.variants.values())]  # fmt: skip
    return widest or [config.dense]


def _rounds(
    engine: Session, ids: list[int], depth: int, actions: list[Action], counts: list[int], rounds: int
) -> _Calls:
    """Milliseconds of every call, a number a round, after a round to warm up."""
    engine.reset()
    engine.forward(ids[:depth], actions[0])
    pairs = [(action, count) for action in actions for count in counts]
    calls: _Calls = {pair: [] for pair in pairs}
    for turn in range(-1, rounds):
        for action, count in rotated(pairs, turn % len(pairs) * 5):
            start = time.perf_counter()
            engine.forward(ids[depth : depth + count], action, num_logits=count)
            spent = (time.perf_counter() - start) * 1e3
            engine.truncate(depth)
            if turn >= 0:
                calls[action, count].append(spent)
    return calls


def _figure(depth: int, action: Action, count: int, times: np.ndarray, over: np.ndarray) -> dict[str, Any]:
    low, middle, high = (float(value) for value in np.percentile(times, [25, 50, 75]))
    return {
        "depth": depth,
        "action": action.tag,
        "tokens": count,
        "ms": [round(value, 4) for value in (low, middle, high)],
        "over_one": [round(float(value), 4) for value in np.percentile(over, [25, 50, 75])],
    }


if __name__ == "__main__":
    main()
