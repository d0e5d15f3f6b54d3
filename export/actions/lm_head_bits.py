"""How many bits of the LM head a variant reads: a matter of its own, as that is up to a third of a small model.

Reading more of the LM head takes loss away for bytes; so does going to a wider variant. A step of the LM
head is taken where it takes away twice as much for its bytes: the graph is that of pruned variants as well, which are
there to read little. Loss here is divergence from the dense action.
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
_TIMES = 2.0  # what the LM head has to take away for a byte, of what a wider variant does


@dataclass(frozen=True)
class HeadPoint:
    """A variant with some bits of its LM head: bytes of weights a step, nats a token over dense."""

    weight_bytes: int
    loss: float


def worth_reading(points: Mapping[int, HeadPoint], wider: Collection[HeadPoint]) -> int:
    """The LM head's bits that take away enough loss for its bytes, and of these the one with most beyond that.

    Args:
        points: of one variant, by the bits of its LM head; the narrowest is what it has without a choice.
        wider: variants of more bits as they are.
    """
    narrowest = min(points)
    start = points[narrowest]
    dearer = [other for other in wider if other.weight_bytes > start.weight_bytes]  # mixed bits may read as much
    multiplier = max(
        ((start.loss - other.loss) / (other.weight_bytes - start.weight_bytes) for other in dearer), default=0.0
    )
    if multiplier <= 0:  # more bits bring nothing here at all
        return narrowest
    return min(sorted(points), key=lambda bits: points[bits].loss + _TIMES * multiplier * points[bits].weight_bytes)


def choose_lm_head_bits(
    folder: Path, config: SolConfig, decoder: Decoder, windows: Sequence[Sequence[int]], progress: Progress
) -> SolConfig:
    """Measures the narrower variants with every number of bits of their LM head, and gives each the best one.

    Args:
        folder: a bundle whose weights are final; graphs are written into it, in place of those there.
        config: its config, nothing pruned among its variants.
        decoder: the model.
        windows: token ids; divergence is measured on the first four.
        progress: told how far it is.

    Returns:
        The config with `lm_head_bits` and `weight_bytes` of all variants. The bundle's sol_config.json is not written,
        nor are the graphs' hashes.
    """
    graph_bits = sorted({variant.bits for variant in config.variants.values()})
    widest = widest_bits(config.tensors)
    plain = {variant.bits: variant.lm_head_bits for variant in config.variants.values()}
    points: dict[int, dict[int, HeadPoint]] = {bits: {} for bits in graph_bits}
    trials = range(0, widest - min(plain.values()) + 1, 2) if len(graph_bits) > 1 else ()
    for wider in trials:
        progress("LM head", wider, len(trials) * 2)
        heads = {**plain, **{bits: min(plain[bits] + wider, widest) for bits in graph_bits[:-1]}}
        for bits, point in _measure(folder, _with_heads(folder, config, decoder, heads), windows[:_WINDOWS]).items():
            points[bits].setdefault(heads[bits], point)
    progress("LM head", 1, 1)
    chosen = {}
    for bits in graph_bits[:-1]:
        above = [other for other in graph_bits if other > bits]
        # beside a mixed graph, which loses next to nothing, no byte of the LM head would be worth reading
        priced = [other for other in above if other != MIXED] or above
        chosen[bits] = worth_reading(points[bits], [points[other][plain[other]] for other in priced])
    return _with_heads(folder, config, decoder, {**plain, **chosen})


def _measure(folder: Path, config: SolConfig, windows: Sequence[Sequence[int]]) -> dict[int, HeadPoint]:
    """Of every graph with nothing pruned."""
    unpruned = [variant for variant in config.variants.values() if variant.channel_density == 1.0]
    engine = Engine(Bundle(folder, config, identity=""), provider="cpu")
    candidates = [Candidate(Action(1.0, 1.0, variant.bits)) for variant in unpruned]
    losses = token_divergences(engine, windows, config.dense, candidates).mean(axis=1)
    return {
        variant.bits: HeadPoint(variant.weight_bytes, float(loss))
        for variant, loss in zip(unpruned, losses, strict=True)
    }


def _with_heads(folder: Path, config: SolConfig, decoder: Decoder, heads: Mapping[int, int]) -> SolConfig:
    """The config with variants reading the bits of the LM head that `heads` has for their own, graphs written."""
    variants = {key: replace(variant, lm_head_bits=heads[variant.bits]) for key, variant in config.variants.items()}
    return write_graphs(folder, replace(config, variants=variants), decoder)
