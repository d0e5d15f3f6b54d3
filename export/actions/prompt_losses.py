"""Measures what a prompt that a cheaper variant runs adds to the loss of the dense steps after it.

Dense steps behind such a prompt are compared with dense steps behind a dense one, by divergence, on the package's
sample texts. The reported loss is the mean plus its standard error. Variants of all channels are measured, from the
fewest bits up, until one loses so little that the default may use it: more bits are then not worth their time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.export.actions.losses import prompt_divergences
from sol_rt.export.runs import open_runs
from sol_rt.progress import Progress

WINDOWS, SCORED = 4, 64  # texts, and tokens of each that are scored
ENOUGH = 0.002  # nats: well below half of what the default loses


def with_prompt_losses(bundle: Bundle, windows: Sequence[Sequence[int]], progress: Progress) -> SolConfig:
    """The bundle's config with the losses of prompts, each at half of the shortest window's length.

    Args:
        bundle: its variants are final.
        windows: token ids of texts, of which the first WINDOWS count.
        progress: reports how far it is.
    """
    config, windows = bundle.config, windows[:WINDOWS]
    context = min(map(len, windows), default=0) // 2
    whole = config.dense.channel_density
    cheaper = sorted(
        (each for each in config.variants.values() if each.channel_density == whole and each.bits != config.dense.bits),
        key=lambda variant: variant.weight_bytes,
    )
    if context < 2 or not cheaper:
        return config
    engine, variants = open_runs(bundle.path), dict(config.variants)
    for number, variant in enumerate(cheaper):
        prompt, found = Action(1.0, whole, variant.bits), []
        for done, window in enumerate(windows):
            progress("measuring prompts", number + done / len(windows), len(cheaper))
            found.append(prompt_divergences(engine, window[: context + SCORED + 1], context, [prompt])[0])
        losses = np.concatenate(found)
        loss = float(losses.mean() + losses.std(ddof=1) / math.sqrt(len(losses)))
        variants[variant.key] = replace(variant, prompt_losses={context: max(loss, 0.0)})
        if loss <= ENOUGH:
            break
    progress("measuring prompts", 1, 1)
    return replace(config, variants=variants)
