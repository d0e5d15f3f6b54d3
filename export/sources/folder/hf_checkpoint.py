"""Reads checkpoint folders in Hugging Face's layout: safetensors or PyTorch files, whole or sharded."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sol_rt.errors import CheckpointError, one_line
from sol_rt.export.quantize.source_codes import SourceCodes
from sol_rt.export.sources import tokenizer_files
from sol_rt.export.sources.folder.vision import text_config, text_name
from sol_rt.read_file import read_bytes, require_regular

if TYPE_CHECKING:
    from sol_rt.export.sources.checkpoint import FloatArray


class HfCheckpoint:
    """A folder with `config.json` and weights. Files are memory-mapped, so reading a tensor touches its own pages only.

    Of a vision model, it holds the text part, if that stands alone.

    Args:
        path: the folder.
        trust_remote_code: code that comes with the checkpoint may run, to convert its tokenizer.

    Raises CheckpointError if the folder has no config or no weights, or if a file is damaged.
    """

    def __init__(self, path: Path, trust_remote_code: bool = False) -> None:
        self.path = path
        self.config: Mapping[str, Any] = read_json(path / "config.json")
        self.license, self.note = card_license(path), ""
        self._trust_remote_code = trust_remote_code
        self._where: dict[str, tuple[_WeightsFile, str]] = {}
        self._open()
        self._keep_text_part()

    def names(self) -> Collection[str]:
        return self._where.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._where[name]
        return file.shape(stored)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        file, stored = self._where[name]
        tensor = file.rows(stored, start, self.shape(name)[0] if stop is None else stop)
        if not tensor.is_floating_point() or tensor.itemsize < 2:  # 8-bit floats keep their scales in other tensors
            raise CheckpointError(
                f"{self.path}: tensor {name}: got type {tensor.dtype}, expected floats of 16 bits or more; "
                "export from the unquantized checkpoint"
            )
        array: FloatArray = tensor.to(torch.float32).numpy()
        return array

    def codes(self, name: str, start: int, stop: int) -> SourceCodes | None:
        return None  # the weights are floats

    def write_tokenizer(self, folder: Path) -> None:
        tokenizer_files.copy_from_folder(self.path, self.config, folder, self._trust_remote_code)

    def _open(self) -> None:
        for single, index, kind in (
            ("model.safetensors", "model.safetensors.index.json", _Safetensors),
            ("pytorch_model.bin", "pytorch_model.bin.index.json", _TorchFile),
        ):
            files = self._listed(single, index)
            if files:
                for name in files:
                    weights = kind(self.path / name)
                    self._where.update({tensor: (weights, tensor) for tensor in weights.names()})
                return
        loose = [path.name for path in sorted(self.path.glob("*-of-*.safetensors"))]
        if loose:
            raise CheckpointError(
                f"{self.path}: got shards such as {loose[0]} without model.safetensors.index.json, which says what is "
                "in them; fetch the checkpoint again"
            )
        raise CheckpointError(
            f"{self.path}: got no weights, expected model.safetensors or pytorch_model.bin, whole or with its "
            "index.json, or model.onnx"
        )

    def _keep_text_part(self) -> None:
        """Leaves the text part of a vision model. Nothing else is changed."""
        names = {text_name(name): where for name, where in self._where.items()}
        config = text_config(self.config, "lm_head.weight" in names)
        if config is None:
            return
        left_out = len(self._where)
        self._where = {name: where for name, where in names.items() if name is not None}
        left_out -= len(self._where)
        self.config = config
        self.note = f"the text part of a vision model: {left_out} tensors that see images are left out"

    def _listed(self, single: str, index: str) -> list[str]:
        if (self.path / single).is_file():
            return [single]
        if not (self.path / index).is_file():
            return []
        weight_map = read_json(self.path / index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(_is_plain(name) for name in weight_map.values()):
            raise CheckpointError(f"{self.path / index}: key weight_map: expected file names by tensor")
        files = sorted(set(weight_map.values()))
        for name in files:
            if not (self.path / name).is_file():
                raise CheckpointError(f"{self.path}: shard {name} is missing; fetch the checkpoint again")
        return files


class _WeightsFile(Protocol):
    """One file of tensors, read by rows."""

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor: ...


class _Safetensors(_WeightsFile):
    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            require_regular(path)
            self._file: Any = safe_open(str(path), framework="pt")
            self._shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: damaged safetensors file ({one_line(error)}); fetch the checkpoint again"
            ) from error

    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_slice(name)[start:stop]
        return tensor


class _TorchFile(_WeightsFile):
    def __init__(self, path: Path) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch has some for odd files, of several lines
                self._tensors = _load(path)
        except Exception as error:  # a damaged file makes pickle, zipfile and torch raise a dozen unrelated types
            raise CheckpointError(
                f"{path}: damaged or unsafe PyTorch file ({one_line(error)}); fetch the checkpoint again"
            ) from error

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._tensors[name][start:stop]


def _load(path: Path) -> dict[str, torch.Tensor]:
    require_regular(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        loaded = torch.load(path, map_location="cpu", weights_only=True)  # files older than torch 1.6 cannot be mapped
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises CheckpointError if the file is missing or holds anything else."""
    try:
        content = json.loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected a checkpoint folder in Hugging Face's layout") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got {type(content).__name__}, expected a JSON object")
    return content


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def card_license(folder: Path) -> str:
    """`license:` in the front matter of the model card; empty if it has none."""
    try:
        card = read_bytes(folder / "README.md").decode("utf-8", "replace")
    except OSError:
        return ""
    front = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*([\w.+-]+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""
