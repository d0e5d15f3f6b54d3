"""Chooses how much of the LM head each graph reads. In a small model it is up to a third of all weights.

More LM head bits lower the loss and cost bytes; so does a graph of more bits. Let m be the most loss that a graph of
more bits saves per byte (a Lagrange multiplier). A graph then gets the LM head bits b that minimise

    loss(b) + 2 m bytes(b)

The factor 2 asks the LM head to save twice as much per byte: the graph also serves the lower channel densities, whose
purpose is to read little. Loss here is the divergence from the dense action.

A screened LM head is one more choice: all rows at 3 or 4 bits, and those with the highest scores at all bits. It loses
what the widest LM head does, and its divergence from that one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, THREE, Precision, Screen
from sol_rt.bundle.config import BLOCK, MATRIX_BITS, SolConfig, Variant
from sol_rt.export.actions.losses import Candidate, token_divergences
from sol_rt.export.actions.tail_offset import Tails, last_logits
from sol_rt.export.graphs.graph import weight_bytes, widest_bits, write_graphs
from sol_rt.export.graphs.screen_graph import first_passes, screen_scores
from sol_rt.export.runs import open_under
from sol_rt.export.sources.decoder import Decoder
from sol_rt.progress import Progress

_WINDOWS = 4
_OFFSET_WINDOWS = 2
# Rows of a screened LM head that are read at all bits, by bits of the first pass. After 3 bits more are needed for the
# same loss, and each takes more bytes.
_CANDIDATES = {4: (512, 2048), THREE: (512, 1024, 2048)}
_LEAST_ROWS = 8  # of an LM head that is screened, in times of the candidates
_TIMES = 2.0  # how much loss per byte the LM head has to save, relative to a graph of more bits


class Head(NamedTuple):
    """Bits of the LM head in a graph: every row at `bits`, or with `candidates` above 0 screened at `first_bits`."""

    bits: int
    candidates: int = 0
    tail_offset: float = 0.0
    first_bits: int = 4

    @property
    def screen(self) -> Screen | None:
        return Screen(self.candidates, self.tail_offset, self.first_bits) if self.candidates else None

    @classmethod
    def of(cls, variant: Variant) -> Head:
        return cls(variant.lm_head_bits, *(variant.lm_head_screen or ()))


_Head = TypeVar("_Head", int, Head)


@dataclass(frozen=True)
class HeadPoint:
    """A graph with some LM head: weight bytes of a step, and divergence from dense in nats per token."""

    weight_bytes: int
    loss: float


def worth_reading(points: Mapping[_Head, HeadPoint], wider: Collection[HeadPoint]) -> _Head:
    """The LM head that minimises loss + _TIMES * multiplier * bytes.

    Args:
        points: one graph by its LM head. The least one is what it has before the choice.
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


def may_screen(decoder: Decoder, precisions: Sequence[Precision]) -> bool:
    """True if a matrix of 3 bits may screen the LM head of some graph."""
    screened = len(precisions) > 1 and max(each.stored for each in precisions) > min(MATRIX_BITS)
    changed = decoder.head_bias or decoder.logits_cap  # see _add_screened
    enough = decoder.vocab_size >= _LEAST_ROWS * min(_CANDIDATES[THREE])
    return bool(screened and not changed and enough and decoder.vocab_size % BLOCK == 0)


