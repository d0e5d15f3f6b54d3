"""The inputs of every matrix on a calibration text, and their second moments: the Hessians that GPTQ needs.

For a matrix with K input channels, over all tokens t of the text with inputs x_t [K]:

    H = E[x x^T] = 1 / T * sum over t of x_t x_t^T        float32 [K, K]

A matrix of many channels may be split into groups of channels, each with a Hessian of its own. Inputs of different
groups then count as uncorrelated. Time and memory grow with the square of a group.

The source model runs in float32, one layer at a time, on all windows of the text. Its inputs are those of a dense step.
A matrix is quantized once for all channel densities, so the sparser inputs of the other variants play no part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sol_rt.bundle.config import BLOCK
from sol_rt.errors import CheckpointError
from sol_rt.export.sources.checkpoint import Checkpoint, matrices
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import Family
from sol_rt.export.sources.source_model import SourceModel
from sol_rt.export.weights.padding import padded_inputs
from sol_rt.progress import Progress

_TOKENS_AT_ONCE = 512
_COLUMNS_AT_ONCE = 512  # of a Hessian; below its diagonal nothing is computed


@dataclass(frozen=True)
class Inputs:
    """The inputs of a group of K channels of a matrix.

    Attributes:
        matrix: name of the matrix in the bundle. The LM head is called `embed` if it is tied to the embedding.
        batches: inputs of several tokens each, float32 [T, K].
    """

    matrix: str
    batches: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all batches."""
        return sum(map(len, self.batches))

    @torch.inference_mode()
    def hessian(self) -> Tensor:
        """H, float32 [K, K].

        Raises CheckpointError if the model's activations are not finite.
        """
        channels = self.batches[0].shape[1]
        found = torch.empty(channels, channels)
        for start in range(0, channels, _COLUMNS_AT_ONCE):
            part = slice(start, start + _COLUMNS_AT_ONCE)
            total = self.batches[0][:, part].T @ self.batches[0][:, start:]
            for batch in self.batches[1:]:
                total.addmm_(batch[:, part].T, batch[:, start:])
            total /= self.tokens
            found[part, start:] = total
            found[start:, part] = total.T
        if not torch.isfinite(found.diagonal()).all():
            raise CheckpointError(
                f"calibration: the inputs of {self.matrix} are not finite in float32; "
                "the checkpoint is damaged, or export with --calibration none"
            )
        return found


def matrix_inputs(
    checkpoint: Checkpoint,
    decoder: Decoder,
    family: Family,
    windows: Sequence[Sequence[int]],
    progress: Progress,
    pool: Executor,
    most_channels: int | None = None,
) -> Iterator[list[Inputs]]:
    """The inputs of every matrix that is multiplied, layer by layer and the LM head last.

    Args:
        checkpoint, decoder, family: the source model.
        windows: token ids. Each window starts a context; all are cut to the length of the shortest.
        progress: reports the number of layers run.
        pool: runs the windows of a layer.
        most_channels: of a group; by default a matrix is one group.

    Yields:
        The groups of input channels of a matrix, in order.
    """
    tokens = min(map(len, windows))
    model = SourceModel(checkpoint, decoder, family, tokens)
    with torch.inference_mode():
        x = model.embed([token for window in windows for token in window[:tokens]]).view(len(windows), tokens, -1)
        batches = torch.split(x, max(1, _TOKENS_AT_ONCE // tokens))
    read_by = {modules[0]: matrix for matrix, modules in matrices(decoder, family.names).items()}
    current = threading.local()  # .read: what the batch that this thread runs has given the matrices to read

    def keep(matrix: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            current.read[matrix] = inputs[0].flatten(0, -2)

        return hook

    def run(layer: Any, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        current.read = {}
        with torch.inference_mode():
            return model.run(layer, batch), current.read

    for index, layer in enumerate(model.layers()):
        progress("calibrating", index, decoder.num_layers)
        of_layer = {name: matrix for name, matrix in read_by.items() if matrix.startswith(f"layers.{index}.")}
        hooks = [model.module(name).register_forward_pre_hook(keep(matrix)) for name, matrix in of_layer.items()]
        results = list(pool.map(partial(run, layer), batches))
        for hook in hooks:
            hook.remove()
        batches = tuple(out for out, _ in results)
        for matrix in of_layer.values():
            batches_of = [padded_inputs(decoder, matrix, read.pop(matrix)) for _, read in results]
            yield _groups(matrix, batches_of, most_channels)
    progress("calibrating", decoder.num_layers, decoder.num_layers)
    with torch.inference_mode():
        read = [model.final_norm(batch).flatten(0, -2) for batch in batches]
    head = decoder.lm_head
    yield _groups(head, [padded_inputs(decoder, head, batch) for batch in read], most_channels)


def _groups(matrix: str, batches: Sequence[Tensor], most_channels: int | None) -> list[Inputs]:
    sizes = channel_groups(batches[0].shape[1], most_channels)
    split = [torch.split(batch, sizes, dim=1) for batch in batches]
    return [Inputs(matrix, parts) for parts in zip(*split, strict=True)]


def channel_groups(channels: int, most: int | None) -> list[int]:
    """The sizes of the groups into which a matrix's input channels are split: multiples of 32, none above `most`."""
    count = 1 if most is None else -(-channels // most)
    blocks = channels // BLOCK
    return [BLOCK * (blocks // count + (group < blocks % count)) for group in range(count)]
