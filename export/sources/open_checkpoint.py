"""Opens a checkpoint, whatever its file format: picks one of the three readers."""

from __future__ import annotations

from pathlib import Path

from sol_rt.errors import CheckpointError
from sol_rt.export.sources.checkpoint import Checkpoint

_TORCH = ("*.safetensors", "*.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def open_checkpoint(path: Path, trust_remote_code: bool = False) -> Checkpoint:
    """Opens a checkpoint folder or a `.gguf` file. Of a folder with an ONNX graph and other weights, the others count.

    With `trust_remote_code`, code that comes with the checkpoint may run to convert its tokenizer.

    Raises CheckpointError if the path is neither, or the checkpoint cannot be read.
    """
    # imported here, for each reader needs packages that the others do not
    if path.is_file() and path.suffix.lower() == ".gguf":
        from sol_rt.export.sources.gguf.checkpoint import GgufCheckpoint

        return GgufCheckpoint(path)
    if path.is_dir():
        from sol_rt.export.sources.folder.hf_checkpoint import HfCheckpoint
        from sol_rt.export.sources.folder.onnx_checkpoint import OnnxCheckpoint, onnx_graph

        files = sorted(path.glob("*.gguf"))
        if files and not (path / "config.json").exists():
            raise CheckpointError(f"{path}: got a folder of GGUF files, expected one of them; name it, {files[0]}")
        if onnx_graph(path) is not None and not any(any(path.glob(pattern)) for pattern in _TORCH):
            return OnnxCheckpoint(path, trust_remote_code)
        return HfCheckpoint(path, trust_remote_code)
    raise CheckpointError(f"{path}: got no checkpoint, expected a folder with config.json or a .gguf file")
