"""`sol-rt migrate`: a bundle of an older format becomes one of today's."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from sol_rt.cli import options
from sol_rt.cli.console import note
from sol_rt.errors import SolError


def migrate(
    bundle: Annotated[str, typer.Argument(help="Bundle folder or name.", show_default=False)],
    debug: options.Debug = False,
) -> None:
    """Bring a bundle of an older format to the present one, in place; its weights and tokens stay the same. Prints the
    bundle's path.
    """
    if importlib.util.find_spec("onnx") is None:
        raise SolError("migrate needs onnx; run pip install 'sol-rt[export]'")
    from sol_rt.bundle.config import FORMAT_VERSION
    from sol_rt.export import migrate as work
    from sol_rt.store.home import find_bundle

    folder = find_bundle(bundle)
    done = work.migrate(folder)
    note(f"format {done.version} is now {FORMAT_VERSION}; written: {', '.join(done.graphs)}")
    if done.calibrations:
        note("its device calibration was of the old format and is removed: run sol-rt calibrate again")
    print(folder)
