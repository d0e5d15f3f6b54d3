"""`sol-rt list` shows what is stored on this machine."""

from __future__ import annotations

from datetime import datetime

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, print_table


def list_stored(
    output: options.Output = options.Format.text, json: options.Json = False, debug: options.Debug = False
) -> None:
    """List the bundles and checkpoints under $SOL_RT_HOME. An asterisk marks the bundle that is used without -m."""
    from rich.table import Table

    from sol_rt.store.home import home
    from sol_rt.store.inventory import inventory

    entries = inventory()
    times = [datetime.fromtimestamp(entry.modified).astimezone() for entry in entries]
    if json or output is options.Format.json:
        print_json(
            [
                {
                    "name": entry.name,
                    "kind": entry.kind,
                    "bytes": entry.bytes,
                    "modified": time.isoformat(timespec="seconds"),
                    "default": entry.default,
                    "path": str(entry.path),
                }
                for entry, time in zip(entries, times, strict=True)
            ]
        )
        return
    if not entries:
        note(f"nothing in {home()} yet; next: sol-rt pull, which lists known models")
        return
    table = Table("name", "kind", "MB", "written", "default")
    table.columns[2].justify = "right"
    for entry, time in zip(entries, times, strict=True):
        default = "*" if entry.default else ""
        table.add_row(entry.name, entry.kind, f"{entry.bytes / 1e6:.1f}", f"{time:%Y-%m-%d %H:%M}", default)
    print_table(table)
