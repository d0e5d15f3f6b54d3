"""Weights of the torch reference model, from a bundle or from a checkpoint.

A nested matrix is held as one byte per weight (`code8` of docs/reference/bundle-details.md, section 2), and so is level
3, where the bundle has it. Values at 3, 4, 6 or 8 bits are computed on first use, and kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE, Precision
from sol_rt.bundle.config import BLOCK, CODEBOOK, CONFIG_NAME, TensorEntry, Variant
from sol_rt.bundle.config_reader import read_config
from sol_rt.export.quantize.codebook import unpack_codes
from sol_rt.export.quantize.nested import LEVEL_OFFSETS, quantize_matrix
from sol_rt.export.quantize.source_codes import SourceCodes
from sol_rt.export.sources.checkpoint import check_tensors
from sol_rt.export.sources.checkpoint import matrices as checkpoint_matrices
from sol_rt.export.sources.checkpoint import vectors as checkpoint_vectors
from sol_rt.export.sources.decoder import Decoder, from_hf_config
from sol_rt.export.sources.families import FAMILIES
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.export.sources.rope import table_names, tables
from sol_rt.export.weights.padding import PaddedTensors

_PARTS = ("base", "scale", "zero", "plane1", "plane2", "low", "high", "block_scale", "output_scale", CODEBOOK)
# weight bits -> the bits of code8 that they read
_MASKS = {4: 0xF0, 6: 0xFC, 8: 0xFF}


class Matrix(nn.Module):
    """A weight matrix [N, K] (outputs, inputs) as the reference model uses it."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[tuple[int, torch.dtype], Tensor] = {}

    def at(self, bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix at 3, 4, 6 or 8 bits, [N, K]. It is dequantized on first use, and kept until `release`."""
        kept, device = self._kept.get((bits, dtype)), next(self.buffers()).device
        if kept is None or kept.device != device:
            kept = self._kept[bits, dtype] = self._values(bits).to(dtype)
        return kept

    def _values(self, bits: int) -> Tensor:
        """The matrix at some bits, float32 [N, K]."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Rows with all their bits, float32 [..., K], for ids, int64 [...]."""
        raise NotImplementedError

    def release(self) -> None:
        """Drops dequantized values. What they are made from stays."""
        self._kept.clear()


class FloatMatrix(Matrix):
    """The source's own weights, float32 [N, K], the same at all bits. For checks of the architecture."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.float(), persistent=False)

    def _values(self, bits: int) -> Tensor:
        return self.values

    def rows(self, ids: Tensor) -> Tensor:
        return self.values[ids]


class NestedMatrix(Matrix):
    """Nested codes.

    value = (code8 & mask(bits) - zero - offset(bits)) * scale / 16, by docs/reference/bundle-details.md section 2.

    Args:
        codes: uint8 [N, K], code8. Bits of planes that the bundle lacks are 0.
        scale: float16 [N, K / 32].
        zero: uint8 [N, K / 32].
        widest: most bits that the codes hold: 4, 6 or 8.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor, widest: int) -> None:
        super().__init__()
        self.widest = widest
        for name, tensor in (("codes", codes), ("scale", scale), ("zero", zero)):
            self.register_buffer(name, tensor, persistent=False)

    def _values(self, bits: int) -> Tensor:
        return self._dequantize(self.codes, self.scale, self.zero, bits)

    def rows(self, ids: Tensor) -> Tensor:
        return self._dequantize(self.codes[ids], self.scale[ids], self.zero[ids], self.widest)

    def _dequantize(self, codes: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
        if bits not in _MASKS or bits > self.widest:
            held = ", ".join(str(level) for level in _MASKS if level <= self.widest)
            raise ValueError(f"weight bits: got {bits}, the matrix holds {held}")
        offsets = zero.float().add_(LEVEL_OFFSETS[bits])
        values = torch.unflatten((codes & _MASKS[bits]).float(), -1, (-1, BLOCK))
        values.sub_(offsets.unsqueeze(-1)).mul_(scale.float().div_(16).unsqueeze(-1))
        return values.flatten(-2)


class CodedMatrix(Matrix):
    """Level 3: codes into tables.

    value = output_scale * scale * codebook[table, code], as docs/reference/bundle-details.md, section 2, has it.

    Args:
        codes: uint8 [N, K], 0 … 7.
        scale, table: uint8 [N, K / 32], 0 … 63 and 0 … 3.
        output_scale: float16 [N].
        codebook: int8 [4, 8].
    """

    codes: Tensor
    scale: Tensor
    table: Tensor
    output_scale: Tensor
    codebook: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, table: Tensor, output_scale: Tensor, codebook: Tensor) -> None:
        super().__init__()
        parts = {"codes": codes, "scale": scale, "table": table, "output_scale": output_scale, "codebook": codebook}
        for name, tensor in parts.items():
            self.register_buffer(name, tensor, persistent=False)

    def _values(self, bits: int) -> Tensor:
        if bits != THREE:
            raise ValueError(f"weight bits: got {bits}, the matrix holds 3")
        step = self.scale.float() * self.output_scale.float().unsqueeze(-1)
        entries = step.unsqueeze(-1) * self.codebook.float()[self.table.long()]  # [N, K / 32, 8]
        codes = torch.unflatten(self.codes.long(), -1, (-1, BLOCK))
        return entries.gather(-1, codes).flatten(-2)


