"""`sol-rt trace` draws a recorded generation as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sol_rt.cli import options
from sol_rt.errors import UsageError


def trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Trace that sol-rt generate --trace wrote.")],
    output: Annotated[
        Path | None, options.option("-o", "--output", env=False, help="Page to write; default: FILE with .html.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Draw a trace as one self-contained HTML page: prompt, settings, text shaded by cost, and budget over time."""
    from sol_rt.atomic_write import write_text
    from sol_rt.cli.loading import require_packages
    from sol_rt.generate.trace import read_trace

    target = output or file.with_suffix(".html")
    if target.resolve() == file.resolve():
        raise UsageError(f"{file}: the page would overwrite the trace; choose another -o")
    read = read_trace(file)
    require_packages("plot", what="trace")
    from sol_rt.evaluation.pages.trace import render_trace_html

    write_text(target, render_trace_html(read))
    print(target)
