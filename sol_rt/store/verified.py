"""Hashes a bundle's weights file at its first load, and remembers that it was right.

`$SOL_RT_HOME/verified.json` holds a file's hash with what the file system says of it: device, inode, size, and times of
its last changes. As long as these stay, the file is not read again. A change that bypasses the file system, such as a
decaying disk, is found by `sol-rt verify` alone.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import write_text
from sol_rt.bundle.bundle import Bundle, check_hash, sha256_of
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import BundleError, WriteError
from sol_rt.store.home import home
from sol_rt.store.progress import Progress, silent

STATE = "verified.json"
FORMAT = "sol_rt.verified"
FORMAT_VERSION = 1
_MOST = 1000
"""Files to remember; the oldest are forgotten."""
_CLOCK_NS = 50_000_000
"""Nanoseconds; the clocks that usual file systems stamp files with are finer."""

_Record = tuple[int, int, int, str]  # size, time of the last write and of the last change in nanoseconds, sha256
_here: dict[str, _Record] = {}  # what this process has checked, also where the home cannot be written
_told = False


def check_weights(bundle: Bundle, progress: Progress = silent) -> str:
    """Compares the weights file's hash with the config, unless this very file was compared before.

    Args:
        bundle: an opened bundle. If it was opened without `verify`, nothing is done.
        progress: called with the bytes hashed and in total.

    Returns:
        A line for the user, once a process, if the result cannot be remembered; otherwise nothing.

    Raises BundleError if the hash is another, or the file cannot be read.
    """
    if not bundle.verify:
        return ""
    path = bundle.file(bundle.config.weights_file)
    entry = bundle.config.files[bundle.config.weights_file]
    try:
        stat = path.stat()
        known = {**_remembered(), **_here}.get(_key(stat))
        if known is not None and known[:3] == _record(stat, "")[:3]:
            check_hash(path, entry, known[3])
            return ""
        _let_the_clock_tick(stat)
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            digest = sha256_of(file, lambda done: progress(f"checking {path.name}", done, entry.bytes))
            after = os.fstat(file.fileno())
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "a readable file") from None
    if _record(before, "") != _record(after, ""):
        raise BundleError(path, "", "a file that changes while it is read", "a finished file", "try again")
    check_hash(path, entry, digest)
    return _remember(after, digest)


def remember_weights(folder: Path, config: SolConfig) -> None:
    """Remembers the weights file of a bundle in `folder` that was hashed just now. Does nothing if that fails."""
    with suppress(OSError):
        _remember((folder / config.weights_file).stat(), config.files[config.weights_file].sha256)


def _remember(stat: os.stat_result, digest: str) -> str:
    global _told
    _here[_key(stat)] = _record(stat, digest)
    files = _remembered()
    files.pop(_key(stat), None)  # the newest come last
    files[_key(stat)] = _record(stat, digest)
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, "files": dict(list(files.items())[-_MOST:])}
    try:
        home().mkdir(parents=True, exist_ok=True)
        # two processes at once: the later one wins, and what it lacks is hashed once more
        write_text(home() / STATE, json.dumps(document, indent=0) + "\n")
    except (WriteError, OSError) as error:
        if _told:
            return ""
        _told = True
        reason = error.reason if isinstance(error, WriteError) else error.strerror
        return f"weights: checked, but {home()} cannot be written ({reason}), so every start checks them again"
    return ""


def _remembered() -> dict[str, _Record]:
    """What the file holds; nothing if it is missing or damaged."""
    try:
        raw = json.loads((home() / STATE).read_text(encoding="utf-8"))
        if raw["format"] != FORMAT or raw["format_version"] != FORMAT_VERSION:
            return {}
        return {str(key): _read(value) for key, value in raw["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _read(value: Any) -> _Record:
    size, modified, changed, digest = value
    return int(size), int(modified), int(changed), str(digest)


def _key(stat: os.stat_result) -> str:
    return f"{stat.st_dev}:{stat.st_ino}"


def _record(stat: os.stat_result, digest: str) -> _Record:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest


def _let_the_clock_tick(stat: os.stat_result) -> None:
    """Waits until a change of the file gets another time than the last one has, so that none is overlooked."""
    age = time.time_ns() - stat.st_ctime_ns
    if 0 <= age < _CLOCK_NS:
        time.sleep((_CLOCK_NS - age) / 1e9)
