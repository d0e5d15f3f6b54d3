"""Runs a program in empty folders and without a network, by a small library in C that it preloads."""

from __future__ import annotations

from pathlib import Path

from .tools import preloaded

_LOG = "network.log"


def environment(folder: Path) -> dict[str, str]:
    """Variables for a program whose home, cache and temporary files are in empty folders, made within `folder`."""
    places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
    for name in places.values():
        (folder / name).mkdir(parents=True)
    made = {variable: str(folder / name) for variable, name in places.items()}
    return made | {"LD_PRELOAD": str(preloaded("no_network")), "NO_NETWORK_LOG": str(folder / _LOG)}


def traces(folder: Path) -> list[str]:
    """Lists the files that the program left in the folders of `environment`, and the uses of the internet it tried."""
    log = folder / _LOG
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and path != log]
    return files + (log.read_text(encoding="utf-8").splitlines() if log.exists() else [])
