"""The bits of a mixed graph: those of a source that has 4-bit codes of its own, as many GGUF files have.

Files of K-quants mix: most matrices have 4-bit codes, some more bits. The former are read at 4 bits, which is what they
are (6 bits have no value where those codes lie); the latter at 6; one that joins both at 8.

Where all matrices have 4-bit codes, what a graph of 4 bits loses is in its activations, of 8 bits. Of a matrix read at
8 bits they have 16: here all but the MLP's first, the largest.

A source without such codes has no mixed graph: what a mix of 4 and 6 bits reaches, steps of both in turn reach too. Of
a 135M model of full precision, 6 bits in half of the layers left 0.026 nats, 4 bits 0.045 and 6 bits 0.009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sol_rt.bundle.bits import MIXED, LayerBits, Precision
from sol_rt.export.sources.checkpoint import Checkpoint, matrices
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import TensorNames

_OF_ONLY_CODES = LayerBits(8, 8, 4, 8)


def mixed_precision(checkpoint: Checkpoint, decoder: Decoder, names: TensorNames) -> Precision | None:
    """Of the mixed graph, its LM head at the narrowest worth trying; None where no matrix of a layer has codes of
    its own."""
    sources = matrices(decoder, names)
    layers = tuple(
        LayerBits(*(_matrix_bits(checkpoint, sources[f"layers.{layer}.{matrix}"]) for matrix in LayerBits._fields))
        for layer in range(decoder.num_layers)
    )
    found = {bits for layer in layers for bits in layer}
    if found == {6}:
        return None
    if found == {4}:
        layers = (_OF_ONLY_CODES,) * decoder.num_layers
    return Precision(MIXED, _matrix_bits(checkpoint, sources["embed" if decoder.tied else "head"]), layers)


def with_dense_head(mixed: Precision) -> Precision:
    """Of a mixed graph that is the dense one: its LM head at 8 bits where it has no codes of its own."""
    return mixed if mixed.lm_head_bits == 4 else replace(mixed, lm_head_bits=8)


def _matrix_bits(checkpoint: Checkpoint, modules: Sequence[str]) -> int:
    """Of the matrix that joins these modules, by the type of their weights."""
    own = [checkpoint.codes(f"{module}.weight", 0, 1) is not None for module in modules]
    return 4 if all(own) else 8 if any(own) else 6
