"""Shell completion, in real shells: what Tab offers for commands, options, models and schedules."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.cli import completion

PROGRAM = Path(sys.executable).with_name("sol-rt")

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="sol-rt is not installed as a program")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home with two bundles, and `sol-rt` in the path. Completion only looks for the bundles' configs."""
    for name in ("tiny", "tiny-chat"):
        folder = tmp_path / "bundles" / name
        folder.mkdir(parents=True)
        (folder / CONFIG_NAME).write_text("{}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOL_RT_")}
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "SOL_RT_HOME": str(tmp_path), "HOME": str(tmp_path), "TERM": "dumb"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash(environment: dict[str, str]) -> None:
    script = """
        set -e
        eval "$(_SOL_RT_COMPLETE=source_bash sol-rt)"
        function=$(complete -p sol-rt | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        tab() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); $function sol-rt; echo "${COMPREPLY[*]}"; }
        tab sol-rt gene
        tab sol-rt generate -m ti
        tab sol-rt run tiny
        tab sol-rt run smollm2-1
        tab sol-rt chat --schedule un
        tab sol-rt chat --frequency
        tab sol-rt generate -m nothing
    """
    run = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stderr == ""
    assert [line.split() for line in run.stdout.splitlines()] == [
        ["generate"],
        ["tiny", "tiny-chat"],
        ["tiny", "tiny-chat", "tinyllama-1.1b"],
        ["smollm2-1.7b", "smollm2-135m"],
        ["uniform"],
        ["--frequency-penalty"],
        [],
    ]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh(environment: dict[str, str]) -> None:
    master, slave = pty.openpty()
    shell = subprocess.Popen(["zsh", "-f", "-i"], env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)

    def until(marker: bytes) -> None:
        screen, deadline = b"", time.monotonic() + 60
        while marker not in screen and time.monotonic() < deadline:
            if select.select([master], [], [], 1.0)[0]:
                screen += os.read(master, 4096)
        assert marker in screen, screen.decode(errors="replace")

    try:
        os.write(master, b'autoload -U compinit; compinit -u; eval "$(_SOL_RT_COMPLETE=source_zsh sol-rt)"\n')
        os.write(master, b"echo set-$((1 + 1))\n")
        until(b"set-2")
        os.write(master, b"sol-rt gene\t")
        until(b"generate")
        os.write(master, b"-m tiny-\t")
        until(b"tiny-chat")
    finally:
        shell.kill()
        shell.wait(60)
        os.close(master)


def test_unreadable_folders_offer_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundles").write_text("a file where a folder belongs")
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path))
    assert completion.bundles("") == []
    assert "phi-2" in completion.sources("")
