"""Measures what 2 bits would lose in place of 3, and the bytes that a step would read.

    python benchmarks/two_bits.py BUNDLE SOURCE -f FILE --fit TEXT
    ... --chunks 12 --variants s100-q4,s075-q3,s062-q3,s050-q3 --threads 1

A 2-bit level is what the 3-bit level would be with four tables of 4 entries in place of 8: the same scales, and codes
of 2 bits. So a copy of the bundle gets tables in which every entry stands twice, and codes by GPTQ on them. The kernels
then compute what 2 bits would. Codes of 2 bits are as many bytes as `low` is, so `high` is not counted. Another copy is
fitted to the same text with tables of 8 entries, so that the number of entries is what differs.

SOURCE is the checkpoint of which BUNDLE was exported, TEXT what both copies are fitted to. Prints Markdown like that of
`low_bits.py`. Beside the bundle there must be room for two copies of its weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from low_bits import SIZE, losses_of

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import BLOCK, CODEBOOK, CONFIG_NAME, SolConfig
from sol_rt.export.actions.calibration_text import read_text
from sol_rt.export.blob.hessian import matrix_inputs
from sol_rt.export.blob.padding import PaddedTensors
from sol_rt.export.blob.weights_file import sampled_blocks
from sol_rt.export.graphs.graph import weight_bytes
from sol_rt.export.quantize import codebook_kernels as kernels
from sol_rt.export.quantize.codebook import (
    Codebook,
    choose_codes,
    choose_grid,
    learn_codebook,
    pack_block_scale,
    pack_codes,
)
from sol_rt.export.quantize.gptq import HessianFactor, one_thread_each
from sol_rt.export.quantize.gptq_kernels import LANES
from sol_rt.export.sources.checkpoint import matrices
from sol_rt.export.sources.decoder import Decoder, family_of, from_hf_config
from sol_rt.export.sources.families import Family
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.store.home import find_bundle
from sol_rt.store.progress import silent

_WINDOWS = 8
_ROUNDS = 8  # of k-means: on the 135M, 6 and 30 give tables of 4 that lose more
_START = np.array([[-127, -38, 38, 127], [-127, -60, 60, 127], [-127, -55, 1, 60], [-60, -1, 55, 127]], np.float32)


def learn_tables_of_four(blocks: npt.NDArray[np.float32]) -> Codebook:
    """Four tables of 4 entries by k-means, as `learn_codebook` finds those of 8; each entry twice, int8 [4, 8]."""
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    blocks = (blocks[largest[:, 0] > 0] / largest[largest[:, 0] > 0]).astype(np.float32, copy=False)
    w = np.zeros((BLOCK, -(-len(blocks) // LANES) * LANES), np.float32)
    w[:, : len(blocks)] = blocks.T
    tables = _START
    for _ in range(_ROUNDS):
        above, below = np.zeros((4, 8)), np.zeros((4, 8))
        kernels.sum_by_entry(w, np.repeat(tables, 2, axis=1), above, below)
        sums = above.reshape(4, 4, 2).sum(axis=2), below.reshape(4, 4, 2).sum(axis=2)
        tables = np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1e-30), tables).astype(np.float32)
        tables = np.sort(tables, axis=1)
        tables *= 127 / np.abs(tables).max(axis=1, keepdims=True)
    return np.repeat(np.rint(tables), 2, axis=1).astype(np.int8)


class Copy:
    """A copy of a bundle in a folder, whose matrices of 3 bits can be written anew."""

    def __init__(self, source: Bundle, folder: Path, codebook: Codebook) -> None:
        config = source.config
        for name in (*config.files, CONFIG_NAME):
            if name != config.weights_file:
                os.link(source.path / name, folder / name)
        shutil.copyfile(source.path / config.weights_file, folder / config.weights_file)
        self._tensors = config.tensors
        self._data = np.memmap(folder / config.weights_file, np.uint8, "r+")
        self._codebook = codebook
        self._view(CODEBOOK)[:] = codebook
        self.bundle = Bundle(folder, config, identity="", verify=False)

    def _view(self, name: str) -> npt.NDArray[Any]:
        entry = self._tensors[name]
        return self._data[entry.offset : entry.offset + entry.bytes].view(entry.dtype).reshape(entry.shape)

    def fit(self, matrix: str, first: int, w: npt.NDArray[np.float32], hessian: HessianFactor) -> None:
        """Writes outputs first, first + 1, … of a matrix, float32 [n, K], by GPTQ."""
        grid = choose_grid(w, self._codebook, hessian.conditional)
        codes = choose_codes(w, self._codebook, grid, [hessian])
        last = first + len(w)
        low, high = pack_codes(codes)
        self._view(f"{matrix}.low")[:, first // 4 : last // 4] = low
        self._view(f"{matrix}.high")[:, first // 8 : last // 8] = high
        self._view(f"{matrix}.block_scale")[:, first:last] = pack_block_scale(grid)
        self._view(f"{matrix}.output_scale")[first:last] = grid.output_scale


def fit(
    copies: Sequence[Copy],
    padded: PaddedTensors,
    coded: Mapping[str, tuple[str, ...]],
    family: Family,
    windows: Sequence[Sequence[int]],
) -> None:
    """Fits the matrices of 3 bits of all copies to a text."""
    with one_thread_each() as pool:
        for groups in matrix_inputs(padded.checkpoint, padded.decoder, family, windows, silent, pool):
            (inputs,) = groups
            if inputs.matrix not in coded:
                continue
            hessian = HessianFactor.of(inputs.hessian(), inputs.tokens)
            first = 0
            for module in coded[inputs.matrix]:
                w = padded.read(inputs.matrix, f"{module}.weight")
                for each in [pool.submit(copy.fit, inputs.matrix, first, w, hessian) for copy in copies]:
                    each.result()
                first += len(w)
            print(f"fitted {inputs.matrix}", file=sys.stderr, flush=True)


def bytes_at_two_bits(config: SolConfig, decoder: Decoder, key: str, coded: Mapping[str, tuple[str, ...]]) -> int:
    """Bytes that a step of a variant would read with codes of 2 bits in place of 3."""
    high = {f"{matrix}.high": replace(config.tensors[f"{matrix}.high"], bytes=0) for matrix in coded}
    return weight_bytes(decoder, {**config.tensors, **high}, config.variants[key])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("source", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--fit", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--variants")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    source = Bundle.open(find_bundle(args.bundle))
    config = source.config
    checkpoint = open_checkpoint(args.source)
    decoder, family = from_hf_config(checkpoint.config, config.model.max_context), family_of(checkpoint.config)
    padded = PaddedTensors(checkpoint, decoder)
    of_layers = {name: modules for name, modules in matrices(decoder, family.names).items() if "layers." in name}
    coded = {name: modules for name, modules in of_layers.items() if f"{name}.low" in config.tensors}
    blocks = sampled_blocks(padded, coded)
    text = read_text(args.fit, source.tokenizer(), config.model.max_context, _WINDOWS)

    keys = args.variants.split(",") if args.variants else list(config.variants)
    actions = [action for action in (Action.parse(f"k100-{key}") for key in keys) if action != config.dense]
    narrow = [action for action in actions if config.variants[action.variant].bits == THREE]
    with (
        tempfile.TemporaryDirectory(dir=source.path.parent) as three,
        tempfile.TemporaryDirectory(dir=source.path.parent) as two,
    ):
        copies = [
            Copy(source, Path(three), learn_codebook(blocks)),
            Copy(source, Path(two), learn_tables_of_four(blocks)),
        ]
        fit(copies, padded, coded, family, text.fitted)
        losses = losses_of(copies[0].bundle, [config.dense, *actions], args.file, args.chunks, args.threads)
        of_two = losses_of(copies[1].bundle, [config.dense, *narrow], args.file, args.chunks, args.threads)
    print(f"{losses.shape[1]} windows of {SIZE}, dense loss {losses[0].mean():.4f} nats\n")
    print("| variant | MB a step | added nats |\n|---|--:|--:|")
    for action, values in zip(actions, losses[1:] - losses[0], strict=True):
        print(row(action.variant, config.variants[action.variant].weight_bytes, values))
    for action, values in zip(narrow, of_two[1:] - of_two[0], strict=True):
        size = bytes_at_two_bits(config, decoder, action.variant, coded)
        print(row(action.variant.replace("q3", "q2"), size, values))


def row(name: str, size: int, values: npt.NDArray[np.float64]) -> str:
    """A row of the table; ± is the standard error over windows."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"| `{name}` | {size / 1e6:.1f} | {values.mean():.4f} ± {error:.4f} |"


if __name__ == "__main__":
    main()
