"""`sol-rt migrate` brings a bundle of an older format to the current one."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from sol_rt.cli import options
from sol_rt.cli.console import note
from sol_rt.errors import SolError


def migrate(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder or name of the bundle.", show_default=False)],
    debug: options.Debug = False,
) -> None:
    """Bring a bundle of an older format to the current one, in place, and print its path.

    The bundle keeps its weights and generates the same tokens.
    """
    if importlib.util.find_spec("onnx") is None:
        raise SolError("migrate needs onnx; run pip install 'sol-rt[export]'")
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.export import migrate as work
    from sol_rt.store.home import find_bundle, keeping_source

    folder = find_bundle(bundle)
    with keeping_source(folder):
        done = work.migrate(folder)
    note(f"format {done.version} became {Bundle.open(folder).config.format_version}; written: {', '.join(done.graphs)}")
    if done.cost_tables:
        note("the bundle's cost table was of the old format and was removed; run sol-rt profile again")
    print(folder)
