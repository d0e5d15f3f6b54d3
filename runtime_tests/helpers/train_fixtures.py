"""Fixtures of training: a tiny bundle, a text in its words, a config that trains in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path

from helpers.random_decoder import hf_config
from helpers.tiny_bundle import write_bundle

CONFIG = """
checkpoint_every: 2
policy: {horizon: 4, width: 16, heads: 2, scalar_size: 8, action_size: 8}
data: {windows: [40, 60], held_out: 8}
warm_start: {windows: 10, positions: 16, updates: 12, batch: 8, patience: 100}
grpo: {updates: 4, windows: 2, episodes: 2, schedules: 4, learning_rate: 1e-3}
evaluation: {every: 2, windows: 3, positions: 16, budgets: [0.6]}
"""


def make_bundle(folder: Path, *, losses: bool = False) -> Path:
    """8 actions: 8 and 4 bits, pruned or not, all pages or 30% of them. The reference model can read it, too.

    With `losses`, actions have made-up ones.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config("llama")), encoding="utf-8")
    return write_bundle(folder, bits=(8, 4), losses=losses)


def make_text(path: Path, words: int = 3000) -> Path:
    """Words of which each depends on the last."""
    draw, at = random.Random(0), [0]
    for _ in range(words):
        at.append((at[-1] * 7 + draw.choice([1, 1, 1, 2, 5])) % 86)
    path.write_text(" ".join(f"w{word}" for word in at))
    return path
