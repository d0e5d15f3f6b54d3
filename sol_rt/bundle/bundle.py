"""Opens a bundle and checks all that can be checked without a run (docs/reference/bundle-details.md section 4).

Small files are hashed here, and again whenever one is about to be read. Graphs, tokenizer and policy are read when
first needed, and the bundle may have been replaced meanwhile. Of the weights file only the size is checked here;
sol_rt/store/verified.py hashes it at its first load, and `sol-rt verify` always.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sol_rt.bundle.config import CONFIG_NAME, FileEntry, SolConfig
from sol_rt.bundle.config_reader import read_config
from sol_rt.bundle.file_state import FileState
from sol_rt.errors import BundleError, UsageError, brief
from sol_rt.read_file import MOST_BYTES, read_bytes

if TYPE_CHECKING:
    from sol_rt.text.chat_template import ChatTemplate
    from sol_rt.text.tokenizer import Tokenizer

_CHUNK = 4 << 20
_TOKENIZER = "tokenizer.json"
_MOST_SETTINGS = 16 << 20  # bytes of other JSON, which takes some 30 times as much memory when it is read


@dataclass(frozen=True)
class Bundle:
    """A checked bundle folder.

    Attributes:
        path: the folder.
        config: its `sol_config.json`.
        identity: sha256 of `sol_config.json`, lower-case hex. It identifies the whole bundle, because the config holds
            the hash of every other file.
        verify: whether hashes are compared.
        weights_state: the weights file whose hash was compared; no other one is mapped. None if none was compared.
    """

    path: Path
    config: SolConfig
    identity: str
    verify: bool = True
    weights_state: FileState | None = None

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Bundle:
        """Reads and checks the bundle in the folder `path`; without `verify`, no hash is compared.

        Raises BundleError, UsageError.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise UsageError(f"bundle: got {brief(path)}, expected the path of a folder")
        folder = Path(path)
        config_path = folder / CONFIG_NAME
        hint = "point at a folder that `sol-rt export` wrote"
        if not folder.exists():
            raise BundleError(folder, "", "no such folder", "a bundle", hint)
        if not folder.is_dir():
            raise BundleError(folder, "", "a file", "a bundle folder", hint)
        if not config_path.is_file():
            raise BundleError(folder, CONFIG_NAME, "no such file", "a bundle's config", hint)
        content = _content(config_path)
        config = read_config(config_path, content, shapes=True)
        for name, entry in config.files.items():
            check_size(folder / name, entry)
            if verify and name != config.weights_file:
                check_hash(folder / name, entry, sha256(folder / name))
        if (folder / config.weights_file).is_symlink():
            hint = "replace the link by the file: ONNX Runtime reads weights only from the bundle's own folder"
            raise BundleError(folder, config.weights_file, "a symbolic link", "a regular file", hint)
        return cls(folder, config, hashlib.sha256(content).hexdigest(), verify)

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files. Raises BundleError if the config does not list it.

        What it leads to may have been replaced since the bundle was opened: take small files from `read`.
        """
        self._entry(name)
        return self.path / name

    def read(self, name: str) -> bytes:
        """Content of one of the bundle's small files; the hash is that of the bytes returned.

        Raises BundleError if the config does not list the file, or the file was replaced since the bundle was opened.
        """
        path, entry = self.path / name, self._entry(name)
        content = _content(path)
        if self.verify:
            _require_unchanged(path, entry, hashlib.sha256(content).hexdigest())
        return content

    def require_weights(self, state: FileState) -> None:
        """Raises BundleError if the weights file in `state` is not the one whose hash was compared, where one was."""
        if self.weights_state not in (None, state):
            hint = "the bundle was replaced meanwhile: load it again"
            path, expected = self.file(self.config.weights_file), "the file whose hash was compared"
            raise BundleError(path, "", "another file", expected, hint)

    def _entry(self, name: str) -> FileEntry:
        if name not in self.config.files:
            raise BundleError(self.path, name, "no such file", "a file of the bundle")
        return self.config.files[name]

    def file_at(self, path: Path | str) -> str | None:
        """Name of the bundle's file that `path` leads to, also through a link; None if it leads elsewhere."""
        for name in (CONFIG_NAME, *self.config.files):
            with suppress(OSError, ValueError):  # no such file, or a name that no file can have
                if os.path.samefile(path, self.path / name):
                    return name
        return None

    def tokenizer(self) -> Tokenizer:
        """Reads the model's tokenizer.

        Raises BundleError if the file is missing or unreadable, or has tokens that the model does not know.
        """
        from sol_rt.text.tokenizer import FILE, Tokenizer

        model = self.config.model
        content = self.read(FILE)  # once: between two readings the file may be replaced
        return Tokenizer.from_folder(self.path, model.vocab_size, model.eos_token_ids, content=content)

    def chat_template(self) -> ChatTemplate:
        """Reads the model's chat template.

        Raises UsageError if the model has no template, BundleError if its files are unreadable.
        """
        from sol_rt.text.chat_template import ChatTemplate

        return ChatTemplate.from_folder(self.path, self.config.files, self.read)

    def chat_template_source(self) -> str:
        """Reads the chat template's text; empty if the model has none. Raises BundleError."""
        from sol_rt.text.chat_template import ChatTemplate

        return ChatTemplate.source_in_folder(self.path, self.config.files, self.read)


