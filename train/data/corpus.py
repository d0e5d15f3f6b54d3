"""Reads text to train on: files and folders become token sequences, one per file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sol_rt.errors import UsageError
from sol_rt.read_file import read_bytes
from sol_rt.text.tokenizer import Tokenizer

Tokens = npt.NDArray[np.int64]

_MOST_BYTES = 16 << 30  # of a file
_SUFFIXES = (".txt", ".md", ".jsonl")
_FIELDS = (("text",), ("question", "answer"))
"""Sets of fields that a line of a .jsonl file may hold. The first set that a line has is taken."""
_PIECE = 1 << 18  # characters tokenized at once


def read_documents(paths: Sequence[Path], tokenizer: Tokenizer, told: Callable[[int, int], None]) -> list[Tokens]:
    """Reads and tokenizes files. Returns the tokens of each, int64 [n], in the order of `paths`.

    Every line of a .jsonl file is an object with a field `text`, or with `question` and `answer`. Blank lines separate
    the records in the text.

    Args:
        paths: files, and folders whose .txt, .md and .jsonl files are taken in the order of their paths.
        tokenizer: the model's. No special tokens are added.
        told: called with the number of files done and of all.

    Raises UsageError for a missing path, a folder without text, an empty file, a file that is not UTF-8, and a .jsonl
    file with other lines.
    """
    files = [file for path in paths for file in _files(path)]
    documents = []
    for done, file in enumerate(files):
        told(done, len(files))
        pieces = _pieces(_text(file))
        ids = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
        documents.append(np.array(ids, np.int64))
    told(len(files), len(files))
    return documents


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(entry for entry in path.rglob("*") if entry.suffix in _SUFFIXES and entry.is_file())
    if not files:
        raise UsageError(f"--data {path}: no {', '.join(_SUFFIXES)} file inside; name files, or another folder")
    return files


def _text(file: Path) -> str:
    try:
        data = read_bytes(file, _MOST_BYTES, pipes=True)
    except OSError as error:
        raise UsageError(f"--data {file}: {error.strerror}; name a text file or a folder of them") from None
    try:
        if (zero := data.find(b"\0")) >= 0:
            raise UnicodeDecodeError("utf-8", data, zero, zero + 1, "no text has it")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"got binary data at byte {error.start}, expected UTF-8 text"
        raise UsageError(f"--data {file}: {got}; name another file, or convert it") from None
    if file.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)  # not splitlines(): a JSON string may hold other line separators
        text = "\n\n".join(_record(line, f"--data {file}: line {number}") for number, line in lines if line.strip())
    if not text.strip():
        raise UsageError(f"--data {file}: the file is empty; leave it out, or name another one")
    return text


def _record(line: str, where: str) -> str:
    expected = " or ".join(" and ".join(names) for names in _FIELDS)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UsageError(f"{where}: got no JSON object, expected one with {expected}; write one object per line")
    for names in _FIELDS:
        values = [record.get(name) for name in names]
        if all(isinstance(value, str) for value in values):
            return "\n".join(map(str, values))
    found = ", ".join(map(str, record))[:80] or "none"
    raise UsageError(f"{where}: got the fields {found}, expected texts under {expected}; rename the fields")


def _pieces(text: str) -> Iterator[str]:
    """Cuts the text into pieces, at ends of lines where there are any, so that no word is cut."""
    start = 0
    while start < len(text):
        stop = start + _PIECE
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop
