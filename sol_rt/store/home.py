"""Places of bundles, checkpoints and calibration tables, and the bundle that `--model` means."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sol_rt.atomic_write import is_temporary, write_errors, write_text
from sol_rt.bundle.bundle import sha256
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.errors import SolError, UsageError, brief, did_you_mean

_LAST_EXPORT = "last-export"


def user_path(given: str, what: str = "model") -> Path:
    """The path that `given` names, with `~` and `~user` as folders. `what` names it in errors.

    Raises UsageError for an empty text, and for a user who has no folder.
    """
    if not given:
        raise UsageError(f"{what} '': got an empty name, expected a name or a path")
    try:
        return Path(given).expanduser()
    except RuntimeError:
        user = given.replace("\\", "/").partition("/")[0]
        raise UsageError(
            f"{what} {brief(given)}: got {brief(user)}, expected a user who has a folder; give the full path"
        ) from None


def file_name(text: str) -> str:
    """`text` as the name of a file or folder: other characters than letters, digits, `._-` become `-`."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)[:80].lstrip(".") or "model"


def home() -> Path:
    """`$SOL_RT_HOME`, or the platform's folder for user data. Raises UsageError as `user_path` does."""
    chosen = os.environ.get("SOL_RT_HOME")
    if chosen:
        return user_path(chosen, "SOL_RT_HOME")
    import platformdirs

    return Path(platformdirs.user_data_dir("sol_rt", appauthor=False))


def bundles_dir() -> Path:
    """Folder of exported and pulled bundles, one subfolder each."""
    return home() / "bundles"


def checkpoints_dir() -> Path:
    """Folder of fetched checkpoints."""
    return home() / "checkpoints"


def calibration_dir() -> Path:
    """Folder of this device's calibration tables."""
    return home() / "calibration"


def check_writable(path: Path, instead: str = "set SOL_RT_HOME to another folder") -> None:
    """Makes the folder of `path`. Raises SolError if nothing can be written there, before long work is done for it.

    `instead` is the second way out that the error names.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SolError(f"{folder}: {error.strerror}; make it writable, or {instead}") from None


def bundle_names() -> list[str]:
    """Names of the bundles under `bundles_dir()`, sorted."""
    folder = bundles_dir()
    if not folder.is_dir():
        return []
    return sorted(
        entry.name for entry in folder.iterdir() if (entry / CONFIG_NAME).is_file() and not is_temporary(entry.name)
    )


def remember_last_export(path: Path) -> None:
    """Makes `path` the bundle that commands use if `--model` is left out. Raises WriteError."""
    _record(home() / _LAST_EXPORT, str(path.resolve()))


def forget_last_export(path: Path) -> bool:
    """Clears the default bundle if it is `path`. Returns True if it was."""
    record = home() / _LAST_EXPORT
    try:
        was_default = _recorded_path(record) == path.resolve()
    except OSError:
        return False
    if was_default:
        record.unlink(missing_ok=True)
    return was_default


def remember_source(bundle: Path, source: str) -> None:
    """Records what a bundle under `bundles_dir()` was made from, as `pull.source_of` writes it. Raises WriteError."""
    if bundle.resolve().parent != bundles_dir().resolve():
        return
    _record(_source_record(bundle), f"{sha256(bundle / CONFIG_NAME)}\n{source}")


def _record(path: Path, text: str) -> None:
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, errors="surrogateescape")


def _recorded_path(record: Path) -> Path:
    return Path(record.read_text(encoding="utf-8", errors="surrogateescape").strip())


def remembered_source(bundle: Path) -> str | None:
    """Returns the source that `remember_source` recorded of a bundle; None if that is another bundle by now."""
    try:
        record = _source_record(bundle).read_text(encoding="utf-8", errors="surrogateescape")
        identity, _, source = record.partition("\n")
        return source if identity == sha256(bundle / CONFIG_NAME) else None
    except OSError:
        return None


@contextmanager
def keeping_source(bundle: Path) -> Iterator[None]:
    """Around a change of a bundle: what is recorded of its source stays. Raises WriteError."""
    source = remembered_source(bundle)
    yield
    if source is not None:
        remember_source(bundle, source)


def forget_source(bundle: Path) -> None:
    """Removes what `remember_source` recorded of a bundle."""
    _source_record(bundle).unlink(missing_ok=True)


def _source_record(bundle: Path) -> Path:
    return home() / "sources" / bundle.resolve().name


def find_bundle(model: str | None) -> Path:
    """Finds the bundle folder that `model` names.

    `model` is a folder, or the name of a bundle under `bundles_dir()`. If it is None, `$SOL_RT_MODEL` names the bundle
    in the same way; if that is not set either, the bundle exported or pulled last is used. The function only looks
    for `sol_config.json`; Bundle.open checks the rest.

    Raises UsageError if there is no such bundle.
    """
    if model is None:
        model = os.environ.get("SOL_RT_MODEL") or None
    if model is not None:
        return _named(model)
    try:
        last = _recorded_path(home() / _LAST_EXPORT)
    except OSError:
        raise UsageError(
            "no model: name one with -m or SOL_RT_MODEL; `sol-rt run smollm2-135m` fetches one and chats with it"
        ) from None
    if not (last / CONFIG_NAME).is_file():
        raise UsageError(f"no model: the default bundle, {last}, is gone; name one with -m, export or pull")
    return last


def _named(model: str) -> Path:
    if not model:
        raise UsageError("model '': got an empty name, expected a bundle folder or the name of a bundle")
    try:
        as_path = Path(model).expanduser()
        if (as_path / CONFIG_NAME).is_file():
            return as_path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no such user
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"model {brief(model)}: {reason}; expected a bundle folder or the name of a bundle") from None
    plain_name = as_path.name == model and model not in {".", ".."}
    if plain_name and (bundles_dir() / model / CONFIG_NAME).is_file():
        return bundles_dir() / model
    if as_path.exists():
        return as_path
    names = bundle_names()
    next_step = did_you_mean(model, names) or (
        f"bundles here: {', '.join(names) or 'none'}; `sol-rt pull {model}` or `sol-rt export -m {model}` may bring it"
    )
    raise UsageError(f"model {brief(model)}: neither a bundle folder nor a bundle under {bundles_dir()}; {next_step}")
