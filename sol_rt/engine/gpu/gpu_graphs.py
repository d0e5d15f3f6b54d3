"""A bundle's graphs for GPUs: an archive of graphs without weights, and how the values that they ask for are made.

`export/gpu.py` writes it. Docs: docs/reference/bundle-details.md, section 8.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import BLOCK, TensorEntry, tensor_bytes
from sol_rt.bundle.graph_file import external_tensors
from sol_rt.errors import BundleError, ProviderError, brief

KERNELS, FLOAT16, FLOAT32 = "kernels", "float16", "float32"
"""Forms of the graphs: for native operators, and for function bodies on GPUs with float16 and without it."""
INDEX = "index.json"
STEM, SUFFIX = "gpu", ".zip"
REPACKED = "repacked"
_MOST_BYTES = 1 << 28
_HINT = "export the model again, or run sol-rt export --target gpu -m BUNDLE"


@dataclass(frozen=True)
class Value:
    """A graph input that holds weights, or values computed from weights.

    Attributes:
        name: of the graph input; equal names are equal values.
        weights: tensors of the blob that it is made of.
        dtype, shape: type and shape that the graph reads; of a repacked one, uint8 [N, K / 32, 16].
        recipe: ONNX model from those tensors, its inputs `0`, `1`, …, to the value; None where it is the one tensor
            itself.
        repacked: True if its only tensor is a channel-major base [K, N] to be repacked block by block.
    """

    name: str
    weights: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    recipe: bytes | None = field(default=None, repr=False)
    repacked: bool = False

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)


def archive_of(files: Iterable[str]) -> str | None:
    """Name of the archive among a bundle's files; None if there is none."""
    return next((name for name in files if re.fullmatch(rf"{STEM}(-[0-9a-f]{{8}})?\{SUFFIX}", name)), None)


def member(form: str, run: str, key: str) -> str:
    """Name of a graph in the archive.

    Args:
        form: KERNELS, FLOAT16 or FLOAT32.
        run: `step` for graphs of one token, `batch` for those of any number.
        key: of KERNELS the graph file; of the others the action's tag for a step, the variant's key for a batch.
    """
    return f"{form}/{run}/{key.removesuffix('.onnx')}.onnx"


class GpuGraphs:
    """The graphs of one form.

    Args:
        bundle: the bundle.
        form: KERNELS, FLOAT16 or FLOAT32.
        provider: the provider's name, for messages.

    Attributes:
        path: the archive.

    Raises ProviderError where the bundle lacks them, BundleError where they are damaged.
    """

    def __init__(self, bundle: Bundle, form: str, provider: str) -> None:
        self._form, self._tensors, self._provider, self._bundle = form, bundle.config.tensors, provider, bundle.path
        name = archive_of(bundle.config.files)
        names: list[str] = []
        if name is not None:
            self.path = bundle.path / name
            try:
                self._archive = zipfile.ZipFile(io.BytesIO(bundle.read(name)))
            except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
                raise BundleError(self.path, "", "no zip archive", "graphs for GPUs", _HINT) from None
            names = self._archive.namelist()
        if not any(each.startswith(f"{form}/") for each in names):
            raise self._missing("graphs for this GPU")
        self._made = self._read_index()

    def read(self, run: str, key: str) -> bytes:
        """The graph of a run, as `member` names it. Raises ProviderError where there is none, BundleError."""
        name = member(self._form, run, key)
        if name not in self._archive.NameToInfo:
            raise self._missing(f"graph {name}")
        content = self._content(name)
        if external_tensors(self.path / name, content):
            raise BundleError(self.path, name, "a graph with weights", "one that is given them", _HINT)
        return content

    def values(self, inputs: Iterable[str]) -> tuple[Value, ...]:
        """The values among the inputs of a graph; the others are small ones or the cache."""
        found = ((name, self._tensors.get(name), self._made.get(name)) for name in inputs)
        return tuple(
            made or _stored(name, entry) for name, entry, made in found if made is not None or entry is not None
        )

    def _missing(self, what: str) -> ProviderError:
        advice = f"sol-rt export --target gpu -m {self._bundle} adds what is missing; or use --provider cpu"
        return ProviderError(f"provider {self._provider}: {self._bundle} has no {what}; {advice}")

    def _content(self, name: str) -> bytes:
        try:
            if self._archive.getinfo(name).file_size > _MOST_BYTES:
                raise BundleError(self.path, name, "a huge file", f"at most {_MOST_BYTES >> 20} MiB", _HINT)
            return self._archive.read(name)
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise BundleError(self.path, name, f"nothing that can be read ({error})", "a file", _HINT) from None

    def _read_index(self) -> dict[str, Value]:
        content = self._content(INDEX)
        try:
            return {value.name: value for value in self._indexed(json.loads(content))}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(self.path, INDEX, brief(error), "how values are made", _HINT) from None

    def _indexed(self, document: Mapping[str, Any]) -> Iterator[Value]:
        recipes: dict[str, bytes] = {}
        for name, made in document.items():
            weights, recipe = tuple(made["of"]), made["recipe"]
            if not all(weight in self._tensors for weight in weights):
                got = f"weights of {brief(name)} that the bundle lacks"
                raise BundleError(self.path, INDEX, got, "some of its tensors", _HINT)
            if recipe != REPACKED and recipe not in recipes:
                recipes[recipe] = self._content(recipe)
                external_tensors(self.path / recipe, recipes[recipe])  # refuses what would end the process
            value = Value(
                name, weights, made["dtype"], tuple(made["shape"]), recipes.get(recipe), repacked=recipe == REPACKED
            )
            if not weights or not all(type(size) is int for size in value.shape) or value.bytes < 0:
                raise ValueError(f"{name}: no tensor")
            yield value


def _stored(name: str, entry: TensorEntry | None) -> Value:
    assert entry is not None
    return Value(name, (name,), entry.dtype, entry.shape)


def repacked(base: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A channel-major base, its packed bytes uint8 [rows * columns / 2], as uint8 [columns, rows / 32, 16].

    Byte j of a block holds the codes of channels 2j, in the low nibble, and 2j + 1.
    """
    pairs = base.reshape(rows // BLOCK, BLOCK // 2, 2, columns // 2)
    even, odd = pairs[:, :, 0], pairs[:, :, 1]
    outputs = np.stack([(even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)], axis=-1)
    return np.ascontiguousarray(outputs.reshape(rows // BLOCK, BLOCK // 2, columns).transpose(2, 0, 1))
