"""Reads GGUF files as checkpoints.

Tensors get Hugging Face's names and row order, and are dequantized by rows as they are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from sol_rt.errors import CheckpointError
from sol_rt.export.quantize.source_codes import SourceCodes
from sol_rt.export.sources.checkpoint import FloatArray
from sol_rt.export.sources.decoder import family_of_gguf
from sol_rt.export.sources.families import FAMILIES, Family, GgufForm, TensorNames
from sol_rt.export.sources.families.stored import head_by_head
from sol_rt.export.sources.gguf import tokenizer as gguf_tokenizer
from sol_rt.export.sources.gguf.config import hf_config
from sol_rt.export.sources.gguf.four_bit import FOUR_BIT
from sol_rt.export.sources.refusals import SourceSettings, gguf_refusal
from sol_rt.read_file import require_regular

if TYPE_CHECKING:
    from sol_rt.export.sources.checkpoint import FloatArray

_READABLE = "floats of 32 or 16 bits, or one of the types Q2_K to Q8_0, IQ1 to IQ4, TQ and MXFP4"
_NORMS = (
    ("attn_norm", ""),
    ("attn_post_norm", ""),
    ("mlp_norm", ""),
    ("mlp_post_norm", ""),
    ("q_norm", "q"),
    ("k_norm", "k"),
)
"""Fields of TensorNames, and what has as many of them as heads."""
_ROPE_FACTORS = ("rope_freqs", "rope_factors_short", "rope_factors_long")
_LONGEST_ARRAY = 1 << 22  # values of one key; the longest are vocabularies
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_key_value_heads")  # of q, k and v
_BLOCK = re.compile(r"blk\.(\d+)\.")
_TIED_SAMPLE = 256  # rows compared to find out whether two quantized tensors hold the same matrix


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The package's reader, which believes every count in a file and takes 10 s for a large vocabulary.

    This one ends where the file does, and makes plain arrays in place of memory maps of each value.
    """

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        kind = np.dtype(dtype)
        if int(offset) + int(count) * kind.itemsize > len(self.data):
            raise ValueError("it ends too early")
        order = self.byte_order if override_order is None else override_order
        return np.frombuffer(self.data, kind.newbyteorder(order), int(count), int(offset))

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY and self._get(orig_offs + 4, np.uint64)[0] > _LONGEST_ARRAY:
            raise ValueError(f"an array of more than {_LONGEST_ARRAY} values")
        return super()._get_field_parts(orig_offs, raw_type)


