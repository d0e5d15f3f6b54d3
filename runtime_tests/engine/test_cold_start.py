"""Loading of a model beside other work, and the end of a program."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.cli.app import COMMANDS, HIDDEN, make_app
from sol_rt.text import tokenizer


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_bundle(tmp_path / "tiny"))


@pytest.mark.parametrize(("command", "threads"), [("generate", "1"), ("export", None)])
def test_commands_without_linear_algebra_make_no_threads_for_it(command: str, threads: str | None) -> None:
    script = "import atexit, os, sys; from sol_rt.cli import program; "
    script += "atexit.register(lambda: print(os.environ.get('OPENBLAS_NUM_THREADS'))); program()"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    arguments = [sys.executable, "-c", script, command, "--none"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, f"{threads}\n"), done.stderr


def test_a_greedy_generation_imports_nothing_that_it_does_not_need(bundle: Bundle, tmp_path: Path) -> None:
    needless = ["concurrent.futures", "importlib.metadata", "jinja2", "logging", "numpy.random", "onnx", "rich"]
    script = "import sys; from sol_rt.cli import main; code = main(sys.argv[1:]); "
    script += f"print([name for name in {needless} if name in sys.modules]); sys.exit(code)"
    command = [sys.executable, "-c", script, "generate", "-m", str(bundle.path), "-p", "a", "-n", "1"]
    environment = {**os.environ, "SOL_RT_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name: str) -> None:
    module, _, function = COMMANDS[name].partition(":")
    assert callable(getattr(importlib.import_module(f"sol_rt.cli.{module}"), function))
    assert [command.name for command in make_app([name]).registered_commands] == [name]
    assert set(COMMANDS) >= HIDDEN


@pytest.mark.slow
def test_the_program_ends_with_its_output_its_code_and_its_exit_functions(tmp_path: Path) -> None:
    left = tmp_path / "left"
    script = "import atexit, pathlib, sys; from sol_rt.cli import program; "
    script += f"atexit.register(pathlib.Path({str(left)!r}).touch); sys.argv = ['sol-rt', *sys.argv[1:]]; program()"
    done = subprocess.run([sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:7]) == (0, "sol-rt ")
    assert left.exists()
    wrong = subprocess.run([sys.executable, "-c", script, "--none"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "No such option: --none" in wrong.stderr


@pytest.mark.slow
def test_prints_of_python_get_out_while_native_code_is_silenced() -> None:
    script = """
import os, sys, threading
from sol_rt.text.tokenizer import _silenced
for _ in range(2):
    with _silenced():
        thread = threading.Thread(target=lambda: print("from Python", file=sys.stderr))
        thread.start()
        thread.join()
        os.write(2, b"from native code\\n")
print("afterwards", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "from Python\nfrom Python\nafterwards\n")


def test_a_stream_that_is_not_stderr_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = io.StringIO()
    monkeypatch.setattr(sys, "stderr", own)
    with tokenizer._silenced():
        assert sys.stderr is own
        os.write(2, b"")
