"""Writes a bundle's folder: aside while the export runs, sealed with hashes, moved into place at the end."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sol_rt.atomic_write import replacing_folder
from sol_rt.bundle.bundle import sha256, sha256_in_one_state
from sol_rt.bundle.config import CONFIG_NAME, FileEntry, SolConfig
from sol_rt.bundle.file_state import FileState
from sol_rt.bundle.selection import Selection
from sol_rt.errors import CheckpointError, UsageError, WriteError
from sol_rt.export.card import model_card
from sol_rt.export.parity import Parity
from sol_rt.progress import Progress


def check_output(output: Path) -> None:
    """Raises UsageError if `output` exists and is neither a bundle nor an empty folder: it is not replaced then."""
    if output.is_dir() and ((output / CONFIG_NAME).is_file() or not any(output.iterdir())):
        return
    if output.exists() or output.is_symlink():
        raise UsageError(f"output {output}: it is there already and no bundle, so it stays; choose another place")


_FULL = (errno.ENOSPC, errno.EDQUOT)


def _no_room(output: Path) -> CheckpointError:
    return CheckpointError(f"disk: no room left in {output.parent}; make room or choose another -o")


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """Yields a new folder beside `output`, which takes the place of `output` at the end.

    After an exception the new folder is removed, and `output` is as it was. Raises CheckpointError for errors of the
    file system.
    """
    try:
        with replacing_folder(output) as folder:
            yield folder
    except WriteError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            raise _no_room(output) from error
        raise CheckpointError(f"output {output}: {error.reason}; choose another -o") from error
    except OSError as error:
        problem = error.strerror or error
        if error.errno in _FULL:  # copying names the file that it reads
            raise _no_room(output) from error
        if error.filename is None:
            raise CheckpointError(f"output {output}: {problem}; choose another -o") from error
        # near the output it would have been a WriteError, so it is a file of the source
        raise CheckpointError(f"{os.fsdecode(error.filename)}: {problem}; make it readable") from error


def seal(
    folder: Path,
    config: SolConfig,
    weights: FileEntry,
    parity: Parity | None = None,
    selection: Selection | None = None,
) -> SolConfig:
    """Writes the model card and, last, sol_config.json with the sizes and hashes of all other files.

    Args:
        folder: the bundle, complete but for these two files.
        config: its config; `files` is filled in here.
        weights: size and hash of weights.bin, which is too large to be hashed at every call.
        parity, selection: what the card reports, if it was measured.

    Returns:
        The config as written.
    """
    card = folder / "README.md"
    names = {path.name for path in folder.iterdir()} - {CONFIG_NAME, card.name}
    files = {name: weights if name == config.weights_file else _entry(folder / name) for name in names}
    card.write_text(model_card(replace(config, files=files), parity, selection), encoding="utf-8")
    files[card.name] = _entry(card)
    config = replace(config, files=dict(sorted(files.items())))
    text = json.dumps(config.to_json_dict(), indent=2, ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    return config


def hashed(path: Path, progress: Progress) -> tuple[FileEntry, FileState]:
    """The size and hash of a large file, and its state meanwhile. `progress` gets the bytes read."""
    size = path.stat().st_size
    digest, state = sha256_in_one_state(path, lambda done: progress(f"hashing {path.name}", done, size))
    return FileEntry(state.size, digest), state


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, sha256(path))
