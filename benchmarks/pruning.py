"""Measures what sparse channels lose at equal weights read, by how many of them are attention's.

    python benchmarks/pruning.py BUNDLE -f TEXT
    ... --shares 75,64,56.5     percent of the layers' base-plane weights read; by default 67, 52, 42% of an MLP
    ... --attention 1,0.5       factors on the inactive shares of attention's matrices, beside the exporter's rule
    ... --bits 4 --windows 40   weight bits, and windows of 512 tokens from the beginning of the text

Prints a Markdown table with a row per share. All ways run on one bundle; the bundle's own channel counts do not matter.
Figures are divergences from the dense action in nats per token, in the second half of each window after a dense first
half; the earlier tokens of the second half ran with sparse channels too. ± is the standard error of the difference from
the rule's column.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.export.actions.active_channels import MlpSizes
from sol_rt.export.actions.losses import Candidate, token_divergences
from sol_rt.export.graphs.graph import LayerShapes, active_counts, mlp_counts
from sol_rt.generate.model import SolModel


def ways(
    share: float, shapes: LayerShapes, layers: int, action: Action, factors: Sequence[float]
) -> dict[str, Candidate]:
    """The ways to read `share` of the layers' weights, with equal counts in all layers, by name; the rule's first."""
    sizes = {name: math.prod(shape) for name, shape in vars(shapes).items()}
    alone = (share * sum(sizes.values()) - sizes["qkv"] - sizes["o"]) / (sizes["up"] + sizes["down"])
    counts = {
        "rule": active_counts(share, shapes),
        **{f"attention {factor:g}": active_counts(share, shapes, factor) for factor in factors},
        "MLP alone": (*mlp_counts(alone, shapes.up, shapes.down), shapes.qkv[0], shapes.o[0]),
    }
    return {name: Candidate(action, *((count,) * layers for count in each)) for name, each in counts.items()}


def paired_difference(losses: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Mean of losses - reference, [tokens] each, and its standard error, in nats."""
    difference = losses - reference
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(difference.size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-f", "--file", type=Path, required=True, help="text to score")
    parser.add_argument("--shares", default="75,64,56.5", help="percent of the layers' weights read")
    parser.add_argument("--attention", default="1", help="factors on the inactive shares of attention's matrices")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()

    model = SolModel.from_pretrained(args.bundle, provider="cpu", threads=args.threads, measure_costs=False)
    config = model.bundle.config
    sizes = MlpSizes.of(config)
    channels = {name: config.tensors[f"layers.0.{name}.base"].shape[0] for name in ("qkv", "o")}
    shapes = LayerShapes(
        (sizes.channels_in, sizes.weights_in),
        (sizes.channels_mid, sizes.weights_mid),
        (channels["qkv"], config.tensors["layers.0.qkv.base"].shape[1]),
        (channels["o"], config.tensors["layers.0.o.base"].shape[1]),
    )
    cut = text_windows(args.file.read_text(encoding="utf-8"), model.tokenizer, config.model, 512, args.windows)
    shares = [float(share) / 100 for share in args.shares.split(",")]
    factors = [float(factor) for factor in args.attention.split(",")]
    action = Action(1.0, 1.0, args.bits)
    tried = [ways(share, shapes, config.model.num_layers, action, factors) for share in shares]
    candidates = [candidate for each in tried for candidate in each.values()]
    rows = iter(token_divergences(model.engine, cut, config.dense, candidates))

    print(f"{config.model.name}, {args.file.name}, {len(cut)} windows of 512, {args.bits} bits\n")
    print(f"| layers' weights read | {' | '.join(tried[0])} |\n|--:|{'--:|' * len(tried[0])}")
    for share, each in zip(shares, tried, strict=True):
        rule, *others = (next(rows) for _ in each)
        cells = [f"{rule.mean():.4f}"]
        for row in others:
            cells.append(f"{row.mean():.4f} ± {paired_difference(row, rule)[1]:.4f}")
        print(f"| {share:.1%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
