"""Shell completion: names of models and schedules after Tab. `sol-rt --install-completion` sets it up.

These functions run at every Tab, so they import little, and an error in them offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sol_rt.errors import SolError


def bundles(incomplete: str) -> list[str]:
    """Names of the bundles under $SOL_RT_HOME that begin with `incomplete`."""
    from sol_rt.store.home import bundle_names

    return _beginning(incomplete, _or_none(bundle_names))


def sources(incomplete: str) -> list[str]:
    """Names of bundles, and aliases of models that can be fetched."""
    return sorted({*bundles(incomplete), *aliases(incomplete)})


def aliases(incomplete: str) -> list[str]:
    """Aliases that begin with `incomplete`."""
    from sol_rt.store.recipes.recipe import aliases as known

    return _beginning(incomplete, _or_none(lambda: list(known())))


def schedules(incomplete: str) -> list[str]:
    """Schedules that begin with `incomplete`. After `fixed:` a tag is expected, which nothing is offered for."""
    from sol_rt.budget.schedules import NAMES

    return _beginning(incomplete, [name.removesuffix("TAG") for name in NAMES])


FOR_FLAG: dict[str, Callable[[str], list[str]]] = {
    "--model": sources,
    "--schedule": schedules,
    "--schedules": schedules,
}
"""Long flag to the function that completes its value, unless the option names another one."""


def _or_none(names: Callable[[], Iterable[str]]) -> Iterable[str]:
    try:
        return names()
    except (SolError, OSError):
        return ()


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
