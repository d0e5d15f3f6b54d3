"""Divergence of a bundle's actions from its dense one, on the exporter's sample texts and on other texts.

    python benchmarks quality.losses_by_text qwen2.5-coder-1.5b -f valid.tokens.txt -f melville-moby_dick.txt

The ends of windows of up to 512 tokens are scored after a dense prompt, as an export does it. Nats a token, ± standard
error. Shows whether the losses by which a bundle's actions were chosen hold on a text of another kind.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.export.actions.calibration_text import sample_windows
from sol_rt.export.actions.losses import Candidate, token_divergences
from sol_rt.generate.native.engine import Engine
from sol_rt.store.home import find_bundle

SIZE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-f", "--file", type=Path, action="append", default=[], help="a further text")
    parser.add_argument("-a", "--actions", help="tags, separated by commas; default: all of KV density 1")
    parser.add_argument("--windows", type=int, default=12, help="of each text, spread evenly over it")
    parser.add_argument("--scored", type=int, default=64, help="tokens of each window")
    arguments = parser.parse_args()

    bundle = Bundle.open(find_bundle(arguments.model))
    engine, dense = Engine(bundle, provider="cpu"), bundle.config.dense
    if arguments.actions:
        actions = [Action.parse(tag) for tag in arguments.actions.split(",")]
    else:
        every = [entry.action for entry in bundle.config.actions]
        actions = [action for action in every if action.kv_density == 1.0 and action != dense]
    texts = {"sample texts": sample_windows(bundle.tokenizer(), engine.max_context)}
    for path in arguments.file:
        texts[path.name] = tuple(map(tuple, spread_windows(bundle, path, arguments.windows)))

    candidates = [Candidate(action) for action in actions]
    columns = {}
    for name, windows in texts.items():
        found = [
            token_divergences(engine, [window], dense, candidates, context=len(window) - arguments.scored - 1)
            for window in windows
        ]
        columns[f"{name}, {len(windows)} windows"] = np.concatenate(found, axis=1)
    print(f"| action | {' | '.join(columns)} |")
    print(f"|---|{'--:|' * len(columns)}")
    for row, action in enumerate(actions):
        cells = [
            f"{kl[row].mean():.4f} ± {kl[row].std(ddof=1) / math.sqrt(kl.shape[1]):.4f}" for kl in columns.values()
        ]
        print(f"| `{action.tag}` | {' | '.join(cells)} |")


def spread_windows(bundle: Bundle, file: Path, count: int, size: int = SIZE) -> list[list[int]]:
    """Windows of `size` tokens that `sol-rt perplexity` would cut, `count` at most, spread evenly over the text.

    Raises UsageError if the text is shorter than two windows.
    """
    cut = text_windows(file.read_text(encoding="utf-8"), bundle.tokenizer(), bundle.config.model, size)
    count = min(count, len(cut))
    return [cut[len(cut) * index // count] for index in range(count)]


if __name__ == "__main__":
    main()
