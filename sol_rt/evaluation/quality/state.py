"""Stores an evaluation's results in a file of JSON lines, so that a stopped evaluation can continue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import write_errors, write_text
from sol_rt.errors import UsageError, cut
from sol_rt.read_file import read_bytes

FORMAT = "sol_rt.evaluation_state"
VERSION = 1


class State:
    """Results by key, in memory and, if a path is given, in a file.

    The file's first line holds the settings for which the results are valid. Every other line is
    `{"key": …, "result": …}`. Each result is appended at once. If the process was killed while it wrote a line, that
    line is dropped when the file is opened again.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Opens or creates the file. Raises UsageError for another kind of file or one made with other settings."""
        self._path = path
        self._results: dict[str, Any] = {}
        header = {"format": FORMAT, "format_version": VERSION, **settings}
        if path is None:
            return
        if path.is_dir():
            raise UsageError(f"--state {path}: got a folder, expected a file")
        try:
            text = read_bytes(path) if path.exists() else b""
        except OSError as error:
            raise UsageError(f"--state {path}: {error.strerror}; name another file") from None
        if not text:
            write_text(path, json.dumps(header) + "\n")
            return
        whole = text[: text.rfind(b"\n") + 1]
        try:
            found, *lines = (json.loads(line) for line in whole.splitlines())
            if found["format"] != FORMAT:
                raise ValueError
            results = {line["key"]: line["result"] for line in lines}
        except (ValueError, KeyError, TypeError, RecursionError):
            hint = "expected one that `sol-rt eval --state` wrote; name another file"
            raise UsageError(f"--state {path}: got another kind of file, {hint}") from None
        other = [name for name in header if found.get(name) != header[name]]
        if other:
            name = other[0]
            what = f"{name} is {cut(found.get(name))}, here it is {header[name]}"
            raise UsageError(f"--state {path}: its {what}; name another file, or the same settings")
        self._results = results
        if len(whole) != len(text):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def get(self, key: str) -> Any:
        """Returns the result of a key; None if there is none yet."""
        return self._results.get(key)

    def put(self, key: str, result: Any) -> None:
        """Stores a result, which must be JSON-serializable. Raises WriteError."""
        self._results[key] = result
        if self._path is not None:
            with write_errors(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "result": result}, allow_nan=False) + "\n")
