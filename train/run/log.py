"""The log of a training: one line of JSON per record in `train.jsonl`, and the same figures for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from sol_rt.atomic_write import write_errors

LOG = "train.jsonl"
TENSORBOARD = "tensorboard"


class TrainLog:
    """Appends records to `train.jsonl` and, where the package is installed, TensorBoard's event files.

    A resumed training drops the records that a killed run wrote after its last checkpoint.

    Args:
        folder: of the training.
        size: bytes of `train.jsonl` to keep.
        step: of the first record to come; TensorBoard drops those from there on.

    Attributes:
        note: a line for the user where TensorBoard's package is missing; otherwise empty.
    """

    def __init__(self, folder: Path, size: int = 0, step: int = 0) -> None:
        self._path = folder / LOG
        with write_errors(self._path):
            self._path.touch()
            with self._path.open("r+b") as file:
                file.truncate(size)
            self._file = self._path.open("a", encoding="utf-8")
        self._board = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.note = "no TensorBoard logs: the package tensorboard is missing; pip install 'sol-rt[train]'"
        else:
            self.note = ""
            self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step)

    @property
    def size(self) -> int:
        """Bytes of `train.jsonl` so far."""
        self._file.flush()
        return self._file.tell()

    def write(self, stage: str, step: int, values: Mapping[str, float | str], part: str = "") -> None:
        """Writes a record. Numbers that are not finite become null. Raises WriteError.

        Args:
            stage: name of the stage or comparison.
            step: updates of all stages so far.
            values: the figures, by name.
            part: put before the names in TensorBoard, where a stage writes several records at one step.
        """
        kept = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with write_errors(self._path):
            self._file.write(json.dumps({"stage": stage, "step": step, **kept}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in kept.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{stage}/{part}{name}", value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
