"""`sol-rt trace` draws a recorded generation as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sol_rt.cli import options
from sol_rt.errors import SolError, UsageError

if TYPE_CHECKING:
    from sol_rt.generate.trace import TraceHeader


def trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Trace that sol-rt generate --trace wrote.")],
    model: Annotated[
        str | None,
        options.option(
            "-m",
            "--model",
            env=False,
            help="Bundle whose tokenizer gives the prompt's text, for a trace that has only its tokens; default: the "
            "bundle that the trace was made with, if it is in $SOL_RT_HOME.",
        ),
    ] = None,
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

    page = render_trace_html(read, None if read.header.prompt else _decoded_prompt(read.header, model))
    write_text(target, page)
    print(target)


def _decoded_prompt(header: TraceHeader, model: str | None) -> str | None:
    """The prompt's text by the tokenizer of the bundle that the trace was made with; None where that is not here."""
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.store.home import find_bundle

    try:
        bundle = Bundle.open(find_bundle(model or header.bundle))
    except SolError:
        if model is not None:
            raise
        return None
    if bundle.identity != header.config_sha256:
        if model is not None:
            made_with = f"{header.bundle}, config {header.config_sha256[:12]}"
            raise UsageError(f"-m {model}: not the bundle that the trace was made with ({made_with}); name that one")
        return None
    return bundle.tokenizer().decode(header.prompt_tokens, skip_special_tokens=False)
