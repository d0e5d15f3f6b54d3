"""Text to train on: files and folders become token sequences, one a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sol_rt.errors import UsageError
from sol_rt.tokenizer import Tokenizer
from sol_rt.train.windows import Tokens

_SUFFIXES = (".txt", ".md", ".jsonl")
_PIECE = 1 << 18  # characters encoded at once


def read_documents(paths: Sequence[Path], tokenizer: Tokenizer, told: Callable[[int, int], None]) -> list[Tokens]:
    """The tokens of every file, int64 [n] each, in the order given; of folders every .txt, .md and .jsonl file inside.

    A line of a .jsonl file is an object whose strings are text, such as question and answer; a blank line parts them.

    Args:
        paths: files and folders. tokenizer: the model's. told: called with files done and files in total.

    Raises UsageError for a path that isn't there, a folder without text, and a file that is no UTF-8 or no JSON.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(entry for entry in path.rglob("*") if entry.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"--data {path}: no {', '.join(_SUFFIXES)} file inside; name files, or another folder")
        files += inside
    documents = []
    for done, file in enumerate(files):
        told(done, len(files))
        text = _text(file)
        pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
        ids = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
        documents.append(np.array(ids, np.int64))
    told(len(files), len(files))
    return documents


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--data {file}: byte {error.start} is not UTF-8; convert it, for example with iconv"
        ) from None
    except OSError as error:
        raise UsageError(f"--data {file}: {error.strerror}") from None
    if file.suffix != ".jsonl":
        return text
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
            records.append("\n".join(value for value in record.values() if isinstance(value, str)))
        except (ValueError, AttributeError):
            raise UsageError(f"--data {file}: line {number}: got no JSON object, expected one with strings") from None
    return "\n\n".join(records)
