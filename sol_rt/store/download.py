"""Fetches files of a hub repository into a folder, checks their hashes, and moves the folder into place at the end.

A download continues where the last one was killed. huggingface_hub would begin anew, so the loop over bytes is here.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sol_rt.atomic_write import put_in_place
from sol_rt.bundle.file_state import FileState
from sol_rt.errors import HubError, HubUnreachableError
from sol_rt.progress import Progress
from sol_rt.store.hub import HubId, Listing, RemoteFile, hub_errors, open_file

UNFINISHED = ".unfinished"
"""Folder beside finished bundles or checkpoints. It has a subfolder for each download that has begun."""
_CHUNK = 1 << 20
_TRIES = 4
"""Connections in a row that may fail without one new byte."""


@contextmanager
def staged(hub_id: HubId, target: Path) -> Iterator[Path]:
    """Yields the folder that collects the files of `target`; it takes the place of `target` at the end.

    After an exception, or after the process was killed, the folder stays with what was fetched, and the next call
    yields it again. Raises HubError if another process has the folder, or if it cannot be written.
    """
    with _disk_errors(target.parent), _locked(hub_id, target) as folder:
        folder.mkdir(exist_ok=True)
        yield folder
        put_in_place(folder, target)


def remove_unfinished(hub_id: HubId, target: Path) -> None:
    """Removes what a killed process left of its download of `target`, which is complete now.

    Leaves it to another process that has the folder, and to the next call where the folder cannot be written.
    """
    if (target.parent / UNFINISHED).is_dir():
        with suppress(HubError, OSError), _locked(hub_id, target) as folder:
            remove(folder)


@contextmanager
def _locked(hub_id: HubId, target: Path) -> Iterator[Path]:
    """Yields the path of the folder that collects the files of `target`. Other processes can't have it meanwhile."""
    from filelock import FileLock, Timeout

    parent = target.parent / UNFINISHED
    parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parent / f"{hub_id.folder_name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise HubError(f"{hub_id}: another process is fetching it; wait until that one ends") from None
    try:
        yield parent / hub_id.folder_name
    finally:
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
            parent.rmdir()  # fails as long as it holds another download


