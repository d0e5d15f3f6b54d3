"""Writes a bundle's folder: aside while the export runs, sealed with hashes, moved into place at the end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sol_rt.atomic_write import alone, replacing_folder, write_bytes, write_text
from sol_rt.bundle.bundle import Bundle, sha256, sha256_in_one_state
from sol_rt.bundle.config import CONFIG_NAME, FileEntry, SolConfig
from sol_rt.bundle.config_reader import parse_config, read_config
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


def give_file(
    path: Path, stem: str, suffix: str, make: Callable[[Bundle], tuple[bytes, Callable[[str], SolConfig]]]
) -> Bundle:
    """Gives the bundle in the folder `path` a file in the place of the one of its kind, if any, and returns the bundle.

    The file gets a new name, STEM-HASH and the suffix, and the config is replaced as a whole after it. So an
    interruption leaves either the old bundle or the new one. Of two processes at once, one waits: it would remove a
    file whose config is yet to come.

    Args:
        path: the bundle.
        stem, suffix: of the names of files of this kind, as STEM and the suffix or with a hash.
        make: returns the file's content, and a function from its name to the new config, whose `files` are filled in
            here.

    Raises BundleError if `path` is not a complete bundle or would not be one with the file, CheckpointError where it
    cannot write, and what `make` raises.
    """
    kind = re.compile(rf"{stem}(-[0-9a-f]{{8}})?{re.escape(suffix)}")
    Bundle.open(path)  # refuses what is no bundle
    with alone(path):
        bundle = Bundle.open(path)
        folder = bundle.path.resolve()
        content, config_with = make(bundle)
        digest = hashlib.sha256(content).hexdigest()
        name = f"{stem}-{digest[:8]}{suffix}"
        config = config_with(name)
        others = {file: entry for file, entry in config.files.items() if not kind.fullmatch(file)}
        files = {**others, name: FileEntry(len(content), digest)}
        document = replace(config, files=dict(sorted(files.items()))).to_json_dict()
        parse_config(document, folder / CONFIG_NAME)  # a wrong config must not replace a right one
        if sha256(folder / CONFIG_NAME) != bundle.identity:
            raise CheckpointError(
                f"{folder}: another export replaced it meanwhile, so it got no new {stem}; run the command again"
            )
        try:
            write_bytes(folder / name, content)
            write_text(folder / CONFIG_NAME, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        except WriteError as error:
            raise CheckpointError(f"{folder}: {error.reason}; make room, or copy the bundle elsewhere") from error
        finally:  # also what a killed process left
            listed = read_config(folder / CONFIG_NAME).files
            for file in folder.iterdir():
                if kind.fullmatch(file.name) and file.name not in listed:
                    file.unlink(missing_ok=True)
        return Bundle.open(folder)


def hashed(path: Path, progress: Progress) -> tuple[FileEntry, FileState]:
    """The size and hash of a large file, and its state meanwhile. `progress` gets the bytes read."""
    size = path.stat().st_size
    digest, state = sha256_in_one_state(path, lambda done: progress(f"hashing {path.name}", done, size))
    return FileEntry(state.size, digest), state


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, sha256(path))
