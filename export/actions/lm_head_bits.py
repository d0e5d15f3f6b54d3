"""Chooses how many bits of the LM head each graph reads. In a small model it is up to a third of all weights.

More LM head bits lower the loss and cost bytes; so does a graph of more bits. Let m be the most loss that a graph of
more bits saves per byte (a Lagrange multiplier). A graph then gets the LM head bits b that minimise

    loss(b) + 2 m bytes(b)

The factor 2 asks the LM head to save twice as much per byte: the graph also serves the lower channel densities, whose
purpose is to read little. Loss here is the divergence from the dense action.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.engine.engine import Engine
from sol_rt.export.actions.losses import Candidate, token_divergences
from sol_rt.export.graphs.graph import widest_bits, write_graphs
from sol_rt.export.sources.decoder import Decoder
from sol_rt.store.progress import Progress

_WINDOWS = 4
_TIMES = 2.0  # how much loss per byte the LM head has to save, relative to a graph of more bits


@dataclass(frozen=True)
class HeadPoint:
    """A graph with some number of LM head bits: weight bytes of a step, and divergence from dense in nats per token."""

    weight_bytes: int
    loss: float


def worth_reading(points: Mapping[int, HeadPoint], wider: Collection[HeadPoint]) -> int:
    """The LM head bits that minimise loss + _TIMES * multiplier * bytes.

    Args:
        points: one graph by its LM head bits. The fewest bits are those that it has before the choice.
        wider: the graphs of more bits, as they are.
    """
    narrowest = min(points)
    start = points[narrowest]
    dearer = [other for other in wider if other.weight_bytes > start.weight_bytes]  # mixed precision may read as little
    multiplier = max(
        ((start.loss - other.loss) / (other.weight_bytes - start.weight_bytes) for other in dearer), default=0.0
    )
    if multiplier <= 0:  # no graph of more bits has a lower loss
        return narrowest
    return min(sorted(points), key=lambda bits: points[bits].loss + _TIMES * multiplier * points[bits].weight_bytes)


def choose_lm_head_bits(
    folder: Path, config: SolConfig, decoder: Decoder, windows: Sequence[Sequence[int]], progress: Progress
) -> SolConfig:
    """Measures every graph but the widest with every number of LM head bits, and gives each graph the best number.

    Args:
        folder: a bundle whose weights are final. Its graphs are replaced.
        config: the bundle's config, with variants of channel density 1.
        decoder: the model.
        windows: token ids. The divergence is measured on the first four windows.
        progress: reports how far the work is.

    Returns:
        The config with new `lm_head_bits` and `weight_bytes` of all variants. It is not written to sol_config.json, and
        the hashes of the graphs are not in it.
    """
    graph_bits = sorted({variant.bits for variant in config.variants.values()})
    widest = widest_bits(config.tensors)
    plain = {variant.bits: variant.lm_head_bits for variant in config.variants.values()}
    points: dict[int, dict[int, HeadPoint]] = {bits: {} for bits in graph_bits}
    trials = range(0, widest - min(plain.values()) + 1, 2) if len(graph_bits) > 1 else ()
    for wider in trials:
        progress("LM head", wider, len(trials) * 2)
        heads = {**plain, **{bits: min(plain[bits] + wider, widest) for bits in graph_bits[:-1]}}
        for bits, point in _measure(folder, with_heads(folder, config, decoder, heads), windows[:_WINDOWS]).items():
            points[bits].setdefault(heads[bits], point)
    progress("LM head", 1, 1)
    chosen = {}
    for bits in graph_bits[:-1]:
        above = [other for other in graph_bits if other > bits]
        # a mixed graph loses almost nothing; measured against it, no byte of the LM head would be worth reading
        priced = [other for other in above if other != MIXED] or above
        chosen[bits] = worth_reading(points[bits], [points[other][plain[other]] for other in priced])
    return with_heads(folder, config, decoder, {**plain, **chosen})


def _measure(folder: Path, config: SolConfig, windows: Sequence[Sequence[int]]) -> dict[int, HeadPoint]:
    """Every graph at channel density 1, by its bits."""
    unpruned = [variant for variant in config.variants.values() if variant.channel_density == 1.0]
    engine = Engine(Bundle(folder, config, identity="", verify=False), provider="cpu")
    candidates = [Candidate(Action(1.0, 1.0, variant.bits)) for variant in unpruned]
    losses = token_divergences(engine, windows, config.dense, candidates).mean(axis=1)
    return {
        variant.bits: HeadPoint(variant.weight_bytes, float(loss))
        for variant, loss in zip(unpruned, losses, strict=True)
    }


def with_heads(folder: Path, config: SolConfig, decoder: Decoder, heads: Mapping[int, int]) -> SolConfig:
    """The config with the LM head bits that `heads` gives for the bits of each graph. The graphs are written."""
    variants = {key: replace(variant, lm_head_bits=heads[variant.bits]) for key, variant in config.variants.items()}
    return write_graphs(folder, replace(config, variants=variants), decoder)
