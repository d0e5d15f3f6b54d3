"""Registers the subcommands and turns every error into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Annotated

import typer

from sol_rt import __version__
from sol_rt.cli import INTERRUPTED, READER_GONE, options
from sol_rt.cli.environment import Command
from sol_rt.errors import SolError, cut

COMMANDS = {
    "run": "make.run:run",
    "chat": "run.chat:chat",
    "generate": "run.generate:generate",
    "serve": "run.serve:serve",
    "export": "make.export:export",
    "train": "make.train:train",
    "inspect": "show.inspect:inspect",
    "profile": "measure.profile:profile",
    "bench": "measure.bench:bench",
    "perplexity": "measure.perplexity:perplexity",
    "eval": "measure.eval:evaluate",
    "trace": "show.trace:trace",
    "pull": "make.pull:pull",
    "list": "show.list:list_stored",
    "rm": "make.rm:rm",
    "push": "make.push:push",
    "verify": "show.verify:verify",
    "doctor": "show.doctor:doctor",
    "ppl": "measure.perplexity:perplexity",
    "calibrate": "measure.profile:calibrate",
}
"""Subcommand to the module under sol_rt.cli and the function in it, in the order of the help."""
HIDDEN = {"ppl", "calibrate"}
_MEASURES = {"bench", "perplexity", "ppl", "profile", "calibrate", "eval"}
TAKES_MODEL = {"export", "chat", "serve", "inspect", "verify", *_MEASURES}
"""Commands whose argument is a model, which `-m` names otherwise."""
_ARGUMENT_IS = {"generate": "-p gives the prompt, -m names the model", "train": "-m names the model, -d the text"}
"""Commands without an argument, to the options that say what one would."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Of a write. Every writer of files names its file, so without a name it is stdout."""

# Newer versions of Typer carry their own copy of click. Every version exports BadParameter, which leads to the base.
_CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


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


def make_app(names: Iterable[str]) -> typer.Typer:
    """The command line with the subcommands `names`. Building one takes some milliseconds, and imports its module."""
    app = typer.Typer(
        name="sol-rt",
        help="Run a language model at the share of its full cost that --budget sets.",
        epilog="An environment variable sets a flag: SOL_RT_TOP_K sets --top-k. Bundles are stored under $SOL_RT_HOME.",
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_program)
    for name in names:
        module, _, function = COMMANDS[name].partition(":")
        command = getattr(importlib.import_module(f"sol_rt.cli.{module}"), function)
        if name in TAKES_MODEL:
            command = options.with_model_argument(command)
        # Typer keeps line breaks within all paragraphs but the first.
        paragraphs = [" ".join(each.split()) for each in inspect.cleandoc(command.__doc__ or "").split("\n\n")]
        app.command(name, cls=Command, help="\n\n".join(paragraphs), hidden=name in HIDDEN)(command)
    return app


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit code. Prints errors as one line; --debug adds the traceback.

    Raises KeyboardInterrupt after Ctrl-C.
    """
    options.debug = False
    # a command that comes first is built alone; help, completion and a misspelt name need all of them
    names = argv[:1] if argv and argv[0] in COMMANDS else list(COMMANDS)
    try:
        code = make_app(names)(argv, prog_name="sol-rt", standalone_mode=False)
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
        message = error.format_message()  # type: ignore[attr-defined]
        if "unexpected extra argument" in message and (meant := _ARGUMENT_IS.get(argv[0])):
            message += f"; {meant}"
        return _fail(message + _origin(error, message, argv), 2, argv)
    except SolError as error:
        return _fail(error.whole, error.exit_code, argv)
    except MemoryError:
        return _fail("out of memory: close other programs, or use a smaller model or --ctx-size", 1, argv)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else "stdout: " if error.errno in _FULL else ""
        return _fail(f"{where}{error.strerror or error}", 1, argv)
    except Exception as error:
        if isinstance(error, ValueError) and any("\0" in argument for argument in argv):  # Typer looks for the file
            return _fail(f"{error}: got a NUL character in an argument, expected none; leave it out", 2, argv)
        return _fail(f"unexpected {type(error).__name__}: {error}; run again with --debug and report it", 1, argv)
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
    for argument, following in reversed([*zip(argv, [*argv[1:], ""], strict=True)]):  # the last one counts
        flag, equals, value = argument.partition("=")
        if flag in flags:
            got = value if equals else following
            return "" if not got or got in message or repr(got)[1:-1] in message else f"; got {got}"
    return f" (from ${variable})" if isinstance(variable, str) and variable in os.environ else ""


def _shortened(message: str, argv: list[str]) -> str:
    """The message with at most 200 characters of each value that the command line or the environment gave."""
    given = [*argv, *(value for name, value in os.environ.items() if name.startswith("SOL_RT_"))]
    parts = {part for text in given for part in (text, text.partition("=")[2], text[2:]) if part != cut(part)}
    forms = {form for part in parts for form in (part, repr(part)[1:-1])}
    for form in sorted(forms, key=len, reverse=True):
        message = message.replace(form, cut(form))
    return message


def _fail(message: str, code: int, argv: list[str]) -> int:
    if options.debug:
        traceback.print_exc()
    try:
        # a SolError's text is plain and not too long
        line = str(SolError(" ".join(_shortened(message, argv).split())))
        print(f"sol-rt: error: {line}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        _reader_gone()
    return code
