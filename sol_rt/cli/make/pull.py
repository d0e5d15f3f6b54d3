"""`sol-rt pull` fetches a ready bundle or a checkpoint."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sol_rt.cli import completion, options
from sol_rt.cli.console import note, progress
from sol_rt.errors import UsageError

if TYPE_CHECKING:
    from sol_rt.store.recipes.recipe import Recipe


def pull(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Alias, or hub id owner/name\\[@revision]; without it, all aliases are listed.",
            autocompletion=completion.aliases,
        ),
    ] = None,
    model: Annotated[str | None, options.option("-m", "--model", env=False, help="MODEL, given as an option.")] = None,
    force: Annotated[
        bool, options.option("--force", env=False, help="Replace another bundle of the same name.")
    ] = False,
    accept_license: Annotated[
        bool,
        options.option("--accept-license", env=False, help="Accept the licence of a model that asks for acceptance."),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a ready bundle or a checkpoint, check it, and print its path. Without MODEL, list the known aliases.

    A download that was interrupted is continued. A ready bundle becomes the default model. A licence that asks for
    acceptance is shown first; the acceptance is recorded in $SOL_RT_HOME.
    """
    from sol_rt.bundle.config import CONFIG_NAME
    from sol_rt.store.home import bundle_names
    from sol_rt.store.pull import pull as fetch
    from sol_rt.store.recipes.recipe import aliases

    if name and model and name != model:
        raise UsageError(f"pull: got two models, {name} and {model}; give one")
    wanted = name or model
    known = aliases()
    if wanted is None:
        widest = max(map(len, known), default=0)
        here = set(bundle_names())
        for recipe in known.values():
            asks = "" if recipe.terms is None else ", which asks for acceptance"
            marked = ", here" if recipe.name in here else ""
            print(f"{recipe.name:{widest}} {recipe.description} ({recipe.license}{asks}{marked})")
        return
    if wanted in known:
        _settle_license(known[wanted], accept_license)
    with progress() as report:
        path = fetch(wanted, report, say=note, replace=force)
    ready = (path / CONFIG_NAME).is_file()
    next_step = "sol-rt chat" if ready else f"sol-rt export -m {wanted}"
    note(f"{wanted} is fetched; next: {next_step}")
    print(path)


def _settle_license(recipe: Recipe, accepted: bool) -> None:
    """Shows a licence that asks for acceptance, and asks at a terminal. Raises UsageError if nobody can be asked."""
    from sol_rt.store.recipes.license import accept, is_accepted, require_accepted

    if is_accepted(recipe):
        return
    note(f"{recipe.name} comes under a licence that has to be accepted: {recipe.license}, {recipe.terms}")
    if not accepted:
        if not sys.stdin.isatty():
            require_accepted(recipe)
        if not typer.confirm("accept it?", err=True):
            note("nothing was fetched")
            raise typer.Exit(1)
    accept(recipe)
