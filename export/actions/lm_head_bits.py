"""At which width a variant reads the output matrix: a matter of its own, as that is up to a third of a small model.

Reading more of the output matrix takes loss away for bytes; so does going to a wider variant. A step of the output
matrix is taken where it takes away twice as much for its bytes: the graph is that of pruned variants as well, which are
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
from sol_rt.export.progress import Progress
from sol_rt.export.sources.decoder import Decoder

_WINDOWS = 4
_TIMES = 2.0  # what the output matrix has to take away for a byte, of what a wider variant does


@dataclass(frozen=True)
class HeadPoint:
    """A variant with the output matrix at some width: bytes of weights a step, nats a token over dense."""

    weight_bytes: int
    loss: float


def worth_reading(points: Mapping[int, HeadPoint], wider: Collection[HeadPoint]) -> int:
    """The output matrix's width that takes away enough loss for its bytes, and of these the one with most beyond that.

    Args:
        points: of one variant, by the width of its output matrix; the narrowest is what it has without a choice.
        wider: variants of more bits as they are.
    """
    narrowest = min(points)
    start = points[narrowest]
    dearer = [other for other in wider if other.weight_bytes > start.weight_bytes]  # a mix of widths may read as much
    multiplier = max(
        ((start.loss - other.loss) / (other.weight_bytes - start.weight_bytes) for other in dearer), default=0.0
    )
    if multiplier <= 0:  # more bits bring nothing here at all
        return narrowest
    return min(sorted(points), key=lambda width: points[width].loss + _TIMES * multiplier * points[width].weight_bytes)


def choose_lm_head_bits(
    folder: Path, config: SolConfig, decoder: Decoder, windows: Sequence[Sequence[int]], progress: Progress
) -> SolConfig:
    """Measures the narrower variants with their output matrix at every width, and gives each the best one.

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
    widths = sorted({variant.bits for variant in config.variants.values()})
    widest = widest_bits(config.tensors)
    plain = {variant.bits: variant.lm_head_bits for variant in config.variants.values()}
    points: dict[int, dict[int, HeadPoint]] = {width: {} for width in widths}
    trials = range(0, widest - min(plain.values()) + 1, 2) if len(widths) > 1 else ()
    for wider in trials:
        progress("output matrix", wider, len(trials) * 2)
        heads = {**plain, **{width: min(plain[width] + wider, widest) for width in widths[:-1]}}
        for width, point in _measure(folder, _with_heads(folder, config, decoder, heads), windows[:_WINDOWS]).items():
            points[width].setdefault(heads[width], point)
    progress("output matrix", 1, 1)
    chosen = {}
    for width in widths[:-1]:
        above = [other for other in widths if other > width]
        # beside a mixed graph, which loses next to nothing, no byte of the output matrix would be worth reading
        priced = [other for other in above if other != MIXED] or above
        chosen[width] = worth_reading(points[width], [points[other][plain[other]] for other in priced])
    return _with_heads(folder, config, decoder, {**plain, **chosen})


def _measure(folder: Path, config: SolConfig, windows: Sequence[Sequence[int]]) -> dict[int, HeadPoint]:
    """Of every width with nothing pruned."""
    unpruned = [variant for variant in config.variants.values() if variant.prune == 100]
    engine = Engine(Bundle(folder, config, identity=""), provider="cpu")
    candidates = [Candidate(Action(100, 100, variant.bits)) for variant in unpruned]
    losses = token_divergences(engine, windows, config.dense, candidates).mean(axis=1)
    return {
        variant.bits: HeadPoint(variant.weight_bytes, float(loss))
        for variant, loss in zip(unpruned, losses, strict=True)
    }


def _with_heads(folder: Path, config: SolConfig, decoder: Decoder, heads: Mapping[int, int]) -> SolConfig:
    """The config with variants of every width reading the output matrix at its width in `heads`, graphs written."""
    variants = {key: replace(variant, lm_head_bits=heads[variant.bits]) for key, variant in config.variants.items()}
    return write_graphs(folder, replace(config, variants=variants), decoder)
