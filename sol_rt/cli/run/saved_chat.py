"""The file that `/save` writes and `/load` reads: a conversation and its settings as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sol_rt.errors import UsageError

FORMAT = "sol_rt.chat"
FORMAT_VERSION = 1


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

    def write(self, path: Path) -> None:
        """Writes the file under another name first and then renames it. Raises UsageError if that fails."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "system": self.system,
            "settings": self.settings,
            "messages": self.messages,
        }
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            try:
                aside.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"/save {path}: {error.strerror}; choose another file") from None


def read(path: Path) -> SavedChat:
    """Reads the file. Raises UsageError in one line if it is missing, not a saved chat, or damaged.

    The values of `settings` are checked by whoever uses them; only their names are checked here.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(path, str(error.strerror)) from None
    except (ValueError, RecursionError):
        raise _refused(path, "not JSON") from None
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise _refused(path, "not a saved chat")
    version = raw.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise _refused(path, f"format version {version}, expected {FORMAT_VERSION}")
    names = [field.name for field in fields(SavedChat)]
    if wrong := sorted(set(raw) ^ set(names)):
        raise _refused(path, f"{'unknown' if wrong[0] in raw else 'no'} key {wrong[0]!r}")
    if not isinstance(raw["model"], str) or not isinstance(raw["system"], (str, type(None))):
        raise _refused(path, "model and system have to be texts")
    if not isinstance(raw["settings"], dict):
        raise _refused(path, "settings has to be an object")
    if problem := _problem(raw["messages"]):
        raise _refused(path, problem)
    return SavedChat(**raw)


def _problem(messages: Any) -> str:
    """What is wrong with the messages; empty if they are questions and answers in turn."""
    if not isinstance(messages, list) or len(messages) % 2:
        return "messages has to be a list of questions and answers in turn"
    for number, message in enumerate(messages):
        role = ("user", "assistant")[number % 2]
        if not isinstance(message, Mapping) or set(message) != {"role", "content"} or message["role"] != role:
            return f"message {number}: expected role {role!r} and content"
        if not isinstance(message["content"], str):
            return f"message {number}: its content is not a text"
    return ""


def _refused(path: Path, problem: str) -> UsageError:
    return UsageError(f"/load {path}: {problem}; give a file that /save wrote")
