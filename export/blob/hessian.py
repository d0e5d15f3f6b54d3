"""The Hessians that GPTQ needs: second moments of the inputs of every matrix, on a calibration text.

For a matrix with K input channels, over all tokens t of the text with inputs x_t [K]:

    H = E[x x^T] = 1 / T * sum over t of x_t x_t^T        float32 [K, K]

A matrix of many channels may be split: its channels then form groups, each with a Hessian of its own, as if inputs of
different groups had nothing to do with each other. Time and memory grow with the square of a group.

The source model runs in float32, one layer at a time, on all windows of the text. Its inputs are those of a dense step.
A matrix is quantized once for all channel densities, so the sparser inputs of the other variants play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sol_rt.bundle.config import BLOCK
from sol_rt.errors import CheckpointError
from sol_rt.export.sources.checkpoint import Checkpoint, matrices
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import Family
from sol_rt.export.sources.source_model import SourceModel
from sol_rt.store.progress import Progress

_TOKENS_AT_ONCE = 2048


@torch.inference_mode()
def input_hessians(
    checkpoint: Checkpoint,
    decoder: Decoder,
    family: Family,
    windows: Sequence[Sequence[int]],
    progress: Progress,
    most_channels: int | None = None,
) -> Iterator[tuple[str, list[Tensor]]]:
    """The Hessians of every matrix that is multiplied, layer by layer and the LM head last.

    Args:
        checkpoint, decoder, family: the source model.
        windows: token ids. Each window starts a context; all are cut to the length of the shortest.
        progress: reports the number of layers run.
        most_channels: of a group; by default a matrix is one group.

    Yields:
        The name of a matrix of the bundle, and the Hessians of its groups of channels, in order. A group of K channels
        has one of float32 [K, K]. The LM head is called `embed` if it is tied to the embedding, otherwise `head`.

    Raises:
        CheckpointError: the model's activations are not finite.
    """
    tokens = min(map(len, windows))
    model = SourceModel(checkpoint, decoder, family, tokens)
    x = model.embed([token for window in windows for token in window[:tokens]]).view(len(windows), tokens, -1)
    batches = torch.split(x, max(1, _TOKENS_AT_ONCE // tokens))
    read_by = {modules[0]: matrix for matrix, modules in matrices(decoder, family.names).items()}
    for index, layer in enumerate(model.layers()):
        progress("calibrating", index, decoder.num_layers)
        prefix = f"layers.{index}."
        sums: dict[str, list[Tensor]] = {}
        hooks = [
            model.module(module).register_forward_pre_hook(_adder(sums, matrix, most_channels))
            for module, matrix in read_by.items()
            if matrix.startswith(prefix)
        ]
        batches = tuple(model.run(layer, batch) for batch in batches)
        for hook in hooks:
            hook.remove()
        while sums:
            matrix, totals = sums.popitem()
            yield matrix, [_mean(total, len(windows) * tokens, matrix) for total in totals]
    progress("calibrating", decoder.num_layers, decoder.num_layers)
    head = "embed" if decoder.tied else "head"
    add = _adder(sums, head, most_channels)
    for batch in batches:
        add(None, (model.final_norm(batch),))
    yield head, [_mean(total, len(windows) * tokens, head) for total in sums[head]]


def channel_groups(channels: int, most: int | None) -> list[int]:
    """The sizes of the groups into which a matrix's input channels are split: multiples of 32, none above `most`."""
    count = 1 if most is None else -(-channels // most)
    blocks = channels // BLOCK
    return [BLOCK * (blocks // count + (group < blocks % count)) for group in range(count)]


def _adder(
    sums: dict[str, list[Tensor]], matrix: str, most_channels: int | None
) -> Callable[[Any, tuple[Tensor, ...]], None]:
    """A forward hook that adds x x^T of a module's inputs [..., K] to `sums[matrix]`, one [k, k] for each group."""

    def add(module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2)
        groups = torch.split(x, channel_groups(x.shape[1], most_channels), dim=1)
        if matrix in sums:
            for total, group in zip(sums[matrix], groups, strict=True):
                total.addmm_(group.T, group)
        else:
            sums[matrix] = [group.T @ group for group in groups]

    return add


def _mean(total: Tensor, count: int, matrix: str) -> Tensor:
    total /= count
    if not torch.isfinite(total.diagonal()).all():
        raise CheckpointError(
            f"calibration: the inputs of {matrix} are not finite in float32; "
            "the checkpoint is damaged, or export with --calibration none"
        )
    return total
