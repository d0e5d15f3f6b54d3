"""Measures the loss of sparse channels at equal weights read, in the MLP alone and in MLP and attention projections.

    python benchmarks/pruning.py BUNDLE -f TEXT
    ... --shares 75,64,56.5     percent of the layers' base-plane weights read; by default 67, 52, 42% of an MLP
    ... --bits 4 --windows 40   weight bits, and windows of 512 tokens from the beginning of the text

Prints a Markdown table with a row per share. Both ways run on one bundle; the bundle's own channel counts do not
matter. Losses are nats per token over the dense action, in the second half of each window after a dense first half;
the earlier tokens of the second half ran with sparse channels too. ± is the standard error of the paired differences.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.evaluation.quality.perplexity import windows
from sol_rt.export.actions.losses import Candidate, token_losses
from sol_rt.export.graphs.graph import LayerShapes, active_counts, mlp_counts
from sol_rt.generate.model import SolModel


def both(share: float, shapes: LayerShapes, layers: int, action: Action) -> tuple[Candidate, Candidate]:
    """(MLP alone, all matrices): two ways to read `share` of the layers' weights, with equal counts in all layers."""
    sizes = {name: math.prod(shape) for name, shape in vars(shapes).items()}
    attention = sizes["qkv"] + sizes["o"]
    alone = (share * sum(sizes.values()) - attention) / (sizes["up"] + sizes["down"])
    counts = (
        (*mlp_counts(alone, shapes.up, shapes.down), shapes.qkv[0], shapes.o[0]),
        active_counts(share, shapes),
    )
    one, other = (Candidate(action, *((count,) * layers for count in each)) for each in counts)
    return one, other


def paired_difference(losses: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Mean of losses - reference, [tokens] each, and its standard error, in nats."""
    difference = losses - reference
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(difference.size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-f", "--file", type=Path, required=True, help="text to score")
    parser.add_argument("--shares", default="75,64,56.5", help="percent of the layers' weights read")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()

    model = SolModel.from_pretrained(args.bundle, provider="cpu", threads=args.threads, measure_costs=False)
    config = model.bundle.config
    shapes = LayerShapes(*(config.tensors[f"layers.0.{name}.base"].shape[:2] for name in ("up", "down", "qkv", "o")))
    ids = model.tokenizer.encode(args.file.read_text(encoding="utf-8"), add_special_tokens=False)
    cut = windows(ids, 512, None, args.windows)
    shares = [float(share) / 100 for share in args.shares.split(",")]
    action = Action(1.0, 1.0, args.bits)
    pairs = [both(share, shapes, config.model.num_layers, action) for share in shares]
    rows = token_losses(model.engine, cut, [Candidate(action), *(candidate for pair in pairs for candidate in pair)])

    print(
        f"{config.model.name}, {args.file.name}, {len(cut)} windows of 512, {rows.shape[1]} tokens, {args.bits} bits\n"
    )
    print("| layers' weights read | MLP alone, nats | all matrices, nats |\n|--:|--:|--:|")
    for index, share in enumerate(shares):
        lost = [paired_difference(rows[1 + 2 * index + which], rows[0]) for which in (0, 1)]
        print(f"| {share:.1%} | " + " | ".join(f"{mean:+.4f} ± {error:.4f}" for mean, error in lost) + " |")


if __name__ == "__main__":
    main()
