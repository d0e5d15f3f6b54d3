"""`sol-rt pull` fetches a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from sol_rt.cli import options
from sol_rt.cli.console import note, progress
from sol_rt.errors import UsageError


def pull(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Alias or hub id; without it, all aliases are listed.")
    ] = None,
    model: Annotated[str | None, options.option("-m", "--model", env=False, help="MODEL, given as an option.")] = None,
    debug: options.Debug = False,
) -> None:
    """Fetch a checkpoint, check it, and print its path. Without MODEL, list the known aliases."""
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
        path = fetch(wanted, report)
    note(f"{wanted} is fetched; next: sol-rt export -m {wanted}")
    print(path)
