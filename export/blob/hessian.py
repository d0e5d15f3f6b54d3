"""The Hessians that GPTQ needs: second moments of the inputs of every matrix, on a calibration text.

For a matrix with K input channels, over all tokens t of the text with inputs x_t [K]:

    H = E[x x^T] = 1 / T * sum over t of x_t x_t^T        float32 [K, K]

The source model runs in float32, one layer at a time, on all windows of the text. Its inputs are those of a dense step.
A matrix is quantized once for all channel densities, so the sparser inputs of the other variants play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

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
) -> Iterator[tuple[str, Tensor]]:
    """The Hessian of every matrix that is multiplied, layer by layer and the LM head last.

    Args:
        checkpoint, decoder, family: the source model.
        windows: token ids. Each window starts a context; all are cut to the length of the shortest.
        progress: reports the number of layers run.

    Yields:
        The name of a matrix of the bundle, and its Hessian, float32 [K, K]. The LM head is called `embed` if it is tied
        to the embedding, otherwise `head`.

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
        sums: dict[str, Tensor] = {}
        hooks = [
            model.module(module).register_forward_pre_hook(_adder(sums, matrix))
            for module, matrix in read_by.items()
            if matrix.startswith(prefix)
        ]
        batches = tuple(model.run(layer, batch) for batch in batches)
        for hook in hooks:
            hook.remove()
        while sums:
            matrix, total = sums.popitem()
            yield matrix, _mean(total, len(windows) * tokens, matrix)
    progress("calibrating", decoder.num_layers, decoder.num_layers)
    head = "embed" if decoder.tied else "head"
    add = _adder(sums, head)
    for batch in batches:
        add(None, (model.final_norm(batch),))
    yield head, _mean(sums[head], len(windows) * tokens, head)


def _adder(sums: dict[str, Tensor], matrix: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
    """A forward hook that adds x x^T of a module's inputs [..., K] to `sums[matrix]` [K, K]."""

    def add(module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2)
        if matrix in sums:
            sums[matrix].addmm_(x.T, x)
        else:
            sums[matrix] = x.T @ x

    return add


def _mean(total: Tensor, count: int, matrix: str) -> Tensor:
    total /= count
    if not torch.isfinite(total.diagonal()).all():
        raise CheckpointError(
            f"calibration: the inputs of {matrix} are not finite in float32; "
            "the checkpoint is damaged, or export with --calibration none"
        )
    return total
