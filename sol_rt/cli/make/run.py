"""`sol-rt run` chats with a model, and fetches and exports it first where that is needed."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sol_rt.cli import completion, options
from sol_rt.cli.console import note, progress
from sol_rt.cli.make.export import export
from sol_rt.cli.run.chat import chat
from sol_rt.errors import UsageError


@options.with_options_of(chat, without=("model", "prompt"))
def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder or name of a bundle; or an alias, hub id, checkpoint folder or .gguf file, which is fetched "
            "and exported first.",
            autocompletion=completion.sources,
        ),
    ],
    question: Annotated[
        str | None,
        typer.Argument(metavar="[QUESTION]", help="Print the answer to this and exit. Default: a chat."),
    ] = None,
    prompt: Annotated[
        str | None, options.option("-p", "--prompt", env=False, help="QUESTION, given as an option.")
    ] = None,
    **chat_options: Any,
) -> None:
    """Chat with a model, which is fetched and exported first if it is not here. The options are those of chat."""
    if question is not None and prompt is not None:
        raise UsageError("run: QUESTION and --prompt both give a question; give one")
    asked = prompt if question is None else question
    if asked is not None and not asked.strip():
        raise UsageError("run: the question is empty; give some text, or none for a chat")
    if asked is None:
        _refuse_question(model)
    chat(model=str(obtained(model)), prompt=asked, **chat_options)


def _refuse_question(model: str) -> None:
    """Raises UsageError if `model` reads like a question: it has several words, and nothing here has that name."""
    from sol_rt.store.home import bundle_names, find_bundle, user_path

    if len(model.split()) < 2 or model in bundle_names() or user_path(model).exists():
        return
    default = "smollm2-135m"
    with contextlib.suppress(UsageError):
        default = name if (name := find_bundle(None).name) in bundle_names() else default
    raise UsageError(f"run: expected a model first: sol-rt run {default} {shlex.quote(model)}")


def obtained(model: str) -> Path:
    """The bundle that `model` names; it is fetched or exported if it is not here. Notes on stderr say so.

    Raises UsageError for an unknown model and if a bundle of another source has its name, and what fetching and
    exporting raise.
    """
    from sol_rt.bundle.config import CONFIG_NAME
    from sol_rt.store.home import bundles_dir, find_bundle, user_path
    from sol_rt.store.pull import bundle_made_of, bundle_name, pull

    with contextlib.suppress(UsageError):
        found = find_bundle(model)
        if (found / CONFIG_NAME).is_file():
            return found
    if (there := bundle_made_of(model, note)) is not None:
        return there
    made = bundles_dir() / bundle_name(model)
    if not user_path(model).exists():
        note(f"{model}: not here yet; fetching it")
        with progress() as report:
            fetched = pull(model, report, say=note)
        if (fetched / CONFIG_NAME).is_file():
            return fetched
    note(f"{model}: no bundle yet; exporting it to {made}")
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answer
        export(model)
    return made
