"""The model hub: what a repository holds, its bytes, and its errors in one line.

huggingface_hub speaks the protocol and reads `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`. It is imported when a
function here is first called.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from sol_rt.errors import HubError, HubUnreachableError, SolError, UsageError

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./+-]+))?", re.ASCII)
_SECONDS = 30.0
"""Longest wait for an answer of the hub."""


@dataclass(frozen=True)
class HubId:
    """A repository on the hub, and a branch, tag or commit in it; None means the main branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """Reads `owner/name` or `owner/name@revision`. Returns None for any other text."""
        match = _HUB_ID.fullmatch(text)
        return None if match is None else cls(match[1], match[2])

    @property
    def folder_name(self) -> str:
        """The id as the name of a folder: `owner--name` or `owner--name@revision`."""
        return str(self).replace("/", "--")

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        name: path inside the repository.
        bytes: size in bytes.
        digest: hash of the content, lower-case hex: a sha256 (64 digits), or git's hash of a blob (40 digits).
    """

    name: str
    bytes: int
    digest: str

    def hasher(self) -> Any:
        """A new hashlib object, which has the file's digest once it was given the file's bytes."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.bytes, usedforsecurity=False)


@dataclass(frozen=True)
class Listing:
    """Contents of a repository at one commit. `private` is True if only friends of the owner may read it."""

    hub_id: HubId
    commit: str
    private: bool
    files: dict[str, RemoteFile]


@cache
def library() -> Any:
    """The module huggingface_hub, without telemetry, progress bars and log messages of its own."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub
    from huggingface_hub import constants, errors  # noqa: F401  a submodule is an attribute once it is imported
    from huggingface_hub.utils import disable_progress_bars, logging

    constants.HF_HUB_DISABLE_TELEMETRY = True  # if it was imported before, it has not seen the variable
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    logging.set_verbosity_error()
    return huggingface_hub


def endpoint() -> str:
    """The hub's address: `$HF_ENDPOINT`, or the public hub's."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(library().constants.ENDPOINT)


def api() -> Any:
    """The client for the hub's API."""
    from sol_rt import __version__

    return library().HfApi(endpoint=endpoint(), library_name="sol_rt", library_version=__version__)


def address(hub_id: HubId) -> str:
    """The address of the repository's page."""
    page = f"{endpoint()}/{hub_id.repository}"
    return page if hub_id.revision is None else f"{page}/tree/{hub_id.revision}"


def list_files(hub_id: HubId) -> Listing:
    """Asks the hub what the repository holds. Raises HubError, or HubUnreachableError if the hub does not answer."""
    with hub_errors(hub_id):
        found = api().model_info(hub_id.repository, revision=hub_id.revision, files_metadata=True, timeout=_SECONDS)
        files = {}
        for entry in found.siblings or ():
            if entry.lfs is not None:
                size, digest = entry.lfs.size, entry.lfs.sha256
            else:
                size, digest = entry.size, entry.blob_id
            if not isinstance(entry.rfilename, str):
                raise ValueError("a file without a name")
            if not isinstance(size, int) or not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", str(digest)):
                raise ValueError(f"no size and hash of {entry.rfilename}")
            files[entry.rfilename] = RemoteFile(entry.rfilename, size, str(digest))
        return Listing(hub_id, str(found.sha), bool(found.private), files)


@contextmanager
def open_file(listing: Listing, name: str, start: int) -> Iterator[tuple[bool, Iterator[bytes]]]:
    """Opens a file of a repository for reading from byte `start` on.

    Yields whether the server begins at `start` (otherwise it begins at the file's first byte), and the chunks. The
    errors are those of huggingface_hub and its HTTP client; `hub_errors` turns them into one line.
    """
    hub = library()
    url = hub.hf_hub_url(listing.hub_id.repository, name, revision=listing.commit, endpoint=endpoint())
    headers = dict(hub.utils.build_hf_headers(library_name="sol_rt"))
    headers["Accept-Encoding"] = "identity"  # sizes and ranges count the file's own bytes
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    # a retry after an exception would start inside the caller's loop over chunks, so only refusals are tried again
    retries: dict[str, Any] = {"max_retries": 2, "retry_on_exceptions": ()}
    with hub.utils.http_stream_backoff("GET", url, headers=headers, timeout=timeout, **retries) as response:
        hub.hf_raise_for_status(response)
        yield start == 0 or response.status_code == 206, response.iter_bytes()


def is_connection_error(error: BaseException) -> bool:
    """True if the HTTP client raised `error` because the connection failed. huggingface_hub 1 and 2 use two clients."""
    clients = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(clients & {"httpx", "httpx2"}) and not isinstance(error, OSError)


@contextmanager
def hub_errors(hub_id: HubId) -> Iterator[None]:
    """Turns every error of the hub and of the connection to it into a HubError of one line."""
    errors = library().errors
    hub = endpoint()
    try:
        yield
    except SolError:
        raise
    except errors.OfflineModeIsEnabled:
        raise HubUnreachableError(f"{hub_id}: HF_HUB_OFFLINE is set, so {hub} is not asked; unset it") from None
    except errors.GatedRepoError:
        raise HubError(f"{hub_id}: gated; accept its terms at {hub}/{hub_id.repository} and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise HubError(_missing(hub_id)) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{hub_id}: no such revision; give a branch, tag or commit of {hub_id.repository}") from None
    except errors.HFValidationError as error:
        raise UsageError(f"{hub_id}: {_line(error)}; expected owner/name") from None
    except errors.HfHubHTTPError as error:
        # the hub answers 401 to those without a token if there is no such repository, or a private one
        token = error.response.status_code != 401 or "Invalid credentials" in str(error.server_message)
        raise HubError(f"{hub_id}: {_refusal(error)}" if token else _missing(hub_id)) from None
    except OSError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # of the client, for JSON of another shape
        raise HubError(f"{hub_id}: {hub} does not answer as a model hub ({_line(error)})") from None
    except Exception as error:
        if not is_connection_error(error):
            raise
        raise HubUnreachableError(
            f"{hub_id}: {hub} can't be reached ({_line(error)}); go online, or try again"
        ) from None


def _missing(hub_id: HubId) -> str:
    return f"{hub_id}: no such repository at {endpoint()}, or a private one; check the name, or set HF_TOKEN"


def _refusal(error: Any) -> str:
    status = error.response.status_code
    told = error.server_message or error.response.reason_phrase or "no reason given"
    reason = f"the hub answers {status} ({_line(told)})"
    if status == 401:
        return f"{reason}; the token is not accepted: set HF_TOKEN to a valid one"
    if status == 403:
        return f"{reason}; the token does not permit this: set HF_TOKEN to one that does"
    return f"{reason}; try again later" if status >= 500 or status == 429 else reason


def _line(text: object) -> str:
    line = next((line for line in str(text).splitlines() if line.strip()), type(text).__name__)
    return " ".join(line.split())[:200].rstrip(".")
