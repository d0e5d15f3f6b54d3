"""`sol-rt push` uploads a bundle to the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from sol_rt.cli import options
from sol_rt.cli.console import progress
from sol_rt.errors import UsageError


def push(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder or name of the bundle.", show_default=False)],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Hub id owner/name to upload to.", show_default=False)
    ],
    private: Annotated[bool, options.option("--private", env=False, help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, options.option("--revision", env=False, help="Branch to upload to; default: the main branch.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Check a bundle, upload it with its card to a hub repository, and print the repository's address.

    The token is $HF_TOKEN, or the one that `hf auth login` stored.
    """
    from sol_rt.store.home import find_bundle
    from sol_rt.store.hub import HubId
    from sol_rt.store.push import push as send

    given = HubId.parse(repository if revision is None else f"{repository}@{revision}")
    if given is None:
        name = repository if revision is None else f"{repository} --revision {revision}"
        raise UsageError(f"push {name}: expected a hub id owner/name, with --revision a branch")
    folder = find_bundle(bundle)
    with progress() as report:
        address = send(folder, given, report, private=private)
    print(address)
