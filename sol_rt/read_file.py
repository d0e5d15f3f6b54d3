"""Reads files that somebody else may have written or named: regular ones alone, and never more than a bound.

A device may have no end, and a pipe that nobody writes to would be waited for.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from pathlib import Path
from typing import IO

MOST_BYTES = 256 << 20
"""The largest file that is read at once: text, a config, a graph, a trace."""
_PIECE = 1 << 20
_WAIT_SECONDS = 1.0
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY", "O_CLOEXEC"))
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class TooLargeError(OSError):
    """A file has more bytes than are read."""


def read_bytes(path: Path | str, most: int = MOST_BYTES, *, pipes: bool = False) -> bytes:
    """Content of a regular file of at most `most` bytes.

    Args:
        path: the file.
        most: bytes.
        pipes: whether to read a pipe, too, to its end. One that nobody has opened for writing is an error after 1 s.

    Raises OSError, whose `strerror` names what was got and what is expected; ValueError for a name that no file can
    have.
    """
    with _opened(path, pipes) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise _too_large(most, path)
        waits = pipes and hasattr(select, "poll") and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
        first = _from_a_writer(file, path) if waits else b""  # a pipe of Windows waits by itself
        return first + read_all(file, most, path)


def require_regular(path: Path | str) -> None:
    """Raises OSError if a library that is about to open the file would not find a regular one. As `read_bytes`."""
    _opened(path, pipes=False).close()


def read_all(file: IO[bytes], most: int, name: Path | str) -> bytes:
    """The rest of an open file or pipe. Raises OSError; TooLargeError if it has more than `most` bytes."""
    pieces, size = [], 0
    while piece := file.read(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise _too_large(most, name)
    return b"".join(pieces)


def _too_large(most: int, name: Path | str) -> TooLargeError:
    return TooLargeError(errno.EFBIG, f"got more than {most >> 20} MB, expected at most that", str(name))


def _opened(path: Path | str, pipes: bool) -> IO[bytes]:
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)  # returns at once, also for a pipe
    file = open(descriptor, "rb", buffering=0)  # noqa: SIM115  returned
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if kind != stat.S_IFREG and not (pipes and kind == stat.S_IFIFO):
            raise OSError(errno.EINVAL, f"got {_KINDS.get(kind, 'no file')}, expected a regular file", str(path))
    except BaseException:
        file.close()
        raise
    return file


def _from_a_writer(file: IO[bytes], path: Path | str) -> bytes:
    """Waits for a pipe's writer, and then lets every read wait. Returns what was read already.

    Raises OSError if nobody opens the pipe for writing.
    """
    pipe, first = file.fileno(), b""
    watch = select.poll()
    watch.register(pipe, select.POLLIN)
    if not watch.poll(1000 * _WAIT_SECONDS):
        try:
            first = os.read(pipe, _PIECE)
            if not first:
                raise OSError(errno.EPIPE, "got a pipe that nobody writes to, expected text", str(path))
        except BlockingIOError:  # a writer has opened it, and takes its time
            pass
    os.set_blocking(pipe, True)
    return first
