"""Licences that a person has to accept before weights are fetched, and the record of those that were accepted.

The record is `$SOL_RT_HOME/accepted-licenses.json`: address of a licence -> its name, and when it was accepted.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import write_errors, write_text
from sol_rt.errors import UsageError
from sol_rt.store.home import home
from sol_rt.store.recipes.recipe import Recipe


def is_accepted(recipe: Recipe) -> bool:
    """True if the recipe's licence needs no acceptance, or was accepted on this machine."""
    return recipe.terms is None or recipe.terms in _record()


def require_accepted(recipe: Recipe) -> None:
    """Raises UsageError if the recipe's licence needs acceptance and was not accepted yet."""
    if not is_accepted(recipe):
        raise UsageError(
            f"{recipe.name}: its licence, {recipe.license} ({recipe.terms}), has to be accepted first; read it, then "
            f"run sol-rt pull {recipe.name} --accept-license"
        )


def accept(recipe: Recipe) -> None:
    """Records that the recipe's licence was accepted. Raises WriteError if the record cannot be written."""
    if recipe.terms is None:
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {**_record(), recipe.terms: {"license": recipe.license, "accepted": now}}
    with write_errors(_path()):
        _path().parent.mkdir(parents=True, exist_ok=True)
    write_text(_path(), json.dumps(record, indent=2) + "\n")


def _path() -> Path:
    return home() / "accepted-licenses.json"


def _record() -> dict[str, Any]:
    """Licences that were accepted so far. Empty if the record cannot be read; then the question is asked again."""
    try:
        record = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
