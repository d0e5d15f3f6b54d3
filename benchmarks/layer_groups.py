"""Measures what is gained by another channel density in each third of the layers, at equal bytes.

    python benchmarks/layer_groups.py BUNDLE --pairs s100-q4:s075-q4,s075-q3:s062-q3 -f TEXT --windows 8

A pair is two variants of one graph. Each third of the layers, first, middle and last, runs with the active channels of
one or the other: eight choices, all of them measured. Figures are divergences from the dense action in nats per token
after a dense prompt, on the exporter's sample texts, and on TEXT if given; every window's second half is scored.

The two whole variants in turn are the rival: at a choice's bytes, they lose what the line between them says. `less by`
is what the choice loses less than that, ± the standard error over windows. Below the table stands what a choice of one
of the eight for every token would avoid in hindsight, halfway between the two variants, beside a choice of the two.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
from low_bits import spread_windows

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import Variant
from sol_rt.engine.engine import Engine
from sol_rt.evaluation.quality.oracle import hindsight
from sol_rt.export.actions.calibration_text import sample_windows
from sol_rt.export.actions.losses import Candidate, token_divergences
from sol_rt.store.home import find_bundle

_GROUPS = 3
_COUNTS = ("active_up", "active_down", "active_qkv", "active_o")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--pairs", default="s075-q3:s062-q3", help="HIGH:LOW, separated by commas")
    parser.add_argument("-f", "--file", type=Path, help="a text to score beside the sample texts")
    parser.add_argument("--windows", type=int, default=8, help="of the file, spread evenly over it")
    parser.add_argument("-t", "--threads", type=int)
    given = parser.parse_args()

    bundle = Bundle.open(find_bundle(given.model))
    config = bundle.config
    windows = list(sample_windows(bundle.tokenizer(), config.model.max_context))
    if given.file:
        windows += map(tuple, spread_windows(bundle, given.file, given.windows))
    engine = Engine(bundle, provider="cpu", threads=given.threads)
    print(f"{config.model.name}, {len(windows)} windows\n")
    print("| variants | first, middle, last third | MB a step | divergence | line | less by |")
    print("|---|---|--:|--:|--:|--:|")
    notes = []
    for pair in given.pairs.split(","):
        high, low = (config.variants[key] for key in pair.split(":"))
        if high.file != low.file:
            parser.error(f"--pairs {pair}: variants of two graphs, expected two of one")
        notes.append(_measured(engine, windows, high, low))
    print("\n" + "\n".join(notes))


def _measured(engine: Engine, windows: list[tuple[int, ...]], high: Variant, low: Variant) -> str:
    """Prints a row for each choice. Returns what choices by token would avoid, in a line."""
    layers = len(high.active_up)
    third = [layer * _GROUPS // layers for layer in range(layers)]
    saved = _saved(engine.bundle, high, low)
    spared = high.weight_bytes - low.weight_bytes
    choices = list(itertools.product((0, 1), repeat=_GROUPS))  # 1 where a third runs with the low counts
    candidates, costs = [], []
    for choice in choices:
        counts = {
            name: tuple(getattr(low if choice[third[at]] else high, name)[at] for at in range(layers))
            for name in _COUNTS
        }
        candidates.append(Candidate(Action(1.0, high.channel_density, high.bits), **counts))
        share = sum(part for at, part in enumerate(saved) if choice[third[at]]) / sum(saved)
        costs.append((high.weight_bytes - share * spared) / 1e6)
    found = []
    for window in windows:
        found.append(token_divergences(engine, [window], engine.bundle.config.dense, candidates))
    by_window = np.stack([each.mean(1) for each in found], 1)  # [choices, windows]
    line = [_between(cost, (costs[0], by_window[0]), (costs[-1], by_window[-1])) for cost in costs]
    for at, choice in enumerate(choices):
        name = ", ".join((low if part else high).key for part in choice)
        less = line[at] - by_window[at]
        error = less.std(ddof=1) / math.sqrt(len(windows))
        cells = f"{costs[at]:.1f} | {by_window[at].mean():.4f} | {line[at].mean():.4f}"
        print(f"| `{high.key}`, `{low.key}` | {name} | {cells} | {less.mean():+.4f} ± {error:.4f} |", flush=True)
    losses, half = np.concatenate(found, 1).T, (costs[0] + costs[-1]) / 2
    whole, both = [0, len(choices) - 1], (losses[:, 0].mean() + losses[:, -1].mean()) / 2
    told = []
    for name, part in (("two", whole), ("eight", list(range(len(choices))))):
        table = np.tile(np.array(costs)[part], (len(losses), 1))
        taken = hindsight(losses[:, part], table, half)
        told.append(f"one of the {name} {1 - losses[:, part][np.arange(len(losses)), taken].mean() / both:.0%}")
    return (
        f"- `{high.key}` and `{low.key}`, {len(losses)} tokens, at {half:.1f} MB: in turn {both:.4f} nats; "
        f"in hindsight avoids {', '.join(told)}"
    )


def _saved(bundle: Bundle, high: Variant, low: Variant) -> list[float]:
    """Savings of the low counts in each layer, in bits."""
    saved = []
    for layer in range(len(high.active_up)):
        bits = high.layer_bits[layer] if high.layer_bits else None
        total = 0.0
        for name in _COUNTS:
            matrix = name.removeprefix("active_")
            fewer = getattr(high, name)[layer] - getattr(low, name)[layer]
            total += fewer * _columns(bundle, f"layers.{layer}.{matrix}") * (getattr(bits, matrix) if bits else 1)
        saved.append(total)
    return saved


def _columns(bundle: Bundle, matrix: str) -> int:
    """Outputs of a layer's matrix."""
    base = bundle.config.tensors.get(f"{matrix}.base")
    return base.shape[1] if base is not None else 4 * bundle.config.tensors[f"{matrix}.low"].shape[1]


def _between(at: float, one: tuple[float, np.ndarray], other: tuple[float, np.ndarray]) -> np.ndarray:
    """The losses by window on the line between two points, of cost and losses each."""
    part = (at - one[0]) / (other[0] - one[0])
    return one[1] + part * (other[1] - one[1])


if __name__ == "__main__":
    main()