class TwoFoldMatrix(Matrix):
    """A matrix that a bundle holds twice: in nested codes and at level 3."""

    def __init__(self, nested: NestedMatrix, coded: CodedMatrix) -> None:
        super().__init__()
        self.nested, self.coded = nested, coded

    def at(self, bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.coded.at(bits, dtype) if bits == THREE else self.nested.at(bits, dtype)

    def rows(self, ids: Tensor) -> Tensor:
        return self.nested.rows(ids)

    def release(self) -> None:
        self.nested.release()
        self.coded.release()


def quantized(values: Tensor, planes: int = 2) -> NestedMatrix:
    """Quantizes a matrix, float32 [N, K], as the exporter does, with `planes` residual planes: 0, 1 or 2."""
    nested = quantize_matrix(values.numpy(), planes)
    scale, zero = (torch.from_numpy(part.T.copy()) for part in (nested.scale, nested.zero))
    return NestedMatrix(torch.from_numpy(nested.codes), scale, zero, 4 + 2 * planes)


class ModelWeights(nn.Module):
    """All weights of a decoder, by their names in the bundle.

    Args:
        decoder: description of the decoder.
        matrices: `embed`, `head` (untied only), `layers.{i}.qkv`, `.o`, `.up`, `.down`.
        vectors: float32 norms, biases and the rotary tables [max_context, rotary_dim / 2], `rope.cos`, `rope.sin` and
            those of further rotary embeddings.
        variants: a bundle's variants by key. Other variants take the exporter's rule for active channels, the same in
            all layers, and read the LM head at their own bits.
    """

    def __init__(
        self,
        decoder: Decoder,
        matrices: Mapping[str, Matrix],
        vectors: Mapping[str, Tensor],
        variants: Mapping[str, Variant] | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self._matrices = nn.ModuleDict({_key(name): matrix for name, matrix in matrices.items()})
        self._variants = dict(variants or {})
        attended = decoder.num_heads * decoder.head_dim
        self._rule = {1.0: (decoder.hidden_size, decoder.intermediate_size, decoder.hidden_size, attended)}
        self._names = frozenset(vectors)
        for name, vector in vectors.items():
            self.register_buffer(_key(name), vector.float(), persistent=False)

    def matrix(self, name: str) -> Matrix:
        matrix = self._matrices[_key(name)]
        assert isinstance(matrix, Matrix)
        return matrix

    def vector(self, name: str) -> Tensor:
        return self.get_buffer(_key(name))

    def vector_or_none(self, name: str) -> Tensor | None:
        return self.vector(name) if name in self._names else None

    def active_counts(self, action: Action) -> tuple[tuple[int, ...], ...]:
        """The active channels of an action, a count per layer: its variant's active_up, _down, _qkv and _o."""
        variant, d = self._variants.get(action.variant), self.decoder
        if variant is not None:
            return variant.active_up, variant.active_down, variant.active_qkv, variant.active_o
        if action.channel_density not in self._rule:
            # needs onnx, which the reference model of a bundle does without
            from sol_rt.export.graphs.graph import LayerShapes, active_counts

            self._rule[action.channel_density] = active_counts(action.channel_density, LayerShapes.of(d))
        return tuple((count,) * d.num_layers for count in self._rule[action.channel_density])

    def precision(self, action: Action) -> Precision:
        """Bits of the matrices that the action reads."""
        variant = self._variants.get(action.variant)
        return Precision(action.bits, action.bits) if variant is None else variant.precision

    def state(self) -> dict[str, Tensor]:
        """Every stored tensor by name: vectors, and codes, scales and zero points of matrices."""
        return dict(self.named_buffers())

    def release(self) -> None:
        """Drops all dequantized values. They are computed again on use."""
        for matrix in self._matrices.values():
            assert isinstance(matrix, Matrix)
            matrix.release()


def _key(name: str) -> str:
    return name.replace(".", "_")  # torch reads dots as a path of modules


def read_bundle(path: Path | str) -> ModelWeights:
    """Reads the weights of a bundle folder. Raises BundleError where its config is damaged."""
    folder = Path(path)
    config = read_config(folder / CONFIG_NAME)
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    decoder = from_hf_config(hf_config, config.model.max_context)
    return read_blob(folder / config.weights_file, config.tensors, decoder, config.variants)


def read_blob(
    path: Path,
    tensors: Mapping[str, TensorEntry],
    decoder: Decoder,
    variants: Mapping[str, Variant] | None = None,
) -> ModelWeights:
    """Reads a weights file, in which `tensors` says where each tensor lies; `variants` as in ModelWeights."""
    blob = np.memmap(path, np.uint8, "r")
    matrices = {name.rpartition(".")[0] for name in tensors if name.endswith((".base", ".low"))}
    parts = {CODEBOOK, *(f"{name}.{part}" for name in matrices for part in _PARTS)}
    return ModelWeights(
        decoder,
        {name: _read_matrix(blob, tensors, name) for name in sorted(matrices)},
        {name: torch.from_numpy(_read(blob, entry)) for name, entry in tensors.items() if name not in parts},
        variants,
    )


def _read_matrix(blob: npt.NDArray[np.uint8], tensors: Mapping[str, TensorEntry], name: str) -> Matrix:
    nested = _read_nested(blob, tensors, name) if f"{name}.base" in tensors else None
    coded = _read_coded(blob, tensors, name) if f"{name}.low" in tensors else None
    if nested is not None and coded is not None:
        return TwoFoldMatrix(nested, coded)
    matrix = nested or coded
    assert matrix is not None
    return matrix


def read_matrix(path: Path, tensors: Mapping[str, TensorEntry], name: str) -> NestedMatrix:
    """Reads one nested matrix of a weights file, such as `embed`."""
    return _read_nested(np.memmap(path, np.uint8, "r"), tensors, name)


def _read(blob: npt.NDArray[np.uint8], entry: TensorEntry) -> npt.NDArray[Any]:
    """A copy of a tensor in its own shape. A uint4 tensor stays packed, with half its last axis."""
    data = np.array(blob[entry.offset : entry.offset + entry.bytes])
    if entry.dtype == "uint4":
        return data.reshape(*entry.shape[:-1], entry.shape[-1] // 2)
    return data.view(entry.dtype).reshape(entry.shape)


def _read_nested(blob: npt.NDArray[np.uint8], tensors: Mapping[str, TensorEntry], name: str) -> NestedMatrix:
    base_entry = tensors[f"{name}.base"]
    base = _read(blob, base_entry)
    if base_entry.dtype == "uint4":
        codes = np.stack([base & 15, base >> 4], axis=-1).reshape(base_entry.shape).T << 4
    else:
        codes = _unpacked(base, bits=4) << 4
    widest = 4
    for plane, shift in (("plane1", 2), ("plane2", 0)):
        if f"{name}.{plane}" in tensors:
            codes = codes | _unpacked(_read(blob, tensors[f"{name}.{plane}"]), bits=2) << shift
            widest += 2
    scale, zero = (torch.from_numpy(_read(blob, tensors[f"{name}.{part}"]).T.copy()) for part in ("scale", "zero"))
    return NestedMatrix(torch.from_numpy(np.ascontiguousarray(codes)), scale, zero, widest)


def _read_coded(blob: npt.NDArray[np.uint8], tensors: Mapping[str, TensorEntry], name: str) -> CodedMatrix:
    low, high, block_scale, output_scale = (
        _read(blob, tensors[f"{name}.{part}"]) for part in ("low", "high", "block_scale", "output_scale")
    )
    scales = block_scale.T
    codebook = _read(blob, tensors.get(f"{name}.{CODEBOOK}") or tensors[CODEBOOK])
    parts = unpack_codes(low, high), scales & 63, scales >> 6, output_scale, codebook
    return CodedMatrix(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


def _unpacked(plane: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Unpacks a block-major plane, uint8 [KB, N, 4 * bits], to codes, uint8 [N, 32 * KB], lowest bits first."""
    parts = [plane >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    blocks = np.stack(parts, axis=-1).reshape(*plane.shape[:2], BLOCK)
    return blocks.transpose(1, 0, 2).reshape(plane.shape[1], -1)


def read_checkpoint(
    path: Path | str, matrix: Callable[[Tensor], Matrix] | None = None, max_context: int | None = None
) -> ModelWeights:
    """Reads the weights of a checkpoint folder or `.gguf` file, by default quantized as its bundle would be.

    Tests check the arithmetic and the bundle's file against these weights.

    Args:
        path: what `sol_rt.export.sources.open_checkpoint.open_checkpoint` takes.
        matrix: as in `from_tensors`; None: `quantized`.
        max_context: rows of the rope tables; None: the model's own context.

    Raises CheckpointError where the checkpoint is damaged or of an unknown architecture.
    """
    checkpoint = open_checkpoint(Path(path))
    decoder = from_hf_config(checkpoint.config, max_context)
    check_tensors(checkpoint, decoder, FAMILIES[decoder.family])
    return _assembled(PaddedTensors(checkpoint, decoder), matrix or quantized)


def from_tensors(
    decoder: Decoder, read: Callable[[str], Tensor], matrix: Callable[[Tensor], Matrix] = quantized
) -> ModelWeights:
    """Assembles the weights of a checkpoint.

    Args:
        decoder: description of the checkpoint.
        read: gives the tensor of a Hugging Face name, with `.weight` or `.bias`.
        matrix: makes a matrix of float32 [N, K]: `quantized`, or `FloatMatrix` for the source's own weights.
    """
    return _assembled(PaddedTensors(_Tensors(read), decoder), matrix)


def _assembled(source: PaddedTensors, matrix: Callable[[Tensor], Matrix]) -> ModelWeights:
    decoder = source.decoder
    names = FAMILIES[decoder.family].names

    def joined(target: str, tensors: tuple[str, ...]) -> Tensor:
        return torch.cat([torch.from_numpy(source.read(target, tensor)) for tensor in tensors])

    vectors = {name: joined(name, tensors) for name, tensors in checkpoint_vectors(decoder, names).items()}
    for index, rope in enumerate(decoder.ropes):
        of_rope = zip(table_names(index), tables(rope, 0, decoder.max_context), strict=True)
        vectors |= {name: torch.from_numpy(table) for name, table in of_rope}
    matrices = {
        name: matrix(joined(name, tuple(f"{module}.weight" for module in modules)))
        for name, modules in checkpoint_matrices(decoder, names).items()
    }
    return ModelWeights(decoder, matrices, vectors)


@dataclass
class _Tensors:
    """A checkpoint of tensors that a function gives by name."""

    get: Callable[[str], Tensor]
    path: Path = Path("tensors")
    config: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    note: str = ""

    def names(self) -> Collection[str]:
        return ()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.get(name).shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        return self.get(name)[start:stop].detach().float().numpy()

    def codes(self, name: str, start: int, stop: int) -> SourceCodes | None:
        return None

    def write_tokenizer(self, folder: Path) -> None:
        raise NotImplementedError
