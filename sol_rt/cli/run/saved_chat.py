"""The file that `/save` writes and `/load` reads: a conversation and its settings as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import write_bytes
from sol_rt.errors import UsageError, WriteError, brief
from sol_rt.read_file import read_bytes

FORMAT = "sol_rt.chat"
FORMAT_VERSION = 1
_PATH_ERRORS = (OSError, ValueError, RuntimeError)  # a name that is no file's, and a user who does not exist


@dataclass(frozen=True)
class SavedChat:
    """A conversation that was saved.

    Attributes:
        model: name of the model.
        system: the system message, or None.
        messages: questions and answers in turn, each with `role` and `content`.
        settings: the dial, under the names of `Dial`, and sampling, under those of `GenerationConfig`; a setting that
            is left out has its default.
    """

    model: str
    system: str | None
    messages: list[dict[str, str]]
    settings: dict[str, Any]

    def write(self, file: str) -> Path:
        """Replaces the file; `~` is the user's folder. Returns its path.

        Raises UsageError if the file cannot be written.
        """
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "system": self.system,
            "settings": self.settings,
            "messages": self.messages,
        }
        try:
            text = (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"/save {file}: the system message is not valid Unicode text; set another one with /system"
            ) from None
        try:
            path = Path(file).expanduser()
            write_bytes(path, text)
        except (WriteError, *_PATH_ERRORS) as error:
            raise UsageError(f"/save {file}: {_reason(error)}; choose another file") from None
        return path


def read(file: str) -> SavedChat:
    """Reads the file; `~` is the user's folder.

    Raises UsageError in one line if the file is missing, not a saved chat, or damaged.

    The values of `settings` are checked by whoever uses them; only their names are checked here.
    """
    try:
        content = read_bytes(Path(file).expanduser())
    except _PATH_ERRORS as error:
        raise _refused(file, _reason(error)) from None
    try:
        raw = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _refused(file, "not JSON") from None
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise _refused(file, "not a saved chat")
    version = raw.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise _refused(file, f"format version {brief(version)}, expected {FORMAT_VERSION}")
    names = [field.name for field in fields(SavedChat)]
    if wrong := sorted(set(raw) ^ set(names)):
        raise _refused(file, f"{'unknown' if wrong[0] in raw else 'no'} key {brief(wrong[0])}")
    if not is_text(raw["model"]) or not (raw["system"] is None or is_text(raw["system"])):
        raise _refused(file, "model and system have to be texts")
    if not isinstance(raw["settings"], dict):
        raise _refused(file, "settings has to be an object")
    if problem := _problem(raw["messages"]):
        raise _refused(file, problem)
    return SavedChat(**raw)


def _problem(messages: Any) -> str:
    """Describes a fault of the messages; empty if they are questions and answers in turn."""
    if not isinstance(messages, list) or len(messages) % 2:
        return "messages has to be a list of questions and answers in turn"
    for number, message in enumerate(messages):
        role = ("user", "assistant")[number % 2]
        if not isinstance(message, Mapping) or set(message) != {"role", "content"} or message["role"] != role:
            return f"message {number}: expected role {role!r} and content"
        if not is_text(message["content"]):
            return f"message {number}: its content is not a text"
    return ""


def is_text(value: Any) -> bool:
    """True for a string without lone surrogates, which JSON can write but no tokenizer reads."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _reason(error: Exception) -> str:
    if isinstance(error, WriteError):
        return error.reason
    return (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")


def _refused(file: str, problem: str) -> UsageError:
    return UsageError(f"/load {file}: {problem}; give a file that /save wrote")
