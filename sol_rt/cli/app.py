"""Registers the subcommands and turns every error into one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Annotated

import typer

from sol_rt import __version__
from sol_rt.cli import INTERRUPTED, options
from sol_rt.cli.make.export import export
from sol_rt.cli.make.migrate import migrate
from sol_rt.cli.make.pull import pull
from sol_rt.cli.make.push import push
from sol_rt.cli.make.rm import rm
from sol_rt.cli.make.run import run as run_model
from sol_rt.cli.make.train import train
from sol_rt.cli.measure.bench import bench
from sol_rt.cli.measure.calibrate import calibrate
from sol_rt.cli.measure.eval import evaluate
from sol_rt.cli.measure.perplexity import perplexity
from sol_rt.cli.renamed import advice, check_environment
from sol_rt.cli.run.chat import chat
from sol_rt.cli.run.generate import generate
from sol_rt.cli.show.doctor import doctor
from sol_rt.cli.show.inspect import inspect
from sol_rt.cli.show.list import list_stored
from sol_rt.cli.show.trace import trace
from sol_rt.cli.show.verify import verify
from sol_rt.errors import SolError

app = typer.Typer(
    name="sol-rt",
    help="Run a language model at the share of its full cost that --budget sets.",
    epilog="An environment variable sets a flag: SOL_RT_TOP_K sets --top-k. Bundles are stored under $SOL_RT_HOME.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (export, generate, chat, bench, perplexity, train, calibrate, inspect, verify, trace, pull, doctor):
    app.command()(command)
app.command("eval")(evaluate)
app.command("list")(list_stored)
app.command()(rm)
app.command()(push)
app.command("run")(run_model)
app.command("ppl", hidden=True)(perplexity)
app.command("migrate", hidden=True)(migrate)

# Newer versions of Typer carry their own copy of click. Every version exports BadParameter, which leads to the base.
_CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("-V", "--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    debug: options.Debug = False,
) -> None:
    if version:
        print(f"sol-rt {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        # Typer prints the help itself if it draws it with rich; otherwise it returns the text. Both go to stderr.
        with contextlib.redirect_stdout(sys.stderr):
            print(context.get_help())
        raise typer.Exit(2)
    check_environment()


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit code. Prints errors as one line; --debug adds the traceback.

    Raises KeyboardInterrupt after Ctrl-C.
    """
    options.debug = False
    try:
        code = app(argv, prog_name="sol-rt", standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:  # older versions of Typer turn Ctrl-C into Abort; newer ones return exit code 130
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # The reader of stdout is gone. Flushing the rest of the buffer at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except _CLICK_ERROR as error:
        gone = advice(getattr(error, "option_name", ""))
        return _fail(gone or error.format_message() + _origin(error, argv), 2)  # type: ignore[attr-defined]
    except SolError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail("out of memory: close other programs, or use a smaller model or --ctx-size", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {error}; run again with --debug and report it", 1)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _origin(error: Exception, argv: list[str]) -> str:
    """Names the environment variable that a wrong value came from; empty if it came from a flag."""
    parameter = getattr(error, "param", None)
    variable = getattr(parameter, "envvar", None)
    if not isinstance(variable, str) or variable not in os.environ:
        return ""
    given = {argument.split("=")[0] for argument in argv}
    return "" if given & set(getattr(parameter, "opts", ())) else f" (from ${variable})"


def _fail(message: str, code: int) -> int:
    if options.debug:
        traceback.print_exc()
    print("sol-rt: error: " + " ".join(message.split()), file=sys.stderr)
    return code
