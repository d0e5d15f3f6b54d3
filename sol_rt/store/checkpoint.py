"""Fetches a checkpoint from the hub: a repository with `config.json` and safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from sol_rt.bundle.bundle import sha256
from sol_rt.bundle.config_reader import is_file_name
from sol_rt.errors import HubError
from sol_rt.progress import Progress
from sol_rt.store.download import check_room, checked_files, download, remove_unfinished, staged
from sol_rt.store.hub import Listing, RemoteFile

MODEL_CONFIG = "config.json"
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model", "LICENSE*", "README.md")
_COPIES = "consolidated*.safetensors"
"""The same weights once more, in the form of Mistral's own programs. No export reads them."""


def is_checkpoint(listing: Listing) -> bool:
    """True if the repository has all files that an export reads."""
    return MODEL_CONFIG in listing.files and any(
        is_file_name(name) and fnmatch(name, "*.safetensors") and not fnmatch(name, _COPIES) for name in listing.files
    )


def wanted_files(listing: Listing) -> list[RemoteFile]:
    """The files of the repository that an export reads."""
    return [
        file
        for name, file in listing.files.items()
        if is_file_name(name) and any(fnmatch(name, pattern) for pattern in _PATTERNS) and not fnmatch(name, _COPIES)
    ]


def check_pinned(folder: Path, pinned: Mapping[str, str]) -> None:
    """Raises HubError if a checkpoint that was fetched before is another than the pinned one."""
    for name, digest in pinned.items():
        path = folder / name
        found = sha256(path) if path.is_file() else "no such file"
        if found != digest:
            raise HubError(f"{path}: got {found}, expected sha256 {digest}, which the recipe pins; pull it again")


def _pinned_files(listing: Listing, pinned: Mapping[str, str]) -> list[RemoteFile]:
    files = []
    for name, digest in pinned.items():
        there = listing.files.get(name)
        found = "no such file" if there is None else there.digest
        if there is None or (len(found) == len(digest) and found != digest):
            raise HubError(
                f"{listing.hub_id}: {name}: the hub has {found}, the recipe pins sha256 {digest}; nothing was fetched: "
                f"update sol_rt, or pull {listing.hub_id.repository} if you trust what it holds now"
            )
        files.append(RemoteFile(name, there.bytes, digest))
    return files


def fetch_checkpoint(
    listing: Listing,
    target: Path,
    progress: Progress,
    say: Callable[[str], None],
    pinned: Mapping[str, str] | None = None,
) -> Path:
    """Fetches the checkpoint into the folder `target`, and replaces an older one. An equal one that is there is kept.

    The files are those in the repository's top folder that an export reads.

    Args:
        listing: the repository.
        target: the folder to write.
        progress: called with the bytes done and in total.
        say: gets one line with the sizes before the download begins.
        pinned: the only files to fetch, each with its sha256, whatever the hub states.

    Raises HubError if the checkpoint cannot be fetched or stored, or is another than the pinned one.
    """
    files = wanted_files(listing) if pinned is None else _pinned_files(listing, pinned)
    if checked_files(target, files, progress) is not None:
        remove_unfinished(listing.hub_id, target)
        return target
    check_room(listing, files, target, say)
    with staged(listing.hub_id, target) as folder:
        download(listing, files, folder, progress)
    return target
