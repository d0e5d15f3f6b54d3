"""Recipes say what an alias such as `smollm2-135m` stands for: one small JSON file per model in sol_rt/models."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

from sol_rt.bundle.config_reader import is_file_name
from sol_rt.errors import SolError, brief

_CALIBRATION = ".calibration.json"  # how the names of stored calibrations end


@dataclass(frozen=True)
class Recipe:
    """Source of a model's checkpoint: either `hub` is given, or `package`, `member` and `sha256`.

    Attributes:
        name: the alias.
        description: one line for people.
        license: SPDX name of the weights' licence, or its own name if SPDX has none.
        hub: id on the model hub, if possible with a revision.
        files: with `hub`, the files to fetch, each with its sha256. Nothing else is fetched or accepted. Without it all
            files that an export reads are fetched, and compared with the hashes that the hub states.
        package: requirement of a Python package that carries the weights.
        member: name of the weights file; without `parts`, inside the package.
        sha256: hash of the weights file, lower-case hex.
        parts: where the weights file is cut into pieces, the requirement of each piece's package and the piece's name
            in it. The pieces are joined in this order, and `package` is not fetched.
        terms: address of a licence that has to be accepted before the weights are fetched.
        calibration: file of a stored calibration beside the recipes; with it an export of the alias measures nothing.
    """

    name: str
    description: str
    license: str
    hub: str | None = None
    package: str | None = None
    member: str | None = None
    sha256: str | None = None
    parts: dict[str, str] | None = None
    terms: str | None = None
    files: dict[str, str] | None = None
    calibration: str | None = None

    def calibration_path(self) -> Path | None:
        """Path of the stored calibration; None if the recipe has none.

        Raises SolError if the recipe names a file that is not installed.
        """
        if self.calibration is None:
            return None
        path = Path(str(resources.files("sol_rt.models") / self.calibration))
        if not path.is_file():
            raise SolError(
                f"recipe {self.name}: {path} is missing; install sol_rt again, or export with --calibration quick"
            )
        return path


def aliases() -> dict[str, Recipe]:
    """Every installed recipe by its alias."""
    found = {}
    for entry in resources.files("sol_rt.models").iterdir():
        if entry.name.endswith(".json") and not entry.name.endswith(_CALIBRATION):
            recipe = _read(entry.name, entry.read_text(encoding="utf-8"))
            found[recipe.name] = recipe
    return dict(sorted(found.items()))


def _read(file: str, text: str) -> Recipe:
    try:
        recipe = Recipe(**json.loads(text))
    except (ValueError, TypeError) as error:
        known = ", ".join(field.name for field in fields(Recipe))
        raise SolError(f"recipe {file}: {error}; expected the keys {known}") from error
    if recipe.hub is None and not (recipe.package and recipe.member and recipe.sha256):
        raise SolError(f"recipe {file}: expected hub, or package, member and sha256")
    if recipe.parts is not None and not (recipe.parts and all(map(is_file_name, recipe.parts.values()))):
        raise SolError(f"recipe {file}: parts: got {brief(recipe.parts)}, expected file names by package")
    for name, digest in (recipe.files or {}).items():
        if not is_file_name(name) or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise SolError(f"recipe {file}: files: got {name!r}: {digest!r}, expected file names with their sha256")
    return recipe
