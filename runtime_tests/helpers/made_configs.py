"""Configs made in memory, for tests of what depends on a bundle's numbers and not on its graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, LayerBits, bits_tag
from sol_rt.bundle.config import (
    ActionEntry,
    FileEntry,
    KvLayout,
    ModelDims,
    PolicySpec,
    SolConfig,
    TensorEntry,
    Variant,
)
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS


def made_config(
    kv_densities: Sequence[float] = (1.0, 0.5, 0.1),
    channel_densities: Sequence[float] = (1.0, 0.5),
    bits: Sequence[int] = (8, 4),
    weight_bytes: float = 147e6,
    policy_bytes: int | None = None,
    actions: Sequence[str] | None = None,
    policy_actions: Sequence[str] | None = None,
    losses: Mapping[str, Mapping[int, float]] | None = None,
) -> SolConfig:
    """The dims of a 135M model; weight bytes fall with bits and, for the MLP's part, with the channels kept.

    `losses` has nats over dense by tag and context.
    """
    variants = {}
    for channel_density in channel_densities:
        for level in bits:
            size = int(weight_bytes * level / bits[0] * (0.4 + 0.6 * channel_density))
            key = Action(1.0, channel_density, level).variant
            counts = (576,) * 30, (1536,) * 30, (576,) * 30, (576,) * 30
            layers = (LayerBits(8, 4, 4, 6),) * 30 if level == MIXED else None
            head = 4 if level == MIXED else level
            variants[key] = Variant(
                key, f"model.{bits_tag(level)}.onnx", channel_density, level, *counts, size, head, layers
            )
    product = [
        Action(kv_density, channel_density, level)
        for kv_density in kv_densities
        for channel_density in channel_densities
        for level in bits
    ]
    chosen = product if actions is None else [Action.parse(tag) for tag in actions]
    policy = None
    files = {name: FileEntry(4, "0" * 64) for name in ("weights.bin", *(each.file for each in variants.values()))}
    if policy_bytes is not None:
        known = chosen if policy_actions is None else [Action.parse(tag) for tag in policy_actions]
        policy = PolicySpec("policy.onnx", 16, KNOWN_SCALARS, tuple(known), (1, 2, 4, 16, 32), "made up")
        files["policy.onnx"] = FileEntry(policy_bytes, "0" * 64)
    dims = ModelDims("tiny", "LlamaForCausalLM", "", "", 49152, 576, 30, 9, 3, 64, 1536, 8192, 1, (2,))
    dense, tensors = Action(1.0, 1.0, bits[0]), {"norm": TensorEntry("float32", (1,), 0, 4)}
    found = losses or {}
    entries = tuple(
        ActionEntry(action, at[max(at)] if (at := dict(found.get(action.tag, {}))) else None, at) for action in chosen
    )
    return SolConfig("test", dims, KvLayout(), dense, variants, entries, policy, "weights.bin", tensors, files)


def with_losses(config: SolConfig) -> SolConfig:
    """The config with a loss for every action: the square of what it saves at 512 tokens, so that each may be a corner
    of the hull."""
    cost = BytesCost(config)
    entries = []
    for entry in config.actions:
        loss = (1 - cost.step(entry.action, 512) / cost.dense(512)) ** 2
        entries.append(replace(entry, loss=loss, losses={512: loss}))
    return replace(config, actions=tuple(entries))
