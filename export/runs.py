"""Runs of a bundle's variants for measurements: in the native core."""

from __future__ import annotations

from pathlib import Path

from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.generate.native.model import NativeModel
from sol_rt.generate.native.session import NativeSession
from sol_rt.ops import core_path

Runs = Engine | NativeSession
"""`forward`, `truncate`, `set_active_channels`, and the tokens in the cache."""


def open_runs(folder: Path) -> Runs:
    """Opens the bundle in `folder`, whose weights need no hash yet.

    Where the package was built without the core, the Python engine runs it, with the same results.

    Raises BundleError, ProviderError.
    """
    if core_path() is None:
        return Engine(Bundle.open(folder), provider="cpu")
    return NativeModel.from_pretrained(folder, verify=False, measure_costs=False).session()
