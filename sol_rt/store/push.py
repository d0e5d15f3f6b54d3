"""Uploads a bundle to a repository of the hub, in one commit."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.verify import verify_bundle
from sol_rt.errors import HubError, HubUnreachableError, UsageError, one_line
from sol_rt.progress import Progress
from sol_rt.store.hub import HubId, Listing, address, api, hub_errors, library, list_files

_MADE_BY_THE_HUB = {".gitattributes", "README.md"}
"""Files that a repository may have before its first bundle."""


def push(folder: Path, hub_id: HubId, progress: Progress, *, private: bool = False) -> str:
    """Checks a bundle completely and uploads it with its card. The repository and the branch are made if missing.

    Args:
        folder: the bundle.
        hub_id: the repository and, if not the main one, the branch.
        progress: called with the bytes sent and those of all files.
        private: whether a new repository is private.

    Returns:
        The address of the repository's page.

    Raises:
        BundleError: the bundle is faulty.
        UsageError: the repository holds something else, or is public where `private` was asked for.
        HubError: there is no token, it does not permit this, or the hub cannot be reached.
    """
    if library().constants.HF_HUB_OFFLINE:
        raise HubUnreachableError(f"{hub_id}: HF_HUB_OFFLINE is set, so nothing can be sent; unset it")
    if library().get_token() is None:
        raise HubError(f"{hub_id}: no token; set HF_TOKEN to one that may write to {hub_id.repository}")
    verify_bundle(folder, lambda done, total: progress("checking weights", done, total))
    _prepare(hub_id, private)
    names = [*Bundle.open(folder).config.files, CONFIG_NAME]
    total = sum((folder / name).stat().st_size for name in names)
    step = f"sending to {hub_id}"
    with ExitStack() as stack, hub_errors(hub_id):
        files = [stack.enter_context(_Sent(folder / name)) for name in names]
        operations = [
            library().CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
            for name, file in zip(names, files, strict=True)
        ]
        for file in files:  # only now: an operation hashes its file when it is made
            file.report = lambda: progress(step, min(sum(each.tell() for each in files), total), total)
        _commit(hub_id, operations, f"Add the bundle {folder.resolve().name}")
    progress(step, total, total)
    return address(hub_id)


def _commit(hub_id: HubId, operations: list[Any], message: str) -> None:
    try:
        api().create_commit(hub_id.repository, operations, commit_message=message, revision=hub_id.revision)
    except library().errors.HfHubHTTPError:
        raise
    except ValueError as error:  # the hub's complaint about the card or a file
        raise HubError(f"{hub_id}: the hub refuses the bundle: {one_line(error)}") from None
    except RuntimeError as error:  # which file it was; the cause says what happened
        raise error.__cause__ or error from None


class _Sent(io.BufferedReader):
    """A file that calls `report` after every read."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.report: Callable[[], None] = lambda: None

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self.report()
        return chunk


def _prepare(hub_id: HubId, private: bool) -> None:
    """Makes the repository and the branch if they are missing, and refuses a repository with other content."""
    main = _listing(HubId(hub_id.repository))
    if main is None:
        with hub_errors(hub_id):
            api().create_repo(hub_id.repository, private=private, exist_ok=True)
    elif private and not main.private:
        raise UsageError(f"push --private: {address(HubId(hub_id.repository))} is there already, and public")
    if hub_id.revision is None:
        listing = main
    else:
        with hub_errors(hub_id):
            api().create_branch(hub_id.repository, branch=hub_id.revision, exist_ok=True)
        listing = list_files(hub_id)
    if listing is not None and CONFIG_NAME not in listing.files and set(listing.files) - _MADE_BY_THE_HUB:
        raise UsageError(f"push {hub_id}: the repository holds files but no bundle; choose one of the bundle's own")


def _listing(hub_id: HubId) -> Listing | None:
    """Lists the files of the repository; None if the hub knows none that the token may read."""
    errors = library().errors
    with hub_errors(hub_id):
        try:
            api().model_info(hub_id.repository)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            return None
    return list_files(hub_id)
