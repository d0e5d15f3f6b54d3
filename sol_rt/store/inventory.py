"""Contents of `$SOL_RT_HOME`: bundles, checkpoints and unfinished downloads, with their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sol_rt.atomic_write import is_temporary, temporary_name
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.errors import SolError, UsageError, did_you_mean
from sol_rt.store.download import UNFINISHED, remove
from sol_rt.store.home import bundles_dir, checkpoints_dir, find_bundle, forget_last_export, forget_source, home

BUNDLE, CHECKPOINT, DOWNLOAD = "bundle", "checkpoint", "unfinished download"


@dataclass(frozen=True)
class Entry:
    """Something that is stored.

    Attributes:
        name: name of the folder or file.
        kind: BUNDLE, CHECKPOINT or DOWNLOAD.
        path: the folder or file.
        bytes: size of all its files.
        modified: when it was written last, in seconds since 1970.
        default: whether it is the bundle that commands use without `-m`.
    """

    name: str
    kind: str
    path: Path
    bytes: int
    modified: float
    default: bool

    @property
    def longer_name(self) -> str:
        """The name with its folder, for example `bundles/phi-2`, which nothing else has."""
        return self.path.relative_to(home()).as_posix()


def inventory() -> list[Entry]:
    """Everything that is stored, bundles first, each kind sorted by name."""
    try:
        default = find_bundle(None).resolve()
    except UsageError:
        default = None
    found = []
    for folder, kind in ((bundles_dir(), BUNDLE), (checkpoints_dir(), CHECKPOINT)):
        for path in _paths(folder):
            if path.name == UNFINISHED:
                found += [_entry(part, DOWNLOAD, None) for part in _paths(path) if part.is_dir()]
            elif kind == CHECKPOINT or (path / CONFIG_NAME).is_file():
                found.append(_entry(path, kind, default))
    order = [BUNDLE, CHECKPOINT, DOWNLOAD]
    return sorted(found, key=lambda entry: (order.index(entry.kind), entry.name))


def find_entry(name: str, entries: Sequence[Entry]) -> Entry:
    """The entry of this name or longer name. Raises UsageError if there is none, or more than one."""
    found = [entry for entry in entries if name in {entry.name, entry.longer_name}]
    if len(found) > 1:
        names = " or ".join(entry.longer_name for entry in found)
        raise UsageError(f"{name}: got {len(found)} things of this name, expected one; write {names}")
    if not found:
        known = did_you_mean(name, [entry.name for entry in entries]) or "sol-rt list shows what is here"
        raise UsageError(f"{name}: nothing of this name under {home()}; {known}")
    return found[0]


def remove_entry(entry: Entry) -> None:
    """Removes what the entry describes. If it was the default bundle, there is no default afterwards.

    A bundle that is a link is removed as a link: its files stay. Raises SolError if the file system refuses.
    """
    aside = temporary_name(entry.path)  # what a killed process leaves of it, the next write in the folder removes
    resolved = entry.path.resolve()
    try:
        entry.path.rename(aside)  # at once, so that nobody finds half a bundle
        forget_last_export(resolved)
        if entry.kind == BUNDLE:
            forget_source(entry.path)
        remove(aside)
    except OSError as error:
        where = error.filename or entry.path
        raise SolError(f"{where}: {error.strerror or error}; change its permissions, or remove it by hand") from error


def _paths(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if not is_temporary(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return


def _entry(path: Path, kind: str, default: Path | None) -> Entry:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    sizes = []
    for file in files:
        with suppress(FileNotFoundError):  # renamed by a process that is fetching
            sizes.append(file.stat())
    return Entry(
        name=path.name,
        kind=kind,
        path=path,
        bytes=sum(size.st_size for size in sizes),
        modified=max((size.st_mtime for size in sizes), default=path.lstat().st_mtime),
        default=kind == BUNDLE and path.resolve() == default,
    )
