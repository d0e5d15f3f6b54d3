"""Opens a checkpoint, whatever its file format: picks one of the two readers."""

from __future__ import annotations

from pathlib import Path

from sol_rt.errors import CheckpointError
from sol_rt.export.sources.checkpoint import Checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint folder or a `.gguf` file.

    Raises CheckpointError if the path is neither, or the checkpoint cannot be read.
    """
    # imported here, for each reader needs packages that the other does not
    if path.is_file() and path.suffix.lower() == ".gguf":
        from sol_rt.export.sources.gguf.checkpoint import GgufCheckpoint

        return GgufCheckpoint(path)
    if path.is_dir():
        from sol_rt.export.sources.hf_checkpoint import HfCheckpoint

        return HfCheckpoint(path)
    raise CheckpointError(f"{path}: got no checkpoint, expected a folder with config.json or a .gguf file")
