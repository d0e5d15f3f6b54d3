"""Measures what variants of a bundle lose over its dense action on a text, paired by window.

    python benchmarks/low_bits.py BUNDLE -f FILE
    ... --chunks 40                        windows of 512 tokens at most, spread evenly over FILE
    ... --calibration STORED               the variants of a stored calibration, those too that the export dropped
    ... --variants s100-q3,s075-q3         which of them; by default all
    ... --threads 1                        by default one for each core

The first half of each window is prefilled dense, as generation does. The tokens of the second half are scored under the
variant, whose own keys and values they see. Prints Markdown: bytes of weights that a step reads, and the mean over
windows of (nats under the variant - nats under dense), ± its standard error. After each window the figures so far go to
stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.export.actions.candidates import Levels
from sol_rt.export.actions.losses import Candidate, token_losses
from sol_rt.export.actions.stored import StoredCalibration
from sol_rt.export.graphs.graph import write_graphs
from sol_rt.export.sources.decoder import from_hf_config
from sol_rt.export.sources.folder.hf_checkpoint import read_json
from sol_rt.store.home import find_bundle

SIZE = 512


def with_dropped(bundle: Bundle, stored: StoredCalibration, folder: Path) -> Bundle:
    """The bundle in `folder` with all variants of a stored calibration whose bits it has; weights are a link."""
    config = bundle.config
    decoder = from_hf_config(read_json(bundle.path / "config.json"), config.model.max_context)
    precisions = {variant.bits: variant.precision for variant in config.variants.values()}
    levels = Levels.checked(tuple(precisions), stored.settings.channel_density, (1.0,))
    variants = levels.variants(decoder, [precisions[bits] for bits in levels.bits])
    for name in (config.weights_file, "config.json", "tokenizer.json"):
        os.link(bundle.path / name, folder / name)
    wide = replace(config, variants={variant.key: variant for variant in variants}, policy=None)
    known = {key: counts for key, counts in stored.active_channels.items() if key in wide.variants}
    applied = replace(stored, active_channels=known).applied(folder, write_graphs(folder, wide, decoder), decoder)
    return Bundle(folder, applied, identity="", verify=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--variants")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    bundle = Bundle.open(find_bundle(args.bundle))
    if args.calibration is None:
        measure(bundle, args)
        return
    with tempfile.TemporaryDirectory(dir=bundle.path.parent) as folder:
        measure(with_dropped(bundle, StoredCalibration.read(args.calibration), Path(folder)), args)


def measure(bundle: Bundle, args: argparse.Namespace) -> None:
    dense = bundle.config.dense
    keys = args.variants.split(",") if args.variants else list(bundle.config.variants)
    actions = [action for action in (Action.parse(f"k100-{key}") for key in keys) if action != dense]
    losses = losses_of(bundle, [dense, *actions], args.file, args.chunks, args.threads)
    print(f"{losses.shape[1]} windows of {SIZE}, dense loss {losses[0].mean():.4f} nats\n")
    print("| variant | MB a step | LM head bits | added nats |\n|---|--:|--:|--:|")
    for action, values in zip(actions, losses[1:] - losses[0], strict=True):
        variant = bundle.config.variants[action.variant]
        error = values.std(ddof=1) / np.sqrt(len(values))
        size = variant.weight_bytes / 1e6
        print(f"| `{variant.key}` | {size:.1f} | {variant.lm_head_bits} | {values.mean():.4f} ± {error:.4f} |")


def spread_windows(bundle: Bundle, file: Path, count: int) -> list[list[int]]:
    """Windows of SIZE tokens that `sol-rt perplexity` would cut, `count` at most, spread evenly over the text.

    Raises UsageError if the text is shorter than two windows.
    """
    cut = text_windows(file.read_text(encoding="utf-8"), bundle.tokenizer(), bundle.config.model, SIZE)
    count = min(count, len(cut))
    return [cut[len(cut) * index // count] for index in range(count)]


def losses_of(bundle: Bundle, actions: Sequence[Action], file: Path, chunks: int, threads: int | None) -> np.ndarray:
    """The loss of each action in each window of the file, in nats a token: float64 [actions, windows]."""
    engine = Engine(bundle, provider="cpu", threads=threads)
    candidates = [Candidate(action) for action in actions]
    found: list[np.ndarray] = []
    cut = spread_windows(bundle, file, chunks)
    for number, window in enumerate(cut, 1):
        found.append(token_losses(engine, [window], candidates, keep=True).mean(axis=1))
        means = np.mean(found, axis=0) - np.mean(found, axis=0)[0]
        told = ", ".join(f"{action.variant} {mean:.4f}" for action, mean in zip(actions, means, strict=True))
        print(f"{number} of {len(cut)}: {told}", file=sys.stderr, flush=True)
    return np.array(found, np.float64).T


if __name__ == "__main__":
    main()
