"""Replaces files and folders as a whole: a reader, a crash or a full disk finds the old content or the new one.

New content is written beside the old one under a temporary name, flushed to the disk, and then renamed. The old file
is never written to, so a process that has mapped or opened it goes on with what it had. A process that is killed leaves
its temporary file behind; the next write into the same folder removes it. On Windows a temporary folder stays.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sol_rt.errors import WriteError, one_line

if sys.platform != "win32":
    import fcntl

TEMPORARY = ".sol-tmp"
"""Ending of the names of temporary files and folders. The names begin with a dot."""
_NAME_LENGTH = 40  # characters of the target's name that a temporary name repeats; names have at most 255 bytes
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h and linux/fs.h
_RENAME_SWAP = 2  # stdio.h of macOS


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Replaces the file at `path` by `text` in UTF-8. Raises WriteError; the file is then as it was."""
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces the file at `path` by `content`. Raises WriteError; the file is then as it was."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a new file that takes the place of the one at `path` at the end.

    If `path` is a link, its target is replaced. A device or a pipe is written to directly. After any exception the
    new file is removed, and the old one is as it was. Raises WriteError if the file cannot be written.
    """
    with write_errors(path):
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            # by the given name: what /dev/stdout leads to may have none of its own
            with open(path, "wb", opener=open_for_writing) as device:
                yield device
            return
        target = Path(os.path.realpath(path))
        remove_abandoned(target.parent)
        temporary = temporary_name(target)
        try:  # from before the file is made: an interrupt may fall right after it
            while (file := _new_file(temporary)) is None:
                temporary = temporary_name(target)
            with file:
                if mode is not None:
                    temporary.chmod(stat.S_IMODE(mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
                if sys.platform != "win32":  # while it is locked, so that nobody takes it for abandoned
                    temporary.replace(target)
            if sys.platform == "win32":
                temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(target.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a new, empty folder that takes the place of the one at `path` at the end.

    After any exception the new folder is removed, and the old one is as it was. Raises WriteError if the folder cannot
    be written.
    """
    with write_errors(path):
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as folder:
            yield folder
            put_in_place(folder, target)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder beside `target`, and removes it at the end. Raises OSError."""
    remove_abandoned(target.parent)
    path = temporary_name(target)
    try:  # from before the folder is made: an interrupt may fall right after it
        with ExitStack() as stack:
            while not path.exists():
                path.mkdir()
                try:
                    stack.enter_context(_held(path))
                except BlockingIOError:  # another process has taken it for abandoned, and is about to remove it
                    path = temporary_name(target)
                except OSError:  # it is removed already, or a file system without locks
                    pass
            yield path
    finally:
        _remove(path)


def put_in_place(folder: Path, target: Path) -> None:
    """Flushes a finished folder to the disk and gives it the place of `target`, which is removed.

    On Linux and macOS there is no moment without a folder at `target`. Elsewhere an exception leaves the old folder or
    the new one there. Raises OSError.
    """
    remove_abandoned(target.parent)
    for file in (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()):
        _flush(file)
    _flush_folder(folder)
    if not target.exists():
        folder.rename(target)
    elif _exchange(folder, target):
        _remove(folder)
    else:
        old = temporary_name(target)
        try:
            target.rename(old)
            folder.rename(target)
        finally:
            # judged by the folders, for an interruption may fall between any two of the renames
            if old.exists() and not target.exists():
                old.rename(target)
            _remove(old)
    _flush_folder(target.parent)


def open_for_writing(path: str, flags: int) -> int:
    """Opens a file for `open`, as its `opener`. Raises OSError, also for a pipe that nobody reads, without waiting.

    If that is where stdout leads, as `/dev/stdout` may, its reader has left: BrokenPipeError.
    """
    if sys.platform == "win32":
        return os.open(path, flags, 0o666)
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        if _is_stdout(path):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE), path) from None
        raise OSError(errno.ENXIO, "got a pipe or socket that nobody reads, expected a file", path) from None
    os.set_blocking(descriptor, True)
    return descriptor


def _is_stdout(path: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:
        return False


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of a write to `path` into a WriteError.

    One that names another file passes through, and so does BrokenPipeError: `path` is a pipe whose reader has left.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        named = error.filename
        if named is not None and not _is_near(Path(os.fsdecode(named)), path):
            raise
        raise WriteError(path, error.strerror or one_line(error)) from error


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files and folders in `folder` that a killed process has left. Those in use stay.

    On Windows folders stay, for nothing says whether one is in use.
    """
    with suppress(OSError):
        with os.scandir(folder) as entries:
            found = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries if _is_ours(entry)]
        for path, is_folder in found:
            with suppress(OSError):
                if sys.platform != "win32":
                    with _held(path):
                        _remove(path) if is_folder else path.unlink()
                elif not is_folder:
                    path.unlink()  # Windows itself refuses while a process has it open


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process or thread is in here with the same folder, for writers that change several files.

    Where the system or the file system has no locks, it does not wait. Raises OSError if the folder cannot be opened.
    """
    if sys.platform == "win32":  # it has none for folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """True if a file or folder of this name is temporary, and so neither a bundle nor a checkpoint."""
    return name.startswith(".") and name.endswith(TEMPORARY)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """True for a temporary file or folder. A pipe or a link of such a name is not one: no writer makes it."""
    return is_temporary(entry.name) and (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False))


def temporary_name(target: Path) -> Path:
    """A new temporary name beside `target`. It is random: in a container every process may have the number 1."""
    unique = f"{os.getpid()}-{secrets.token_hex(8)}"
    return target.with_name(f".{target.name[:_NAME_LENGTH]}.{unique}{TEMPORARY}")


def _new_file(path: Path) -> BinaryIO | None:
    """Makes a file and locks it. None if another process took it for abandoned before that. Raises OSError."""
    file = path.open("xb")
    try:
        _lock(file.fileno())
    except BlockingIOError:  # that process is about to remove it
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    if path.exists():
        return file
    file.close()
    return None


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds the lock of a file or folder. The system releases it when the process ends, however that happens.

    Raises BlockingIOError if another process or thread holds it, OSError if the system or the file system has no locks.
    """
    if sys.platform == "win32":
        raise OSError("Windows cannot lock folders")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # another process may put a pipe there
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":  # Windows refuses to remove a file that is open
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove(path: Path) -> None:
    """Removes a folder, also one that is read-only, or a link to one, as far as the file system permits."""
    if path.is_symlink():
        path.unlink()
        return
    with suppress(OSError):
        path.chmod(stat.S_IRWXU)
    shutil.rmtree(path, ignore_errors=True)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _is_near(named: Path, path: Path) -> bool:
    """True if an error that names the file `named` is about writing `path`.

    The error then names `path`, a temporary file or a parent folder.
    """
    target = Path(os.path.realpath(path))
    return named in {path, target, *path.parents, *target.parents} or any(is_temporary(part) for part in named.parts)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    if sys.platform != "win32":  # Windows has no such call
        with suppress(OSError):  # some file systems refuse it; the renames then reach the disk a little later
            _flush(path)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step. False if the system or the file system cannot."""
    if sys.platform == "win32":
        return False
    names = os.fsencode(one), os.fsencode(other)
    library = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            swapped = library.renamex_np(*names, _RENAME_SWAP)
        else:
            swapped = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    except AttributeError:  # a C library that lacks the call
        return False
    return bool(swapped == 0)
