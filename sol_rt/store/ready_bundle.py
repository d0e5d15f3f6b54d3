"""Fetches a ready bundle from the hub: a repository with `sol_config.json`. It needs neither torch nor a compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sol_rt.bundle.config import CONFIG_NAME, SolConfig
from sol_rt.bundle.config_reader import read_config
from sol_rt.errors import BundleError, HubError, UsageError
from sol_rt.progress import Progress
from sol_rt.store.download import check_room, checked_files, download, remove_unfinished, staged
from sol_rt.store.home import bundles_dir, remember_last_export, remember_source
from sol_rt.store.hub import Listing, RemoteFile, hub_errors, open_file
from sol_rt.store.verified import remember_weights

_LARGEST_CONFIG = 64 << 20
"""Bytes; that of a model of 200 layers has less than one."""


def fetch_bundle(
    listing: Listing, name: str, progress: Progress, say: Callable[[str], None], *, replace: bool = False
) -> Path:
    """Fetches the bundle into `bundles_dir()/name` and makes it the default. An equal bundle that is there is kept.

    `sol_config.json` is fetched first. Only the files that it lists follow, each with the size and hash that it states.

    Args:
        listing: the repository.
        name: the bundle's name on this machine.
        progress: called with the bytes done and in total.
        say: gets one line with the sizes before the download begins.
        replace: whether another bundle of this name may be replaced.

    Raises:
        UsageError: another bundle, or a folder that is no bundle, has the name.
        HubError: the repository's bundle is faulty, or cannot be fetched or stored.
    """
    raw = _fetched_config(listing)
    config = _parse(listing, raw)
    files = _files(listing, config)
    target = bundles_dir() / name
    same = target.is_dir() and _content(target / CONFIG_NAME) == raw
    states = checked_files(target, files, progress) if same else None
    if states is not None:
        remove_unfinished(listing.hub_id, target)
        say(f"{listing.hub_id}: {target} is the same bundle already")
    else:
        if not same:
            _check_place(target, listing, replace)
        check_room(listing, files, target, say)
        with staged(listing.hub_id, target) as folder:
            states = download(listing, files, folder, progress)
            (folder / CONFIG_NAME).write_bytes(raw)
    remember_weights(states[config.weights_file], config.files[config.weights_file].sha256)
    remember_last_export(target)
    remember_source(target, str(listing.hub_id))
    return target


def _fetched_config(listing: Listing) -> bytes:
    size, expected = listing.files[CONFIG_NAME].bytes, listing.files[CONFIG_NAME].digest
    if size > _LARGEST_CONFIG:
        raise HubError(f"{listing.hub_id}: {CONFIG_NAME}: got {size} bytes, expected at most {_LARGEST_CONFIG}")
    raw = bytearray()
    with hub_errors(listing.hub_id), open_file(listing, CONFIG_NAME, 0) as (_, chunks):
        for chunk in chunks:
            raw += chunk
            if len(raw) > size:
                break
    if len(raw) != size:
        raise HubError(f"{listing.hub_id}: {CONFIG_NAME}: got {len(raw)} bytes, expected {size}; pull again")
    digest = listing.files[CONFIG_NAME].hasher()
    digest.update(raw)
    if (found := digest.hexdigest()) != expected:
        raise HubError(
            f"{listing.hub_id}: {CONFIG_NAME}: got hash {found}, expected {expected}; the hub serves a damaged file; "
            f"pull again, or tell its owner"
        )
    return bytes(raw)


def _parse(listing: Listing, raw: bytes) -> SolConfig:
    try:
        return read_config(f"{listing.hub_id}: {CONFIG_NAME}", raw)
    except BundleError as error:
        raise HubError(f"{error}; or tell its owner") from None


def _files(listing: Listing, config: SolConfig) -> list[RemoteFile]:
    """The files of the config, which must be in the repository with the same sizes."""
    for name, entry in config.files.items():
        there = listing.files.get(name)
        if there is None or there.bytes != entry.bytes:
            got = "no such file" if there is None else f"{there.bytes} bytes"
            raise HubError(
                f"{listing.hub_id}: {name}: got {got}, expected {entry.bytes} bytes as {CONFIG_NAME} says; "
                f"tell its owner to push it again"
            )
    return [RemoteFile(name, entry.bytes, entry.sha256) for name, entry in config.files.items()]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _check_place(target: Path, listing: Listing, replace: bool) -> None:
    if not target.exists():
        return
    if not (target / CONFIG_NAME).is_file():
        if target.is_dir() and not any(target.iterdir()):
            return
        raise UsageError(f"pull {listing.hub_id}: {target} is there already and no bundle; move it away")
    if not replace:
        raise UsageError(f"pull {listing.hub_id}: {target} is another bundle; replace it with --force, or keep it")
