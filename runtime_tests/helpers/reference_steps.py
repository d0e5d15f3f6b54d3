"""Single steps of an engine and of the torch reference model, from the same cache."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from helpers import reference
from helpers.saved_session import saved
from sol_rt.bundle.actions import Action
from sol_rt.generate.native.engine import Engine
from sol_rt.train.reference_model.kv_cache import KVCache
from sol_rt.train.reference_model.model import ReferenceModel

EXACT = 1e-3  # what float32 order alone explains
NEAR = 0.02  # what float16 attention and coarser rounding of the fine planes explain
FLIP = 0.5  # what a flip in a model of 64 channels explains
PRUNED_FLIP = 2.0  # the same where the channel that flips is one of few
SHARE = 0.75  # of the steps have no flip
KV_DENSITIES = (1.0, 0.3, 0.1)
CONTEXT, STEPS = 150, 4


def random_tokens(count: int, vocabulary: int) -> np.ndarray:
    """Token ids, the same every time."""
    return np.random.default_rng(5).integers(3, vocabulary, count)


def difference(got: torch.Tensor, expected: np.ndarray) -> float:
    """The largest difference, in units of the expected values' standard deviation."""
    return float(np.abs(got.numpy() - expected).max() / expected.std())


def take_over(engine: Engine, cache: KVCache) -> None:
    """Copies the engine's cache into a row of the reference model's; codes of the keys anew, for function bodies store
    none. A state is what the filters got for the last tokens."""
    cache.reserve(engine.length + 1)
    tensors, states = saved(engine)
    for layer, state in zip(engine.bundle.config.kv.convolving, states, strict=True):
        held = torch.from_numpy(state.T[-engine.length :].copy())
        cache.inputs[layer][0, engine.length - len(held) : engine.length] = held
    cache.lengths[:] = engine.length
    buffers = list(tensors.values())
    int8 = cache.keys.dtype == torch.int8
    of_layer = 6 if int8 else 4
    for index, layer in enumerate(engine.bundle.config.kv.attending(len(cache.keys))):
        key, value, _, _, *scales = buffers[of_layer * index :][:of_layer]
        keys = reference.scaled_rows(key, scales[0]) if int8 else key
        packed, ranges = reference.key_codes(keys)
        parts = [cache.keys, cache.values, cache.key_codes, cache.key_ranges, cache.key_scales, cache.value_scales]
        for part, held in zip(parts, (key, value, reference.unpacked(packed), ranges, *scales), strict=False):
            part[layer, 0, :, : engine.length] = torch.from_numpy(held[0].copy())


def check_steps(
    engine: Engine,
    reference: ReferenceModel,
    kv_densities: tuple[float, ...],
    variants: Collection[str] | None = None,
    count: int = STEPS,
    flip: float = FLIP,
) -> None:
    """Steps of every variant at every KV density, each after the same dense prefill.

    Args:
        engine, reference: of the same bundle.
        kv_densities: shares of the old tokens.
        variants: keys of the variants to run; all by default.
        count: steps at each density.
        flip: the largest difference of a step in which another channel or token was chosen.
    """
    config = engine.bundle.config
    tokens = random_tokens(CONTEXT + count, config.model.vocab_size)
    engine.reset()
    engine.forward(tokens[:CONTEXT], config.dense)
    cache = reference.new_cache(1)
    for variant in config.variants.values():
        if variants is not None and variant.key not in variants:
            continue
        differences = []
        for kv_density in kv_densities:
            action = Action(kv_density, variant.channel_density, variant.bits)
            engine.truncate(CONTEXT)
            for token in tokens[CONTEXT:].tolist():
                take_over(engine, cache)
                expected = engine.forward([token], action)
                logits, hidden = reference.step(torch.tensor([token]), [action], cache)
                differences.append(max(difference(logits, expected.logits), difference(hidden, expected.hidden)))
        assert (np.array(differences) < EXACT).mean() >= SHARE, (variant.key, differences)
        assert max(differences) < flip, (variant.key, differences)
        if variant.key == "s100-q8":  # of two old tokens alike a processor may keep the other, once
            far = [place for place, found in enumerate(differences) if found >= EXACT]
            assert len(far) <= 1, (variant.key, differences)
            assert all(kv_densities[place // count] < 1 for place in far), (variant.key, differences)