def _content(path: Path) -> bytes:
    """Content of a small file. Raises BundleError if it cannot be read, or is too large."""
    settings = path.suffix == ".json" and path.name != _TOKENIZER
    try:
        return read_bytes(path, _MOST_SETTINGS if settings else MOST_BYTES)
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "a readable file") from None


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Computes a file's sha256 as lower-case hex. `progress` is called with the bytes read so far.

    Raises BundleError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sha256_of(file, progress)
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "a readable file") from None


def sha256_in_one_state(path: Path, progress: Callable[[int], None] | None = None) -> tuple[str, FileState]:
    """Computes a file's sha256 as lower-case hex, and the state that the file had all the while.

    Raises BundleError if the file cannot be read, or changes meanwhile.
    """
    try:
        with path.open("rb") as file:
            FileState.of(file.fileno()).let_the_clock_tick()
            before = FileState.of(file.fileno())
            digest = sha256_of(file, progress)
            after = FileState.of(file.fileno())
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "a readable file") from None
    if before != after:
        raise BundleError(path, "", "a file that changes while it is read", "a finished file", "try again")
    return digest, before


def sha256_of(file: BinaryIO, progress: Callable[[int], None] | None = None) -> str:
    """Computes the sha256 of a file from its current place on. A second thread reads while this one computes."""
    digest, done = hashlib.sha256(), 0
    chunk = file.read(_CHUNK)
    with ExitStack() as stack:
        reader = None
        if len(chunk) == _CHUNK:  # a small file needs no thread
            from concurrent.futures import ThreadPoolExecutor

            reader = stack.enter_context(ThreadPoolExecutor(1))
        while chunk:
            following = None if reader is None else reader.submit(file.read, _CHUNK)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done)
            chunk = file.read(_CHUNK) if following is None else following.result()
    return digest.hexdigest()


def check_size(path: Path, entry: FileEntry) -> None:
    """Raises BundleError if the file is missing or its size differs from the config."""
    try:
        size = path.stat().st_size
    except OSError:
        raise BundleError(path, "", "no such file", f"{entry.bytes} bytes") from None
    if not path.is_file():
        got = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise BundleError(path, "", got, f"a file of {entry.bytes} bytes")
    if size != entry.bytes:
        raise BundleError(path, "", f"{size} bytes", f"{entry.bytes} bytes", "copy or export the bundle again")


def check_hash(path: Path, entry: FileEntry, digest: str) -> None:
    """Raises BundleError if the digest differs from the config."""
    if digest != entry.sha256:
        hint = "the file was changed or damaged: pull or export the bundle again, or use it as it is with --no-verify"
        raise BundleError(path, "sha256", _short(digest), _short(entry.sha256), hint)


def _require_unchanged(path: Path, entry: FileEntry, digest: str) -> None:
    """Raises BundleError if a file is no longer the one that the opened bundle had."""
    if digest != entry.sha256:
        got, expected = f"{_short(digest)} now", f"{_short(entry.sha256)} as when the bundle was opened"
        raise BundleError(path, "sha256", got, expected, "the bundle was replaced: load it again")


def _short(digest: str) -> str:
    return f"{digest[:12]}…"
