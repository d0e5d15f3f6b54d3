"""State of a file in the file system. While the state stays the same, so does the file's content."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

CLOCK_NS = 50_000_000
"""Nanoseconds; the clocks that usual file systems stamp files with are finer."""


class FileState(NamedTuple):
    """Identity of a file, and the time of its last change.

    Attributes:
        device, inode: the file, whatever its name.
        size: bytes.
        modified: time of the last write, in nanoseconds. Programs can set it.
        changed: time of the last change of content, name or rights, in nanoseconds. Programs cannot set it.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, file: Path | int) -> FileState:
        """The state of the file at a path, or of an open descriptor. Raises OSError."""
        stat = os.stat(file)
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def same_content(self, other: FileState) -> bool:
        """True if the file was not written to between the two states. A rename or a removal is no write."""
        return self[:4] == other[:4]

    def let_the_clock_tick(self) -> None:
        """Waits until a change of the file gets another time than the last one has, so that none is overlooked."""
        age = time.time_ns() - self.changed
        if 0 <= age < CLOCK_NS:
            time.sleep((CLOCK_NS - age) / 1e9)
