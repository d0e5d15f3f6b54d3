"""`sol-rt list` and `sol-rt rm`: what is stored, and removing it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import fails
from sol_rt.budget.cost.cost_table import tables_of
from sol_rt.bundle.bundle import Bundle
from sol_rt.cli import main
from sol_rt.store import home
from sol_rt.store.download import UNFINISHED

pytest.importorskip("onnx", reason="the tiny bundle's graphs are written with onnx")

from helpers.cost_tables import save_table
from helpers.tiny_bundle import write_bundle


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle. Not to be written to."""
    return write_bundle(tmp_path_factory.mktemp("inventory") / "tiny", bits=(8,), channel_densities=(1.0,))


@pytest.fixture(autouse=True)
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """A home with two bundles, two checkpoints, an unfinished download and a folder that is none of these."""
    for name in list(os.environ):
        if name.startswith("SOL_RT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    for name in ("phi-2", "smollm2-135m"):
        shutil.copytree(tiny, home.bundles_dir() / name)
    (home.bundles_dir() / "mine").mkdir()
    (home.checkpoints_dir() / "phi-2").mkdir(parents=True)
    (home.checkpoints_dir() / "phi-2" / "model.safetensors").write_bytes(bytes(2_000_000))
    (home.checkpoints_dir() / "smollm2-135m.gguf").write_bytes(b"GGUF")
    part = home.bundles_dir() / UNFINISHED / "someone--model"
    part.mkdir(parents=True)
    (part / "weights.bin.0123456789abcdef.part").write_bytes(bytes(1000))
    (home.bundles_dir() / UNFINISHED / "someone--model.lock").touch()
    home.remember_last_export(home.bundles_dir() / "smollm2-135m")
    return tmp_path / "home"


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    capsys.readouterr()
    assert main(["list", "-o", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def table_for(folder: Path, device: str = "a processor") -> Path:
    """Keeps a cost table for the bundle in this folder."""
    return save_table(Bundle.open(folder), device=device)


class TestList:
    def test_as_json(self, capsys: pytest.CaptureFixture[str], tiny: Path, filled: Path) -> None:
        entries = listed(capsys)
        assert [(entry["name"], entry["kind"], entry["default"]) for entry in entries] == [
            ("phi-2", "bundle", False),
            ("smollm2-135m", "bundle", True),
            ("phi-2", "checkpoint", False),
            ("smollm2-135m.gguf", "checkpoint", False),
            ("someone--model", "unfinished download", False),
        ]
        assert entries[0]["bytes"] == sum(path.stat().st_size for path in tiny.iterdir())
        assert [entry["bytes"] for entry in entries[2:]] == [2_000_000, 4, 1000]
        assert entries[0]["path"] == str(filled / "bundles" / "phi-2")
        assert entries[0]["modified"].startswith("20")

    def test_as_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (default,) = [line for line in lines if "*" in line]
        assert "smollm2-135m " in default
        assert any("phi-2" in line and "checkpoint" in line and " 2.0 " in line for line in lines)

    def test_the_default_is_the_one_that_commands_use(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOL_RT_MODEL", "phi-2")
        assert [entry["name"] for entry in listed(capsys) if entry["default"]] == ["phi-2"]

    def test_an_empty_home(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "nothing"))
        assert main(["list"]) == 0
        out, err = capsys.readouterr()
        assert out == ""
        assert "nothing in " in err
        assert listed(capsys) == []
        assert not (tmp_path / "nothing").exists()


class TestRm:
    def test_rm_removes_the_named_entries_and_nothing_else(
        self, capsys: pytest.CaptureFixture[str], filled: Path
    ) -> None:
        assert main(["rm", "-y", "bundles/phi-2", "smollm2-135m.gguf", "someone--model"]) == 0
        removed = [filled / name for name in ("bundles/phi-2", "checkpoints/smollm2-135m.gguf")]
        assert capsys.readouterr().out.splitlines()[:2] == [str(path) for path in removed]
        assert [entry["name"] for entry in listed(capsys)] == ["smollm2-135m", "phi-2"]
        assert (filled / "bundles" / "mine").is_dir()
        assert not any(path.name.startswith((".phi", ".smol")) for path in filled.rglob("*")), "nothing half-removed"

    def test_the_default(self, capsys: pytest.CaptureFixture[str], filled: Path) -> None:
        assert main(["rm", "-y", "bundles/phi-2"]) == 0
        assert home.find_bundle(None).name == "smollm2-135m", "another bundle's removal changes no default"
        assert main(["rm", "-y", "smollm2-135m"]) == 0
        assert "the default bundle is gone" in capsys.readouterr().err
        assert not (filled / "last-export").exists()
        fails(capsys, ["inspect"], 2, "no model: name one with -m")

    def test_with_cost_tables(self, tmp_path: Path) -> None:
        removed, kept = home.bundles_dir() / "smollm2-135m", write_bundle(tmp_path / "kept", bits=(4,))
        tables = [table_for(removed), table_for(removed, "a GPU")]
        others = [table_for(kept), table_for(kept, "a GPU")]
        tables[0].write_text("{")
        assert tables_of(removed) == sorted(tables)
        assert main(["rm", "-y", "smollm2-135m"]) == 0
        assert not any(table.exists() for table in tables)
        assert all(table.exists() for table in others)

    def test_a_name_of_two_entries_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        fails(capsys, ["rm", "-y", "phi-2"], 2, "write bundles/phi-2 or checkpoints/phi-2")
        assert len(listed(capsys)) == 5

    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("smolm2-135m", "did you mean 'smollm2-135m'"),
            ("zzz", "sol-rt list shows what is here"),
            ("mine", "nothing of this name"),
            ("..", "nothing of this name"),
            ("bundles/../../outside", "nothing of this name"),
            (".unfinished", "nothing of this name"),
        ],
    )
    def test_unknown_names_remove_nothing(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, part: str
    ) -> None:
        (tmp_path / "outside").mkdir()
        fails(capsys, ["rm", "-y", "smollm2-135m", name], 2, part)
        assert len(listed(capsys)) == 5
        assert (tmp_path / "outside").is_dir()

    def test_a_link_loses_the_link_only(self, tiny: Path) -> None:
        link = home.bundles_dir() / "linked"
        link.symlink_to(tiny)
        home.remember_last_export(link)
        assert main(["rm", "-y", "linked"]) == 0
        assert not link.is_symlink()
        assert (tiny / "weights.bin").is_file()
        assert not (home.home() / "last-export").exists()

    def test_without_a_terminal(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        with open(os.devnull) as nothing:
            monkeypatch.setattr(sys, "stdin", nothing)
            fails(capsys, ["rm", "smollm2-135m"], 2, "give --yes")
        assert len(listed(capsys)) == 5

    @pytest.mark.skipif(sys.platform == "win32", reason="opens a pseudo-terminal")
    @pytest.mark.parametrize(("answer", "left", "code"), [(b"n\n", 5, 1), (b"y\n", 4, 0)])
    def test_rm_asks_on_a_terminal(
        self, capsys: pytest.CaptureFixture[str], answer: bytes, left: int, code: int
    ) -> None:
        ours, theirs = pty.openpty()
        try:
            os.write(ours, answer)
            run = subprocess.run(
                [sys.executable, "-m", "sol_rt", "rm", "smollm2-135m"],
                stdin=theirs, capture_output=True, check=False,
            )  # fmt: skip
        finally:
            os.close(ours)
            os.close(theirs)
        assert run.returncode == code
        assert b"remove?" in run.stderr
        assert len(listed(capsys)) == left
