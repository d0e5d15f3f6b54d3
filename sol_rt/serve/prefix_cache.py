"""Prefixes of prompts on disk: the KV caches of sessions that others needed, for prompts that begin alike.

An entry is a file that the core wrote and a list, int32: its tokens, then how many of them the dense variant read.
Their name has hashes of the bundle and of the list, by which a damaged list is found. The core checks the cache itself.
The system keeps files that were used lately in memory.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sol_rt.atomic_write import write_bytes
from sol_rt.bundle.config import KvLayout
from sol_rt.errors import BundleError, SolError, one_line
from sol_rt.generate.native.session import Session

LEAST_TOKENS = 64
"""Tokens that an entry has to save a prompt, beside the caches of the sessions."""
_CACHE, _TOKENS = ".kv", ".tokens"
_NAMES = "[0-9a-f]" * 16 + "-*"
"""Pattern of the names of all bundles' entries."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A saved cache.

    Attributes:
        tokens: the tokens in it, int32 [T].
        dense: number of the first ones that the dense variant read.
        path: its file.
        size: bytes of its files.
    """

    tokens: np.ndarray
    dense: int
    path: Path
    size: int


class PrefixCache:
    """Saved caches of one bundle in a folder, those used last. Any thread may use it.

    Files that cannot be read or written are told of and left out. Others may use the folder, too; all count for the
    bound.

    Args:
        folder: where the files are; made, for its owner alone, if it is missing.
        most_bytes: bytes that files in the folder may take.
        identity: of the bundle.
        kv: layout of the bundle's cache.
        say: tells the operator a line.
        least: tokens from which on a cache is kept.
        lasting: the caches that sessions have at a server's end are saved, too.

    Raises SolError if the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        most_bytes: int,
        identity: str,
        kv: KvLayout,
        say: Callable[[str], None],
        *,
        least: int = LEAST_TOKENS,
        lasting: bool = True,
    ) -> None:
        self._folder, self._most, self._kv = folder, most_bytes, kv
        self._say, self.least, self.lasting = say, least, lasting
        self._prefix = hashlib.sha256(identity.encode()).hexdigest()[:16] + "-"
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}  # by name, those used last at the end
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SolError(f"--cache-dir {folder}: {one_line(error)}; choose another folder") from None
        self._read_index()

    @property
    def entries(self) -> list[Entry]:
        """The entries, those used last at the end."""
        with self._lock:
            return list(self._entries.values())

    def find(self, prompt: Sequence[int], *, dense: bool = False) -> tuple[Entry | None, int]:
        """The entry that begins with most of a prompt and can go back to it, and how many tokens that are.

        With `dense`, tokens that a cheaper variant read do not count, nor any after them.
        """
        best, longest, wanted = None, 0, np.array(prompt, "<i4")
        for entry in self.entries:
            shared = min(_shared(entry.tokens, wanted), entry.dense if dense else len(entry.tokens))
            if shared > longest and self._kv.goes_back(len(entry.tokens), shared):
                best, longest = entry, shared
        return best, longest

    def save(self, session: Session) -> None:
        """Saves a session's cache, in place of those that it continues and can go back to; the oldest make room.

        Saves nothing where an entry has the same tokens, and as many that the dense variant read.
        """
        tokens, dense = np.array(session.tokens, "<i4"), session.dense_tokens
        made = np.append(tokens, np.int32(dense)).astype("<i4")
        name = self._name(made)
        if len(tokens) < self.least:
            return
        with self._lock:
            for known, entry in list(self._entries.items()):
                if entry.dense >= dense and np.array_equal(entry.tokens, tokens) and self._touch(known):
                    return
        path = self._folder / (name + _CACHE)
        try:
            for file in (path, path.with_suffix(_TOKENS)):  # replacing a file keeps its permissions
                os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
            session.save(path)
            write_bytes(path.with_suffix(_TOKENS), made.tobytes())
        except (SolError, OSError) as error:
            self._say(f"a cache was not saved: {one_line(error)}")
            with self._lock:
                self._drop(name)
            _remove(path)
            return
        with self._lock:
            self._entries.pop(name, None)
            self._entries[name] = Entry(tokens, dense, path, _size(path))
            for older, entry in list(self._entries.items()):
                length = len(entry.tokens)
                continued = _shared(entry.tokens, tokens) == length and self._kv.goes_back(len(tokens), length)
                if older != name and continued and entry.dense <= dense:
                    self._drop(older)
            self._make_room()

    def restore(self, entry: Entry, session: Session) -> bool:
        """Puts an entry into a session. Returns False, and forgets the entry, if its file is damaged or gone."""
        try:
            session.restore(entry.path)
            if not np.array_equal(session.tokens, entry.tokens):
                raise BundleError(entry.path, "", "other tokens", "those of its list", "it is removed")
        except SolError as error:
            self._say(f"a saved cache is left out: {one_line(error)}")
            with self._lock:
                self._drop(entry.path.stem)
            return False
        with self._lock:
            self._touch(entry.path.stem)
        return True

    def _name(self, made: np.ndarray) -> str:
        return self._prefix + hashlib.sha256(made.tobytes()).hexdigest()

    def _read_index(self) -> None:
        """Reads the entries of this bundle, and removes what is damaged."""
        with self._lock:
            own = self._prefix + "*"
            lists = {path.stem: path for path in self._folder.glob(own + _TOKENS)}
            for path in sorted(self._folder.glob(own + _CACHE), key=_used_at):
                made = _list_in(lists.pop(path.stem, None))
                if made is None or not 0 <= made[-1] < len(made) or self._name(made) != path.stem:
                    self._say(f"{path}: the list of its tokens is missing or damaged; it is removed")
                    _remove(path)
                    continue
                self._entries[path.stem] = Entry(made[:-1], int(made[-1]), path, _size(path))
            for alone in lists.values():
                _remove(alone)
            self._make_room()

    def _touch(self, name: str) -> bool:
        """Marks an entry as used last. Returns False if there is none, or its file is gone."""
        if (entry := self._entries.pop(name, None)) is None or not entry.path.exists():
            return False
        self._entries[name] = entry
        with suppress(OSError):
            os.utime(entry.path)
        return True

    def _make_room(self) -> None:
        """Removes the files used longest ago, also those of other bundles, until the rest fits."""
        files = sorted(self._folder.glob(_NAMES + _CACHE), key=_used_at)
        sizes = {path: _size(path) for path in files}
        total = sum(sizes.values())
        for path in files:
            if total <= self._most:
                return
            total -= sizes[path]
            self._entries.pop(path.stem, None)
            _remove(path)

    def _drop(self, name: str) -> None:
        if (entry := self._entries.pop(name, None)) is not None:
            _remove(entry.path)


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """Number of tokens that the two begin with in common."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def _list_in(path: Path | None) -> np.ndarray | None:
    """An entry's list, of one number or more; None for one that is missing or no list."""
    try:
        made = np.array((), "<i4") if path is None else np.frombuffer(path.read_bytes(), "<i4")
    except (OSError, ValueError):
        return None
    return made if len(made) else None


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    """Bytes of an entry's files that there are."""
    size = 0
    for file in (path, path.with_suffix(_TOKENS)):
        with suppress(OSError):
            size += file.stat().st_size
    return size


def _remove(path: Path) -> None:
    for file in (path, path.with_suffix(_TOKENS)):
        with suppress(OSError):
            file.unlink()