@dataclass(frozen=True)
class _Source:
    """Source of a tensor's rows: shape[0] rows of a GGUF tensor from `first` on, permuted by `order` if it is given.

    llama.cpp added `offset` to the rows. A vector is `one_row` of a GGUF matrix, the row `first`.

    llama.cpp added `offset` to them. A vector is `one_row` of a GGUF matrix, the row `first`.
    """

    tensor: Any
    first: int
    shape: tuple[int, ...]
    order: npt.NDArray[np.int64] | None = None
    offset: float = 0.0
    one_row: bool = False

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start … stop - 1 as the file stores them: numbers of 16 bits or more, or uint8 [n, bytes per row]."""
        data: npt.NDArray[Any] = self.tensor.data
        if self.one_row:
            return data[self.first, start:stop]
        if self.order is not None:
            return data[self.first + self.order[start:stop]]
        return data[self.first + start : self.first + stop]


class GgufCheckpoint:
    """A memory-mapped `.gguf` file.

    Raises CheckpointError if the file is damaged, its architecture unknown, or a tensor's type unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            require_regular(path)
            reader = _Reader(str(path))
            self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        except Exception as error:  # the reader raises many types for a damaged file
            reason = " ".join(str(error).split())[:160]
            unknown = re.search(rf"(\d+)\W* is not a valid {GGMLQuantizationType.__name__}", reason)
            if unknown:
                raise CheckpointError(
                    f"{path}: got a tensor of type {unknown[1]}, which the package gguf does not know, "
                    f"expected {_READABLE}; update the package, or take another file"
                ) from error
            raise CheckpointError(f"{path}: damaged GGUF file ({reason}); fetch it again") from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        if reason := gguf_refusal(self._metadata, self._tensors, FAMILIES):
            raise CheckpointError(f"{path}: {reason}")
        family, form = family_of_gguf(self._metadata)
        if f"{form.names.embed}.weight" not in self._tensors:
            raise CheckpointError(f"{path}: tensor {form.names.embed}.weight is missing; fetch the file again")
        tied = self._is_tied(form.names)
        factors = {
            name: [float(value) for value in self._tensors[f"{name}.weight"].data]
            for name in _ROPE_FACTORS
            if f"{name}.weight" in self._tensors
        }
        settings = hf_config(self._metadata, tied, factors, self._biases())
        self.config: Mapping[str, Any] = SourceSettings(settings, f"{path}: metadata")
        self.license, self.note = str(self._metadata.get("general.license", "")), ""
        self._check_metadata(form)
        self._sources = self._locate(family, form, tied)
        for source in self._sources.values():
            self._dequantized(source.tensor.data[:1], source.tensor)  # an unreadable type fails here, at once

    def names(self) -> Collection[str]:
        return self._sources.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._sources[name].shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        source = self._sources[name]
        values = self._dequantized(source.rows(start, source.shape[0] if stop is None else stop), source.tensor)
        values = values.reshape(len(values), *source.shape[1:])
        return values - np.float32(source.offset) if source.offset else values

    def codes(self, name: str, start: int, stop: int) -> SourceCodes | None:
        source = self._sources[name]
        parse = FOUR_BIT.get(source.tensor.tensor_type)
        return None if parse is None else parse(source.rows(start, stop))

    def write_tokenizer(self, folder: Path) -> None:
        gguf_tokenizer.write(self._metadata, self.config, folder)

    def _check_metadata(self, form: GgufForm) -> None:
        """Raises CheckpointError where metadata and tensors disagree about layers or heads."""
        layers = 1 + max((int(match[1]) for name in self._tensors if (match := _BLOCK.match(name))), default=-1)
        said = self.config["num_hidden_layers"]
        if layers != said:
            raise CheckpointError(
                f"{self.path}: GGUF key {form.architecture}.block_count: got {said}, but the tensors are of {layers} "
                "layers; fetch the file again, or convert the model again"
            )
        for i in range(layers):
            for module, count in zip(form.names.qkv, _HEADS, strict=False):
                tensor = self._tensors.get(f"{module.format(i=i)}.weight")
                heads = self.config[count]
                if len(form.names.qkv) == 3 and tensor is not None and int(tensor.shape[-1]) % (2 * heads):
                    raise CheckpointError(
                        f"{self.path}: tensor {tensor.name}: got {int(tensor.shape[-1])} rows, expected a multiple of "
                        f"{2 * heads} for {heads} heads, by its metadata; fetch the file again"
                    )
        key = f"{form.architecture}.rope.dimension_count"
        rotated, channels = self._metadata.get(key, 0), self.config["head_dim"]
        if isinstance(rotated, list):  # of equal numbers, as hf_config has checked
            rotated = rotated[0]
        if rotated > channels:
            raise CheckpointError(
                f"{self.path}: GGUF key {key}: got {rotated}, expected at most {channels}, the channels of a head; "
                "fetch the file again, or convert the model again"
            )

    def _dequantized(self, rows: npt.NDArray[Any], tensor: Any) -> FloatArray:
        try:
            values = gguf.quants.dequantize(rows, tensor.tensor_type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {tensor.name}: got type {tensor.tensor_type.name}, expected {_READABLE}; "
                "take another file of the model"
            ) from error
        return np.require(values, np.float32, "W")  # float32 tensors are views of the read-only mapping

    def _biases(self) -> list[str]:
        """The projections of the first layer that have a bias, `attn_q`, `ffn_down` …, and the norms of q and k."""
        named = (re.fullmatch(r"blk\.0\.(\w+)\.bias", name) for name in self._tensors)
        found = [match[1] for match in named if match and not match[1].endswith("_norm")]
        return [*found, *(name for name in ("attn_q_norm", "attn_k_norm") if f"blk.0.{name}.weight" in self._tensors)]

    def _is_tied(self, names: TensorNames) -> bool:
        """True if the LM head is the embedding: it is absent, or the same matrix in another quantization.

        Some converters write such a second copy.
        """
        embed, head = self._tensors[f"{names.embed}.weight"], self._tensors.get(f"{names.head}.weight")
        if head is None:
            return True
        if list(head.shape) != list(embed.shape) or f"{names.head}.bias" in self._tensors:
            return False
        rows = slice(0, None, max(1, len(embed.data) // _TIED_SAMPLE))
        one, other = (self._dequantized(tensor.data[rows], tensor).ravel() for tensor in (embed, head))
        scale = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
        return scale > 0 and float(one @ other) / scale > 0.98

    def _locate(self, family: Family, form: GgufForm, tied: bool) -> dict[str, _Source]:
        hf, own = family.names, form.names
        found: dict[str, _Source] = {}
        heads = {"q": self.config["num_attention_heads"], "k": self.config["num_key_value_heads"]}

        def add(hf_module: str, module: str, rotated: str = "", offset: float = 0.0, *, filters: bool = False) -> None:
            for kind in ("weight", "bias"):
                tensor = self._tensors.get(f"{module}.{kind}")
                if tensor is not None:
                    shape = tuple(int(size) for size in reversed(tensor.shape))
                    if filters and len(shape) == 2:
                        shape = (shape[0], 1, shape[1])  # llama.cpp leaves out the one input channel
                    order = _interleaved(shape[0], heads[rotated]) if rotated else None
                    if family.qkv_by_head and module.endswith("attn_qkv"):
                        order = np.argsort(head_by_head(shape[0], heads["q"]))  # llama.cpp puts all of q first
                    found[f"{hf_module}.{kind}"] = _Source(tensor, 0, shape, order, offset)

        def add_norm(hf_module: str | None, module: str | None, count: int = 1) -> None:
            if hf_module is None or module is None:
                return
            if "{h}" not in hf_module:
                add(hf_module, module, offset=form.norm_offset)
                return
            tensor = self._tensors.get(f"{module}.weight")
            if tensor is None:
                return
            for head in range(count):  # a row of the tensor for each head
                row = _Source(tensor, head, (int(tensor.shape[0]),), one_row=True)
                found[f"{hf_module.format(h=head)}.weight"] = row

        def named(field: str) -> tuple[str | None, str | None]:
            return getattr(hf, field), getattr(own, field)

        add_norm(hf.final_norm, own.final_norm)
        add(hf.embed, own.embed)
        if not tied:
            add(hf.head, own.head)
        elif f"{own.head}.weight" in self._tensors and self._finer(own.head, own.embed):
            add(hf.embed, own.head)
        for i in range(self.config["num_hidden_layers"]):
            for hf_module, module in [(hf.o, own.o), (hf.down, own.down), *zip(hf.up, own.up, strict=True)]:
                add(hf_module.format(i=i), module.format(i=i))
            if hf.conv:
                add(hf.conv_in.format(i=i), own.conv_in.format(i=i))
                add(hf.conv_out.format(i=i), own.conv_out.format(i=i))
                add(hf.conv.format(i=i), own.conv.format(i=i), filters=True)
            for name, count in _NORMS:
                hf_norm, own_norm = (module and module.replace("{i}", str(i)) for module in named(name))
                add_norm(hf_norm, own_norm, heads.get(count, 1))
            packed = f"blk.{i}.attn_qkv"
            if len(hf.qkv) == 3 and f"{packed}.weight" in self._tensors:
                found.update(self._split(packed, tuple(module.format(i=i) for module in hf.qkv)))
                continue
            for hf_module, module in zip(hf.qkv, own.qkv, strict=True):
                part = module[-1]
                add(hf_module.format(i=i), module.format(i=i), part if form.interleaves_qk and part in heads else "")
        # what is left keeps its name, and is refused by that where tensors are checked
        located = {source.tensor.name for source in found.values()}
        located |= {f"{name}.weight" for name in (*_ROPE_FACTORS, *((own.head, own.embed) if tied else ()))}
        for name, tensor in self._tensors.items():
            if name not in located:
                found[name] = _Source(tensor, 0, tuple(int(size) for size in reversed(tensor.shape)))
        return found

    def _split(self, packed: str, modules: tuple[str, ...]) -> dict[str, _Source]:
        """The tensors of q, k and v within a joint matrix."""
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        found = {}
        for kind in ("weight", "bias"):
            tensor = self._tensors.get(f"{packed}.{kind}")
            if tensor is None:
                continue
            shape = tuple(int(size) for size in reversed(tensor.shape))
            head_dim, first = shape[0] // (heads + 2 * kv_heads), 0
            for module, count in zip(modules, (heads, kv_heads, kv_heads), strict=True):
                found[f"{module}.{kind}"] = _Source(tensor, first, (count * head_dim, *shape[1:]))
                first += count * head_dim
        return found

    def _finer(self, one: str, other: str) -> bool:
        first, second = self._tensors[f"{one}.weight"], self._tensors[f"{other}.weight"]
        return bool(first.n_bytes > second.n_bytes)


def _interleaved(rows: int, heads: int) -> npt.NDArray[np.int64]:
    """Row in the file of each row of a q or k projection: llama.cpp interleaves the two halves of each head."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).ravel()
