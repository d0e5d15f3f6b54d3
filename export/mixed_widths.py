"""The widths of a mixed graph: those of a source that mixes them, as files of K-quants do.

A matrix that the source has in 4-bit codes of its own is read at 4 bits, which loses nothing (6 bits have no value
where those codes are); any other at 6, and one that joins both kinds at 8. A source all of one kind has no use for it:
what a mix of widths reaches there, steps of 4 and of 6 bits in turn reach too. Of a 135M model rounded from full
precision, 6 bits in half of the layers left 0.026 nats, 4 bits 0.045 and 6 bits 0.009.
"""

from __future__ import annotations

from collections.abc import Sequence

from sol_rt.export.architecture import Decoder, TensorNames
from sol_rt.export.checkpoint import Checkpoint, matrices
from sol_rt.widths import LayerWidths


def mixed_widths(checkpoint: Checkpoint, decoder: Decoder, names: TensorNames) -> tuple[LayerWidths, ...] | None:
    """Of every layer; None where all of the layers' matrices are of one kind."""
    sources = matrices(decoder, names)
    layers = tuple(
        LayerWidths(*(_width(checkpoint, sources[f"layers.{layer}.{matrix}"]) for matrix in LayerWidths._fields))
        for layer in range(decoder.num_layers)
    )
    return layers if len({bits for layer in layers for bits in layer}) > 1 else None


def _width(checkpoint: Checkpoint, modules: Sequence[str]) -> int:
    """Of the matrix that joins these modules."""
    own = [checkpoint.codes(f"{module}.weight", 0, 1) is not None for module in modules]
    return 4 if all(own) else 8 if any(own) else 6
