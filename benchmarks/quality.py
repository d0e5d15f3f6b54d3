"""Measures the perplexity of every variant of a bundle: what each way to run a step costs in quality.

    python benchmarks/quality.py BUNDLE -f FILE -c 512 --chunks 40
    ... --kv-density 1,0.25     KV densities to combine with the variants
    ... --reference PPL         compare with the source's own perplexity, from reference_perplexity.py

Prints a Markdown table with a row per action. Perplexity follows llama-perplexity and takes the path of generation:
the first half of a window is prefilled dense, and every later token is one decode step of the row's action.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sol_rt.bundle.actions import Action
from sol_rt.evaluation.quality.perplexity import Estimate, perplexity
from sol_rt.generate.model import SolModel


def actions(model: SolModel, kv_densities: list[float]) -> list[Action]:
    """Actions of every variant at every KV density, the most expensive first."""
    variants = sorted(model.bundle.config.variants.values(), key=lambda variant: -variant.weight_bytes)
    return [
        Action(kv_density, variant.channel_density, variant.bits) for variant in variants for kv_density in kv_densities
    ]


def measure(model: SolModel, text: str, action: Action, size: int, chunks: int) -> Estimate:
    """Perplexity under one action. Shows progress on stderr."""

    def show(done: int, total: int, so_far: Estimate) -> None:
        print(f"\r{action.tag}  {done}/{total} windows  {so_far.ppl:.3f} ", end="", file=sys.stderr, flush=True)

    result = perplexity(model, text, size=size, chunks=chunks, progress=show, schedule=f"fixed:{action.tag}")
    print(file=sys.stderr)
    return result


def row(model: SolModel, action: Action, result: Estimate, reference: float) -> str:
    megabytes = model.bundle.config.variants[action.variant].weight_bytes / 1e6
    added = 100 * (result.ppl / reference - 1)
    return (
        f"| `{action.tag}` | {megabytes:.0f} | {result.achieved_budget:.2f} | "
        f"{result.ppl:.3f} ± {result.stderr:.3f} | {added:+.2f}% |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--kv-density", default="1", help="shares of the old tokens read, separated by commas")
    parser.add_argument("--reference", type=float, help="perplexity to compare with; the dense action's by default")
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    model = SolModel.from_pretrained(args.bundle, threads=args.threads, measure_costs=False)
    text = args.file.read_text(encoding="utf-8")
    reference, lines, tokens = args.reference, [], 0
    for action in actions(model, [float(share) for share in args.kv_density.split(",")]):
        result = measure(model, text, action, args.ctx_size, args.chunks)
        reference, tokens = reference or result.ppl, result.tokens
        lines.append(row(model, action, result, reference))
    against = f"{args.reference:g}, the source's" if args.reference else "the first row"
    cost = model.cost.name
    print(
        f"{model.bundle.config.model.name} on {args.file.name}: {tokens} tokens scored in windows of {args.ctx_size}."
    )
    print(f"Budget by the {cost} cost model; last column against {against}.\n")
    print("| action | weights read, MB | budget | perplexity | added |\n|---|--:|--:|--:|--:|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
