"""Hashes a bundle's weights file at its first load, and remembers that it was right.

`$SOL_RT_HOME/verified.json` holds a file's hash with what the file system says of it: device, inode, size, and times of
its last changes. As long as these stay, the file is not read again. A change that bypasses the file system, such as a
decaying disk or a shared mapping, is found by `sol-rt verify` alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from sol_rt.atomic_write import write_text
from sol_rt.bundle.bundle import Bundle, check_hash, sha256_in_one_state
from sol_rt.bundle.file_state import FileState
from sol_rt.errors import BundleError, WriteError
from sol_rt.progress import Progress, silent
from sol_rt.store.home import home

STATE = "verified.json"
FORMAT = "sol_rt.verified"
FORMAT_VERSION = 1
_MOST = 1000
"""Files to remember; the oldest are forgotten."""

_Record = tuple[int, int, int, str]  # size, time of the last write and of the last change in nanoseconds, sha256
_here: dict[str, _Record] = {}  # what this process has checked, also where the home cannot be written
_told = False


def check_weights(bundle: Bundle, progress: Progress = silent) -> tuple[Bundle, str]:
    """Compares the weights file's hash with the config, unless this very file was compared before.

    Args:
        bundle: an opened bundle. If it was opened without `verify`, or was checked already, nothing is done.
        progress: called with the bytes hashed and in total.

    Returns:
        The bundle with its `weights_state`, so that no other file is mapped; and a line for the user, once a process,
        if the result cannot be remembered, otherwise an empty one.

    Raises BundleError if the hash is another, or the file cannot be read.
    """
    if not bundle.verify or bundle.weights_state is not None:
        return bundle, ""
    path = bundle.file(bundle.config.weights_file)
    entry = bundle.config.files[bundle.config.weights_file]
    try:
        state = FileState.of(path)
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "a readable file") from None
    known, note = {**_remembered(), **_here}.get(_key(state)), ""
    if known is not None and known == _record(state, known[3]):
        check_hash(path, entry, known[3])
    else:
        digest, state = sha256_in_one_state(path, lambda done: progress(f"checking {path.name}", done, entry.bytes))
        check_hash(path, entry, digest)
        note = remember_weights(state, digest)
    return replace(bundle, weights_state=state), note


def remember_weights(state: FileState, digest: str) -> str:
    """Remembers that the file had this hash, in hex, when it was in this state.

    Returns a line for the user, once a process, if that cannot be written; otherwise nothing.
    """
    global _told
    _here[_key(state)] = _record(state, digest)
    files = _remembered()
    files.pop(_key(state), None)  # the newest come last
    files[_key(state)] = _record(state, digest)
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
    """Reads the records of the file; empty if the file is missing or damaged."""
    try:
        raw = json.loads((home() / STATE).read_text(encoding="utf-8"))
        if raw["format"] != FORMAT or raw["format_version"] != FORMAT_VERSION:
            return {}
        return {str(key): _read(value) for key, value in raw["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _read(value: Any) -> _Record:
    size, modified, changed, digest = value
    if any(type(number) is not int for number in (size, modified, changed)) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("a damaged record")
    return size, modified, changed, digest


def _key(state: FileState) -> str:
    return f"{state.device}:{state.inode}"


def _record(state: FileState, digest: str) -> _Record:
    return state.size, state.modified, state.changed, digest