def choose_lm_head_bits(
    folder: Path, config: SolConfig, decoder: Decoder, windows: Sequence[Sequence[int]], progress: Progress
) -> SolConfig:
    """Measures every graph but the widest with every LM head, and gives each graph the best one.

    Args:
        folder: a bundle whose weights are final. Its graphs are replaced.
        config: the bundle's config, with variants of channel density 1.
        decoder: the model.
        windows: token ids. The divergence is measured on the first four windows.
        progress: reports how far the work is.

    Returns:
        The config with new `lm_head_bits`, `lm_head_screen` and `weight_bytes` of all variants. The hashes of the
        graphs are not in it, and sol_config.json holds one that was tried: the caller writes it anew.
    """
    graph_bits = sorted({variant.bits for variant in config.variants.values()})
    widest = widest_bits(config.tensors)
    plain = {variant.bits: Head.of(variant) for variant in config.variants.values()}
    points: dict[int, dict[Head, HeadPoint]] = {bits: {} for bits in graph_bits}
    trials: list[dict[int, Head]] = []
    if len(graph_bits) > 1:
        narrowest = min(head.bits for head in plain.values())
        for more in range(0, widest - narrowest + 1, 2):
            trials.append({bits: Head(min(plain[bits].bits + more, widest)) for bits in graph_bits[:-1]})
    for done, trial in enumerate(trials):
        progress("LM head", done, len(trials))
        heads = {**plain, **trial}
        new = [bits for bits in graph_bits if heads[bits] not in points[bits]]
        if not new:
            continue
        with_trial = with_heads(folder, config, decoder, heads)
        for bits, point in _measure(folder, with_trial, new, windows[:_WINDOWS]).items():
            points[bits][heads[bits]] = point
    if trials:
        _add_screened(points, folder, config, decoder, windows[:_OFFSET_WINDOWS])
    progress("LM head", 1, 1)
    chosen = {}
    for bits in graph_bits[:-1]:
        above = [other for other in graph_bits if other > bits]
        # a mixed graph loses almost nothing; measured against it, no byte of the LM head would be worth reading
        priced = [other for other in above if other != MIXED] or above
        chosen[bits] = worth_reading(points[bits], [points[other][plain[other]] for other in priced])
    return with_heads(folder, config, decoder, {**plain, **chosen})


def _add_screened(
    points: Mapping[int, dict[Head, HeadPoint]],
    folder: Path,
    config: SolConfig,
    decoder: Decoder,
    windows: Sequence[Sequence[int]],
) -> None:
    """Adds screened LM heads to the points of every graph but the widest: one for each of _CANDIDATES that the
    vocabulary has rows enough for. They lose what the widest LM head loses, and their divergence from it."""
    if decoder.head_bias or decoder.logits_cap:
        return  # what comes after the product would change the order of the rows, and what the offset does
    widest, graphs = widest_bits(config.tensors), sorted(points)[:-1]
    sizes = {
        bits: [size for size in _CANDIDATES[bits] if size * _LEAST_ROWS <= decoder.vocab_size]
        for bits in first_passes(config.tensors, decoder)
    }
    if widest == min(MATRIX_BITS) or not any(sizes.values()):
        return
    whole = {variant.bits: Head.of(variant) for variant in config.variants.values()}
    unpruned = {variant.bits: variant for variant in config.variants.values() if variant.channel_density == 1.0}

    for graph in graphs:  # one after another: the logits of one graph may take hundreds of megabytes
        engine = open_under(folder, with_heads(folder, config, decoder, {**whole, graph: Head(widest)}))
        exact, hidden = last_logits(engine, windows, Action(1.0, 1.0, graph))
        for bits, scores in screen_scores(engine, decoder, hidden).items():
            for size, tails in Tails.of(scores, exact, sizes[bits]).items():
                head = Head(widest, size, tails.fitted_offset(), bits)
                screened = replace(unpruned[graph], lm_head_bits=head.bits, lm_head_screen=head.screen)
                lost = tails.divergence(head.tail_offset)
                points[graph][head] = HeadPoint(
                    weight_bytes(decoder, config.tensors, screened), points[graph][Head(widest)].loss + lost
                )


def _measure(
    folder: Path, config: SolConfig, graphs: Collection[int], windows: Sequence[Sequence[int]]
) -> dict[int, HeadPoint]:
    """The graphs of some bits at channel density 1, by their bits."""
    unpruned = [each for each in config.variants.values() if each.channel_density == 1.0 and each.bits in graphs]
    engine = open_under(folder, config)
    candidates = [Candidate(Action(1.0, 1.0, variant.bits)) for variant in unpruned]
    losses = token_divergences(engine, windows, config.dense, candidates).mean(axis=1)
    return {
        variant.bits: HeadPoint(variant.weight_bytes, float(loss))
        for variant, loss in zip(unpruned, losses, strict=True)
    }


def with_heads(folder: Path, config: SolConfig, decoder: Decoder, heads: Mapping[int, Head]) -> SolConfig:
    """The config with the LM head that `heads` gives for the bits of each graph. The graphs are written."""
    variants = {
        key: replace(variant, lm_head_bits=heads[variant.bits].bits, lm_head_screen=heads[variant.bits].screen)
        for key, variant in config.variants.items()
    }
    return write_graphs(folder, replace(config, variants=variants), decoder)
