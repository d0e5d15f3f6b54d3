"""The parity report: compares the exported graphs with transformers, which runs the source's own weights in float32.

It is made on a short text. If even the widest graph is far from transformers, the checkpoint has a feature that this
exporter does not know, and the export fails.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import CheckpointError
from sol_rt.export.sources.checkpoint import Checkpoint
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import Family
from sol_rt.export.sources.source_model import SourceModel
from sol_rt.progress import Progress

TEXT = (
    "The lighthouse keeper climbed the stairs every evening at six. He lit the lamp, wound the clock and wrote one "
    "line in the book: wind from the west, two ships, no rain. Years later somebody found the book and read it aloud."
)
_MAX_TOKENS = 64
_HEAD_ROWS = 1 << 14
_ABSURD_KL = 1.0  # nats; the widest level of a correct graph stays far below a tenth of this


@dataclass(frozen=True)
class ParityRow:
    """One precision against the reference, nothing pruned.

    Attributes:
        variant: key of the graph's variant at channel density 1.
        max_difference: largest absolute difference of a logit.
        divergences: Kullback-Leibler divergence of the graph from the reference at every position, nats.
        top1: share of positions at which both have the same likeliest token.
    """

    variant: str
    max_difference: float
    divergences: tuple[float, ...]
    top1: float

    @property
    def kl(self) -> float:
        """The mean of the divergences, nats."""
        return max(sum(self.divergences) / len(self.divergences), 0.0)  # in this order NaN stays

    def is_beyond_doubt_closer_than(self, other: ParityRow) -> bool:
        """True if the mean advantage over `other`, position by position, is more than twice its standard error.

        On a few dozen tokens, the means of two equally good graphs differ by chance.
        """
        gains = [theirs - own for own, theirs in zip(self.divergences, other.divergences, strict=True)]
        if len(gains) < 2:
            return False
        return statistics.mean(gains) > 2 * statistics.stdev(gains) / math.sqrt(len(gains))


@dataclass(frozen=True)
class Parity:
    """The report: one row for each precision, the most bits first, over `tokens` positions."""

    tokens: int
    rows: tuple[ParityRow, ...]


def measure(
    checkpoint: Checkpoint, decoder: Decoder, family: Family, folder: Path, bits: Sequence[int], progress: Progress
) -> Parity:
    """Compares the graphs of the bundle in `folder` with its source.

    Args:
        checkpoint, decoder, family: the source.
        folder: the bundle.
        bits: bits of the graphs to compare, the most first; the bundle has their variants of the dense channel density.
        progress: reports how far the work is.

    Raises:
        CheckpointError: the widest graph is far from transformers, or the tokenizer gives no tokens.
    """
    from sol_rt.export.runs import open_runs

    bundle = Bundle.open(folder)
    ids = bundle.tokenizer().encode(TEXT)[: min(_MAX_TOKENS, decoder.max_context)]
    if not ids:
        raise CheckpointError(f"{checkpoint.path}: its tokenizer gives no tokens for a plain text")
    expected = torch.from_numpy(reference_logits(checkpoint, decoder, family, ids, progress)).log_softmax(-1)
    engine = open_runs(folder)
    rows = []
    for done, level in enumerate(bits):
        progress("comparing", done, len(bits))
        engine.reset()
        action = Action(1.0, bundle.config.dense.channel_density, level)
        got = engine.forward(ids, action, num_logits=len(ids)).logits
        rows.append(_compare(action.variant, expected, torch.from_numpy(np.array(got))))
    progress("comparing", len(bits), len(bits))
    if not rows[0].kl < _ABSURD_KL:
        raise CheckpointError(
            f"{checkpoint.path}: the exported graph is {rows[0].kl:.3g} nats from transformers on the same text, "
            f"expected less than {_ABSURD_KL}: the checkpoint has a feature that this exporter does not know"
        )
    return Parity(len(ids), tuple(rows))


def _compare(variant: str, expected: torch.Tensor, logits: torch.Tensor) -> ParityRow:
    """Compares a graph's logits [T, vocab] with the reference's log-probabilities `expected` [T, vocab]."""
    got = logits.float().log_softmax(-1)
    divergences = (expected.exp() * (expected - got)).sum(-1)
    top1 = (expected.argmax(-1) == got.argmax(-1)).float().mean()
    # at each position log-probabilities differ from logits by a constant, so both are centred
    centred = (logits - logits.mean(-1, keepdim=True)) - (expected - expected.mean(-1, keepdim=True))
    return ParityRow(variant, float(centred.abs().max()), tuple(divergences.tolist()), float(top1))


@torch.inference_mode()
def reference_logits(
    checkpoint: Checkpoint, decoder: Decoder, family: Family, ids: Sequence[int], progress: Progress
) -> npt.NDArray[np.float32]:
    """The logits of transformers, float32 [T, vocab], for T token ids from the start of a context."""
    model = SourceModel(checkpoint, decoder, family, len(ids))
    x = model.embed(ids)[None]
    for index, layer in enumerate(model.layers()):
        progress("reference", index, decoder.num_layers)
        x = model.run(layer, x)
    progress("reference", decoder.num_layers, decoder.num_layers)
    return project(checkpoint, decoder, family, model.final_norm(x)[0])


def project(checkpoint: Checkpoint, decoder: Decoder, family: Family, hidden: torch.Tensor) -> npt.NDArray[np.float32]:
    """The source's logits, float32 [T, vocab], of hidden states float32 [T, hidden] after the final norm."""
    name = f"{family.names.embed if decoder.tied else family.names.head}.weight"
    logits = torch.empty(len(hidden), decoder.vocab_size)
    for start in range(0, decoder.vocab_size, _HEAD_ROWS):
        stop = min(start + _HEAD_ROWS, decoder.vocab_size)
        logits[:, start:stop] = hidden @ torch.from_numpy(checkpoint.read(name, start, stop)).T
    if decoder.head_bias:
        logits += torch.from_numpy(checkpoint.read(f"{family.names.head}.bias"))
    if decoder.logits_cap:
        logits = decoder.logits_cap * torch.tanh(logits / decoder.logits_cap)
    return logits.numpy()
