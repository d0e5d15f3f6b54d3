"""The precisions of a bundle's graphs, and the bits of each matrix in a mixed-precision graph.

A mixed-precision graph is for sources that already have 4-bit codes, as many GGUF files do. Each matrix is read at the
bits that suit its source:

| the source's rows of the matrix | bits | reason |
|---|---|---|
| all have 4-bit codes | 4 | more bits add nothing; the 6-bit level has no value where these codes lie |
| some have 4-bit codes | 8 | the 6-bit level would not hold the codes |
| none has 4-bit codes | 6 | the file gives these rows more than 4 bits |

If every matrix of the layers has 4-bit codes, what a 4-bit graph loses is in its activations, which have 8 bits. Those
of a matrix read at 8 bits have 16. So the graph then reads all matrices at 8 bits except the largest, the MLP's first.

A graph of 3 bits reads only the MLP's first matrix at 3, and the others at 4. That matrix is half of a layer, and the
cheapest place: docs/results/quality.md has other choices at the same bytes. The last layer reads it at 4, too: there
it loses four to six times what it loses in another layer.

A source without 4-bit codes has no mixed-precision graph: taking steps of 4 and 6 bits in turn reaches what a mix of
both would. On a 135M model of full precision, 6 bits in half of the layers left 0.026 nats of loss, 4 bits 0.045, 6
bits 0.009.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sol_rt.bundle.bits import MIXED, THREE, LayerBits, Precision
from sol_rt.errors import CheckpointError
from sol_rt.export.sources.checkpoint import Checkpoint, matrices, matrix_shape
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import TensorNames

_THREE_BITS = LayerBits(qkv=4, o=4, up=3, down=4)
_ONLY_CODES = LayerBits(qkv=8, o=8, up=4, down=8)
_LEFT_OUT = {
    MIXED: "mixed bits left out: they keep a source's own 4-bit codes, and this one has none",
    6: "6 bits left out: mixed bits are closer to the source, which has 4-bit codes of its own",
}


def graph_precisions(
    bits: Sequence[int], checkpoint: Checkpoint, decoder: Decoder, names: TensorNames
) -> tuple[Precision, ...]:
    """The precision of every graph, the dense one first.

    Args:
        bits: the bits asked for, of 8, 6, MIXED, 4 and 3. `left_out` says which of them get no graph.
        checkpoint, decoder, names: the source.

    Raises:
        CheckpointError: mixed precision alone is asked for, and the source has no 4-bit codes.
    """
    mixed = mixed_precision(checkpoint, decoder, names) if MIXED in bits else None
    found = [Precision(level, level) for level in bits if level not in (THREE, MIXED)]
    if THREE in bits:
        narrow = max(decoder.num_layers - 1, 1)
        found.append(Precision(THREE, 4, (*(_THREE_BITS,) * narrow, LayerBits.alike(4))[: decoder.num_layers]))
    if mixed is not None:
        if 8 not in bits or is_mostly_coded(checkpoint, decoder, names):
            found = [each for each in found if each.bits != 6]
        # without 8 bits the mixed graph is the dense one, so no wider one is there to lend it an LM head
        found.append(mixed if 8 in bits else with_dense_head(mixed))
    if not found:
        raise CheckpointError(f"bits: {_LEFT_OUT[MIXED]}; give --bits 8,4")
    return tuple(sorted(found, key=lambda precision: -precision.bits))


def left_out(bits: Sequence[int], precisions: Sequence[Precision]) -> tuple[str, ...]:
    """One line for each of the bits asked for that has no graph, and why."""
    return tuple(_LEFT_OUT[level] for level in bits if level not in {each.bits for each in precisions})


def mixed_precision(checkpoint: Checkpoint, decoder: Decoder, names: TensorNames) -> Precision | None:
    """The precision of the mixed graph, its LM head at the fewest bits worth trying.

    None if no matrix of a layer has 4-bit codes in the source.
    """
    sources = matrices(decoder, names)
    layers = tuple(
        LayerBits(*(_matrix_bits(checkpoint, sources[f"layers.{layer}.{matrix}"]) for matrix in LayerBits._fields))
        for layer in range(decoder.num_layers)
    )
    found = {bits for layer in layers for bits in layer}
    if found == {6}:
        return None
    if found == {4}:
        layers = (_ONLY_CODES,) * decoder.num_layers
    return Precision(MIXED, _matrix_bits(checkpoint, sources[decoder.lm_head]), layers)


def is_mostly_coded(checkpoint: Checkpoint, decoder: Decoder, names: TensorNames) -> bool:
    """True if at least half of the layers' weights are in matrices of which the source has 4-bit codes of all rows."""
    of_layers = {name: modules for name, modules in matrices(decoder, names).items() if name.startswith("layers.")}
    sizes = {name: math.prod(matrix_shape(decoder, name)) for name in of_layers}
    coded = sum(sizes[name] for name, modules in of_layers.items() if _matrix_bits(checkpoint, modules) == 4)
    return 2 * coded >= sum(sizes.values())


def with_dense_head(mixed: Precision) -> Precision:
    """The mixed precision with an LM head of 8 bits, for a mixed graph that is the dense one.

    An LM head that has 4-bit codes in the source stays at 4 bits.
    """
    return mixed if mixed.lm_head_bits == 4 else replace(mixed, lm_head_bits=8)


def _matrix_bits(checkpoint: Checkpoint, modules: Sequence[str]) -> int:
    """The bits of the matrix that joins these modules of the source."""
    coded = [checkpoint.codes(f"{module}.weight", 0, 1) is not None for module in modules]
    return 4 if all(coded) else 8 if any(coded) else 6