def download(listing: Listing, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> dict[str, FileState]:
    """Fetches the files into the folder, small ones first, and checks size and hash of each.

    Files and parts of files that are in the folder already are hashed, not fetched. Anything else in it is removed.

    Args:
        listing: the repository.
        files: the files to fetch. Their names must be plain file names.
        folder: a folder that `staged` yielded.
        progress: gets the bytes that are here and those of all files.

    Returns:
        By file name, the state in which the file was hashed.

    Raises:
        HubError: the hub refuses, or a file is not what `files` says. Then the folder is removed.
        HubUnreachableError: the connection failed several times in a row.
    """
    _keep_only(folder, files)
    step, total, done = f"fetching {listing.hub_id}", sum(file.bytes for file in files), 0
    states = {}
    for file in sorted(files, key=lambda file: (file.bytes, file.name)):
        report = _shifted(progress, step, done, total)
        state = _checked(folder / file.name, file, report)
        if state is None:
            (folder / file.name).unlink(missing_ok=True)
            state = _fetch(listing, file, folder, report)
        states[file.name] = state
        done += file.bytes
    progress(step, total, total)
    return states


def checked_files(folder: Path, files: Sequence[RemoteFile], progress: Progress) -> dict[str, FileState] | None:
    """Hashes the files in `folder` and returns their states, by file name. `progress` gets the bytes read.

    None if the folder lacks a file, or one has another size or hash.
    """
    if any(not (folder / file.name).is_file() for file in files):
        return None
    states: dict[str, FileState] = {}
    total, done = sum(file.bytes for file in files), 0
    for file in files:
        state = _checked(folder / file.name, file, _shifted(progress, f"checking {folder.name}", done, total))
        if state is None:
            return None
        states[file.name] = state
        done += file.bytes
    return states


def check_room(listing: Listing, files: Sequence[RemoteFile], target: Path, say: Callable[[str], None]) -> None:
    """Says how many bytes are still to be fetched. Raises HubError if the disk of `target` has no room for them."""
    total = sum(file.bytes for file in files)
    missing = total - _bytes_here(target.parent / UNFINISHED / listing.hub_id.folder_name, files)
    folder = next((folder for folder in target.parents if folder.is_dir()), None)
    if folder is None:
        raise HubError(f"{target}: its drive is not there; set SOL_RT_HOME to a folder on another one")
    free = shutil.disk_usage(folder).free
    here = "" if missing == total else f", {size_text(total - missing)} of them here"
    say(f"{listing.hub_id}: {len(files)} files, {size_text(total)}{here}; {size_text(free)} free in {folder}")
    if missing > free:
        raise HubError(
            f"{listing.hub_id}: needs {size_text(missing)}, {folder} has {size_text(free)} free; make room, or set "
            f"SOL_RT_HOME to a folder on a larger disk"
        )


def size_text(count: int) -> str:
    """A number of bytes in MB or GB."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _part(folder: Path, file: RemoteFile) -> Path:
    # with the digest in its name, a part can't be continued with bytes of a newer file
    return folder / f"{file.name}.{file.digest[:16]}.part"


def _bytes_here(folder: Path, files: Sequence[RemoteFile]) -> int:
    count = 0
    for file in files:
        for path in (folder / file.name, _part(folder, file)):
            if path.is_file():
                count += min(path.stat().st_size, file.bytes)
                break
    return count


def _keep_only(folder: Path, files: Sequence[RemoteFile]) -> None:
    kept = {folder / file.name for file in files} | {_part(folder, file) for file in files}
    for path in folder.iterdir():
        if path not in kept:
            remove(path)


def remove(path: Path) -> None:
    """Removes a file, a link (not its target) or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _checked(path: Path, file: RemoteFile, report: Callable[[int], None]) -> FileState | None:
    """The state in which the file at `path` was hashed; None unless it has the size and hash of `file`."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
        return None
    with path.open("rb") as content:
        FileState.of(content.fileno()).let_the_clock_tick()
        before = FileState.of(content.fileno())
        digest, _ = _hashed(content, file, report)
        unchanged = FileState.of(content.fileno()) == before
    return before if unchanged and digest.hexdigest() == file.digest else None


def _fetch(listing: Listing, file: RemoteFile, folder: Path, report: Callable[[int], None]) -> FileState:
    path = _part(folder, file)
    continued = path.is_file() and path.stat().st_size > 0
    size, found, state = _complete(listing, file, path, report)
    if continued and (size, found) != (file.bytes, file.digest):
        path.unlink()  # the part may have gone bad on this disk, so the hub is not to blame yet
        size, found, state = _complete(listing, file, path, report)
    if (size, found) != (file.bytes, file.digest):
        shutil.rmtree(folder)
        what = f"{size} bytes" if size != file.bytes else f"hash {found}"
        wanted = f"{file.bytes}" if size != file.bytes else file.digest
        raise HubError(
            f"{listing.hub_id}: {file.name}: got {what}, expected {wanted}; the hub serves a damaged file, so nothing "
            f"was kept: pull again, or tell its owner"
        )
    path.replace(folder / file.name)
    renamed = FileState.of(folder / file.name)
    return renamed if renamed.same_content(state) else state  # renaming alone gives it a new time of change


def _complete(
    listing: Listing, file: RemoteFile, path: Path, report: Callable[[int], None]
) -> tuple[int, str, FileState]:
    """Fetches what the part at `path` lacks of the file. Returns the bytes hashed, their hash and the part's state."""
    failures = 0
    with path.open("a+b") as part:
        digest, size = _hashed(part, file, report)
        while size < file.bytes:
            before = size
            try:
                with hub_errors(listing.hub_id), open_file(listing, file.name, size) as (continues, chunks):
                    if not continues:
                        part.truncate(0)
                        digest, size = file.hasher(), 0
                    for chunk in chunks:
                        part.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                        report(min(size, file.bytes))
                        if size > file.bytes:
                            break
            except HubUnreachableError:
                # what was written stays, so the next connection asks for the rest
                failures = failures + 1 if size <= before else 1
                if failures >= _TRIES:
                    raise
                time.sleep(failures)
            else:
                failures = failures + 1 if size <= before else 0
                if failures >= _TRIES:
                    raise HubError(f"{listing.hub_id}: {file.name} ends after {size} of {file.bytes} bytes; pull again")
        part.flush()
        state = FileState.of(part.fileno())
    return size, digest.hexdigest(), state


def _hashed(content: BinaryIO, file: RemoteFile, report: Callable[[int], None]) -> tuple[Any, int]:
    """The hashlib object that was given all of `content`, and the number of bytes."""
    digest, size = file.hasher(), 0
    content.seek(0)
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        report(min(size, file.bytes))
    return digest, size


def _shifted(progress: Progress, step: str, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(step, before + done, total)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(f"{folder}: no room left; make room and pull again, which continues") from error
        reason = error.strerror or error
        raise HubError(f"{folder}: {reason}; make it writable, or set SOL_RT_HOME to another folder") from error
