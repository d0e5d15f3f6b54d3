"""Computes an importance matrix for llama.cpp's quantization: the mean square of every matrix's inputs on a text.

    python benchmarks peers.importance FILE.gguf TEXT DEST.npz

What llama-imatrix computes, by the source model in float32 on windows of 512 tokens: for a matrix with inputs x_t [K],
mean over tokens of x_t^2, float32 [K], under the name of its tensor in the .gguf.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from sol_rt.errors import SolError
from sol_rt.export.quantize.gptq import one_thread_each
from sol_rt.export.sources.decoder import family_of, from_hf_config
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.export.weights.hessian import matrix_inputs
from sol_rt.progress import silent
from sol_rt.text.tokenizer import FILE, Tokenizer

WINDOW, WINDOWS = 512, 48
_TENSORS = {
    "qkv": ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    "o": ("attn_output",),
    "up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
"""Matrix of a layer in a bundle to the tensors that hold its rows in a .gguf, whichever there are."""


def tensor_names(matrix: str) -> list[str]:
    """Names that the tensors of a bundle's matrix may have in a .gguf."""
    if matrix in ("embed", "head"):
        return ["token_embd.weight", "output.weight"]
    _, layer, part = matrix.split(".")
    return [f"blk.{layer}.{name}.weight" for name in _TENSORS[part]]


def importance(source: Path, text: Path) -> dict[str, np.ndarray]:
    """Mean squares of the inputs on the first windows of a text: tensor name -> float32 [K]."""
    checkpoint = open_checkpoint(source)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write_tokenizer(Path(folder))
        tokenizer = Tokenizer.from_file(Path(folder) / FILE)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))
    windows = [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)][:WINDOWS]
    family, decoder = family_of(checkpoint.config), from_hf_config(checkpoint.config)
    found = {}
    with one_thread_each() as pool, torch.inference_mode():
        for (inputs,) in matrix_inputs(checkpoint, decoder, family, windows, silent, pool):
            squares = torch.stack([batch.square().sum(0) for batch in inputs.batches]).sum(0) / inputs.tokens
            for name in tensor_names(inputs.matrix):
                found[name] = squares.numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("dest", type=Path)
    arguments = parser.parse_args()
    try:
        found = importance(arguments.source, arguments.text)
    except (SolError, OSError) as error:
        sys.exit(f"error: {error}")
    with arguments.dest.open("wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
