"""The log of a training: one line of JSON per record in `train.jsonl`, and the same figures for TensorBoard."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
                file.truncate(min(size, file.seek(0, 2)))  # of a log that was lost nothing is there to keep
            self._file = self._path.open("a", encoding="utf-8")
        self.note, self._events = "", None
        try:
            self._events = _EventFile(folder / TENSORBOARD, step)
        except ImportError:
            self.note = "no TensorBoard logs: the package tensorboard is missing; pip install 'sol-rt[train]'"

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
        if self._events is not None:
            numbers = {name: value for name, value in kept.items() if isinstance(value, (int, float))}
            self._events.write({f"{stage}/{part}{name}": value for name, value in numbers.items()}, step)

    def close(self) -> None:
        """Closes the files. Raises WriteError."""
        with write_errors(self._path):
            self._file.close()
        if self._events is not None:
            self._events.close()


class _EventFile:
    """A new event file of TensorBoard, which drops the records of other files of `folder` from `step` on.

    torch's SummaryWriter writes in a thread: it reports a full disk later, without the file's name, and with a
    traceback on stderr. Every call here may raise WriteError; the constructor also ImportError, without the package.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import scalar

        self._event: Any = Event
        self._scalar: Any = scalar
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        with write_errors(self._path):
            folder.mkdir(exist_ok=True)
            self._records = RecordWriter(self._path.open("xb"))
            self._add(file_version="brain.Event:2")
            self._add(session_log=SessionLog(status=SessionLog.START), step=step)
            self._records.flush()

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Writes values by their tags, and flushes them."""
        with write_errors(self._path):
            for tag, value in values.items():
                self._add(summary=self._scalar(tag, value), step=step)
            self._records.flush()

    def close(self) -> None:
        with write_errors(self._path):
            self._records.close()

    def _add(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
