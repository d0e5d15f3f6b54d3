"""`sol-rt rm` removes bundles and checkpoints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sol_rt.cli import options
from sol_rt.cli.console import note
from sol_rt.errors import UsageError


def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names as sol-rt list shows them.", show_default=False)
    ],
    yes: Annotated[bool, options.option("-y", "--yes", env=False, help="Do not ask.")] = False,
    debug: options.Debug = False,
) -> None:
    """Remove bundles, checkpoints or unfinished downloads from $SOL_RT_HOME, with their cost tables."""
    from sol_rt.budget.cost.cost_table import tables_of
    from sol_rt.store.download import size_text
    from sol_rt.store.inventory import find_entry, inventory, remove_entry

    stored = inventory()
    entries = list(dict.fromkeys(find_entry(name, stored) for name in names))
    for entry in entries:
        note(f"{entry.kind} {entry.path}, {size_text(entry.bytes)}")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("rm: stdin is no terminal, so nobody can be asked; give --yes")
        if not typer.confirm("remove?", err=True):
            note("nothing was removed")
            raise typer.Exit(1)
    for entry in entries:
        tables = [] if entry.path.is_symlink() else tables_of(entry.path)  # what the link points at stays
        remove_entry(entry)
        for table in tables:
            table.unlink(missing_ok=True)
        print(entry.path)
    if any(entry.default for entry in entries):
        note("the default bundle is gone; name one with -m, export or pull")
