"""The interface of a source, whatever its file format, and the tensors that make up each tensor of a bundle."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sol_rt.errors import CheckpointError, brief
from sol_rt.export.quantize.source_codes import SourceCodes
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import Family, TensorNames

FloatArray = npt.NDArray[np.float32]

_TIED_SAMPLE = 256  # rows compared to find out whether the LM head is the embedding
_NOT_READ = re.compile(r"rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$")
"""Tensors that a checkpoint may have beside its weights: tables that older versions of transformers stored."""


class Checkpoint(Protocol):
    """A source whose tensors are read on demand, under Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`).

    Attributes:
        path: the checkpoint's folder or file.
        config: the content of a Hugging Face `config.json`.
        license: SPDX name of the weights' licence; empty if the checkpoint does not say.
        note: what of the model is left out, for people; empty if nothing is.
    """

    path: Path
    config: Mapping[str, Any]
    license: str
    note: str

    def names(self) -> Collection[str]:
        """The names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that `names()` lists."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows start … stop - 1 as float32; only these are read from disk.

        Raises CheckpointError for unreadable types.
        """

    def codes(self, name: str, start: int, stop: int) -> SourceCodes | None:
        """Rows start … stop - 1 as the 4-bit codes that the file stores. None if it does not store 4-bit codes."""

    def write_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's JSON files, generation_config.json, and the chat template if there is one."""


def matrices(decoder: Decoder, names: TensorNames) -> dict[str, tuple[str, ...]]:
    """The bundle's quantized matrices, and the checkpoint's modules whose rows each of them joins."""
    found: dict[str, tuple[str, ...]] = {"embed": (names.embed,)}
    for i in range(decoder.num_layers):
        for part, modules in names.matrices(decoder.kind(i)).items():
            found[f"layers.{i}.{part}"] = tuple(module.format(i=i) for module in modules)
    if not decoder.tied:
        found["head"] = (names.head,)
    return found


def matrix_shape(decoder: Decoder, matrix: str) -> tuple[int, int]:
    """(N, K), outputs and input channels, of a matrix of the bundle."""
    qkv, o = decoder.mixer_shapes(decoder.kind_of(matrix))
    return {
        "embed": (decoder.vocab_size, decoder.hidden_size),
        "head": (decoder.vocab_size, decoder.hidden_size),
        "qkv": (qkv[1], qkv[0]),
        "o": (o[1], o[0]),
        "up": (decoder.up_size, decoder.hidden_size),
        "down": (decoder.hidden_size, decoder.intermediate_size),
    }[matrix.rsplit(".", 1)[-1]]


def vectors(decoder: Decoder, names: TensorNames) -> dict[str, tuple[str, ...]]:
    """The bundle's float vectors, and the checkpoint's tensors that each of them joins."""
    norm_kinds = ("weight", "bias") if decoder.norm == "layer" else ("weight",)
    qk_norms = [(names.q_norm, decoder.num_heads), (names.k_norm, decoder.num_kv_heads)]
    found: dict[str, tuple[str, ...]] = {f"final_norm.{kind}": (f"{names.final_norm}.{kind}",) for kind in norm_kinds}
    if decoder.head_bias:
        found["head.bias"] = (f"{names.head}.bias",)
    for i in range(decoder.num_layers):
        kind = decoder.kind(i)
        for norm in decoder.norms:
            module = getattr(names, norm)
            found.update({f"layers.{i}.{norm}.{k}": (f"{module.format(i=i)}.{k}",) for k in norm_kinds})
        if kind == "conv":
            for part in ("weight", "bias") if decoder.conv_bias else ("weight",):
                found[f"layers.{i}.conv.{part}"] = (f"{names.conv.format(i=i)}.{part}",)
        elif decoder.qk_norm != "none":  # a norm that all heads share is repeated for each
            found[f"layers.{i}.qk_norm.weight"] = tuple(
                f"{module.format(i=i, h=head)}.weight"
                for module, heads in qk_norms
                if module is not None
                for head in range(heads if decoder.qk_norm == "head" else 1)
            )
        biased = decoder.biased(kind)
        for part, modules in names.matrices(kind).items():
            if biased[part]:
                found[f"layers.{i}.{part}.bias"] = tuple(f"{module.format(i=i)}.bias" for module in modules)
    return found


def vector_shape(decoder: Decoder, vector: str) -> tuple[int, ...]:
    """The shape of a vector of the bundle. The filters of a short convolution are a row for each channel."""
    owner, part = vector.rsplit(".", 1)
    if owner.endswith("qk_norm"):
        return (decoder.qk_size,)
    if owner.endswith(".conv"):
        return (decoder.hidden_size, decoder.conv_size) if part == "weight" else (decoder.hidden_size,)
    return (decoder.hidden_size if owner.endswith("norm") else matrix_shape(decoder, owner)[0],)


def check_tensors(checkpoint: Checkpoint, decoder: Decoder, family: Family) -> None:
    """Raises CheckpointError for a tensor that is missing or has a wrong shape, and for one that nothing reads."""
    decoder, present = decoder.source, set(checkpoint.names())
    unread, quantized = set(present), _quantized(checkpoint.config)
    described = "its metadata" if checkpoint.path.is_file() else "config.json"
    _check_head(checkpoint, decoder, family.names)

    def take(tensors: tuple[str, ...], target: str, rows: int, columns: tuple[int, ...]) -> None:
        for tensor in tensors:
            if tensor not in present:
                reason = quantized or "the checkpoint is incomplete"
                raise CheckpointError(f"{checkpoint.path}: tensor {tensor} is missing; {reason}")
            unread.discard(tensor)
            shape = checkpoint.shape(tensor)
            if not shape or shape[1:] != columns:
                raise CheckpointError(
                    f"{checkpoint.path}: tensor {tensor}: got shape {list(shape)}, "
                    f"expected {list(columns)} after the first axis, by {described}{quantized and f'; {quantized}'}"
                )
        total = sum(checkpoint.shape(tensor)[0] for tensor in tensors)
        if total != rows:
            raise CheckpointError(
                f"{checkpoint.path}: {target} ({', '.join(tensors)}): got {total} rows, expected {rows}, by {described}"
            )

    for matrix, modules in matrices(decoder, family.names).items():
        rows, columns = matrix_shape(decoder, matrix)
        take(tuple(f"{module}.weight" for module in modules), matrix, rows, (columns,))
    for vector, tensors in vectors(decoder, family.names).items():
        rows, *columns_of = vector_shape(decoder, vector)
        take(tensors, vector, rows, (1, *columns_of) if columns_of else ())  # filters have one input channel each
    if decoder.tied:
        unread.discard(f"{family.names.head}.weight")
    unread = {tensor for tensor in unread if not _NOT_READ.search(tensor)}
    if unread:
        raise CheckpointError(
            f"{checkpoint.path}: got {len(unread)} tensors that {described} does not speak of, such as {min(unread)}, "
            f"expected those of {family.architecture} alone; the model would be run without them. Export from the "
            "checkpoint as it was released"
        )


def _quantized(config: Mapping[str, Any]) -> str:
    """Advises about a checkpoint whose config says that it is quantized; empty for others."""
    said = config.get("quantization_config")
    if not isinstance(said, Mapping):
        return ""
    return f"the checkpoint is quantized ({brief(said.get('quant_method'))}); export from the unquantized one"


def _check_head(checkpoint: Checkpoint, decoder: Decoder, names: TensorNames) -> None:
    """Raises CheckpointError if the tensors contradict what the config says of the LM head."""
    embed, head = f"{names.embed}.weight", f"{names.head}.weight"
    present = checkpoint.names()
    if not decoder.tied and embed in present and head not in present:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {head} is missing, but the config says that the head is not the embedding; if "
            "it is, set tie_word_embeddings to true in config.json"
        )
    if not decoder.tied or head not in present or embed not in present:
        return
    rows = checkpoint.shape(embed)[0]
    if checkpoint.shape(head) == checkpoint.shape(embed):
        sampled = range(0, rows, max(1, rows // _TIED_SAMPLE))
        if all(np.array_equal(_row(checkpoint, embed, row), _row(checkpoint, head, row)) for row in sampled):
            return
    raise CheckpointError(
        f"{checkpoint.path}: tensor {head} differs from {embed}, but the config says that the head is the embedding; "
        "set tie_word_embeddings to false in config.json if the head is its own"
    )


def _row(checkpoint: Checkpoint, name: str, row: int) -> FloatArray:
    return checkpoint.read(name, row, row + 1)
