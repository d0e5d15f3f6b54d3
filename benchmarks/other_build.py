"""Lets a benchmark run another build of the CPU operators than the installed one."""

from __future__ import annotations

from pathlib import Path


def use(library: Path) -> None:
    """Makes every engine that this process opens from here on use `library`."""
    from sol_rt.engine import distribution, engine, providers

    def library_path(provider: str = "cpu") -> Path | None:
        return library.resolve() if provider == "cpu" else None

    for module in (distribution, engine, providers):
        module.library_path = library_path  # type: ignore[attr-defined]
