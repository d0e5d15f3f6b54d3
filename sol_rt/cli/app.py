"""Registers the subcommands and turns every error into one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Annotated

import typer

from sol_rt import __version__
from sol_rt.cli import INTERRUPTED, READER_GONE, options
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
        return _reader_gone()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # click turns one into its own exit
            return _reader_gone()
        raise
    except _CLICK_ERROR as error:
        gone = advice(getattr(error, "option_name", ""))
        message = error.format_message()  # type: ignore[attr-defined]
        return _fail(gone or message + _origin(error, message, argv), 2)
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


def _reader_gone() -> int:
    """Ends quietly: nobody reads stdout or stderr any more, and flushing their buffers at exit would raise again."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(null, stream.fileno())
        except (OSError, ValueError):
            pass
    os.close(null)
    return READER_GONE


def _origin(error: Exception, message: str, argv: list[str]) -> str:
    """Names the wrong value, or the environment variable that it came from; empty where `message` says it already."""
    parameter = getattr(error, "param", None)
    flags, variable = set(getattr(parameter, "opts", ())), getattr(parameter, "envvar", None)
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in flags:
            got = value if equals else following
            return "" if not got or got in message else f"; got {got}"
    return f" (from ${variable})" if isinstance(variable, str) and variable in os.environ else ""


def _fail(message: str, code: int) -> int:
    if options.debug:
        traceback.print_exc()
    try:
        print("sol-rt: error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    except BrokenPipeError:
        _reader_gone()
    return code
