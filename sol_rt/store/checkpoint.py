"""Fetches a checkpoint from the hub: a repository with `config.json` and safetensors."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from sol_rt.bundle.config_reader import is_file_name
from sol_rt.store.download import are_files, check_room, download, staged
from sol_rt.store.hub import Listing
from sol_rt.store.progress import Progress

MODEL_CONFIG = "config.json"
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model", "LICENSE*", "README.md")


def is_checkpoint(listing: Listing) -> bool:
    """Whether the repository has what an export reads."""
    return MODEL_CONFIG in listing.files and any(
        is_file_name(name) and fnmatch(name, "*.safetensors") for name in listing.files
    )


def fetch_checkpoint(listing: Listing, target: Path, progress: Progress, say: Callable[[str], None]) -> Path:
    """Fetches the checkpoint into the folder `target`, and replaces an older one. An equal one that is there is kept.

    The files are those in the repository's top folder that an export reads.

    Args:
        listing: the repository.
        target: the folder to write.
        progress: called with the bytes done and in total.
        say: gets one line with the sizes before the download begins.

    Raises HubError if the checkpoint cannot be fetched or stored.
    """
    files = [
        file
        for name, file in listing.files.items()
        if is_file_name(name) and any(fnmatch(name, pattern) for pattern in _PATTERNS)
    ]
    if are_files(target, files, progress):
        return target
    check_room(listing, files, target, say)
    with staged(listing.hub_id, target) as folder:
        download(listing, files, folder, progress)
    return target
