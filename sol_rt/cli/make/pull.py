"""`sol-rt pull` fetches a ready bundle or a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from sol_rt.cli import options
from sol_rt.cli.console import note, progress
from sol_rt.errors import UsageError


def pull(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Alias, or hub id owner/name[@revision]; without it, all aliases are listed."
        ),
    ] = None,
    model: Annotated[str | None, options.option("-m", "--model", env=False, help="MODEL, given as an option.")] = None,
    force: Annotated[
        bool, options.option("--force", env=False, help="Replace another bundle of the same name.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a ready bundle or a checkpoint, check it, and print its path. Without MODEL, list the known aliases.

    A download that was interrupted is continued. A ready bundle becomes the default model.
    """
    from sol_rt.bundle.config import CONFIG_NAME
    from sol_rt.store.pull import pull as fetch
    from sol_rt.store.recipes import aliases

    if name and model and name != model:
        raise UsageError(f"pull: got two models, {name} and {model}; give one")
    wanted = name or model
    if wanted is None:
        for recipe in aliases().values():
            print(f"{recipe.name:16} {recipe.description} ({recipe.license})")
        return
    with progress() as report:
        path = fetch(wanted, report, say=note, replace=force)
    ready = (path / CONFIG_NAME).is_file()
    next_step = "sol-rt chat" if ready else f"sol-rt export -m {wanted}"
    note(f"{wanted} is fetched; next: {next_step}")
    print(path)
