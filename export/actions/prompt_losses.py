"""Measures what a prompt that a cheaper variant runs adds to the loss of the dense steps after it.

Dense steps behind such a prompt are compared with dense steps behind a dense one, by divergence, on the texts that
losses of short contexts are measured on. The reported loss is the mean plus its standard error, times the margin for
texts of other kinds unless a user chose the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.export.actions.losses import margin, prompt_divergences, shared_loss
from sol_rt.export.runs import open_runs
from sol_rt.progress import Progress

WINDOWS, SCORED = 8, 64  # texts, and tokens of each that are scored
FASTER = 4  # bits of the one variant that is known to run prompts faster than the dense one, in 0.6 to 0.7 of the time

PromptLosses = Mapping[str, Mapping[int, float]]
"""Losses in nats a token, by the variant's key and the prompt's length in tokens."""


def measure_prompts(
    bundle: Bundle, windows: Sequence[Sequence[int]], progress: Progress, *, kinds: bool
) -> PromptLosses:
    """Measures the losses of prompts by variants that are faster, each at half of the shortest window's length.

    Args:
        bundle: its variants are final.
        windows: token ids of texts, of which the first WINDOWS count.
        progress: reports how far it is.
        kinds: the windows are of different kinds of text, so that others need a margin.
    """
    config, windows = bundle.config, windows[:WINDOWS]
    context = min(map(len, windows), default=0) // 2
    prompt = Action(1.0, config.dense.channel_density, FASTER)
    if context < 3 or config.dense.bits == FASTER or prompt.variant not in config.variants:
        return {}
    engine, found = open_runs(bundle.path), []
    for done, window in enumerate(windows):
        progress("measuring prompts", done, len(windows))
        found.append(prompt_divergences(engine, window[: context + SCORED + 1], context, [prompt])[0])
    progress("measuring prompts", len(windows), len(windows))
    losses = np.concatenate(found)
    factor = margin([float(each.mean()) for each in found]) if kinds else 1.0
    return {prompt.variant: {context: factor * shared_loss(losses).loss}}


def with_prompt_losses(config: SolConfig, losses: PromptLosses) -> SolConfig:
    """The config with the losses of its variants' prompts; variants that it lacks are left out."""
    variants = {key: replace(variant, prompt_losses=losses.get(key, {})) for key, variant in config.variants.items()}
    return replace(config, variants=variants)
