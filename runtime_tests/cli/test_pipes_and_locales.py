"""The command line behind pipes whose reader leaves, and in locales of every encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_bundle import with_word, write_bundle
from sol_rt.cli import READER_GONE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes and locales")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("pipes") / "tiny", losses=True)


def sol_rt(argv: list[str], **settings: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sol_rt", *argv]
    settings.setdefault("stderr", subprocess.PIPE)
    return subprocess.run(command, check=False, timeout=120, **settings)


def without_reader(argv: list[str], **settings: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs the program with a stdout whose reader has left already."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return sol_rt(argv, stdout=writer, **settings)
    finally:
        os.close(writer)


COMMANDS = {
    "generate": ["generate", "-p", "w1", "-n", "4", "--schedule", "dense"],
    "generate --json": ["generate", "-p", "w1", "-n", "4", "--schedule", "dense", "--json"],
    "chat": ["chat", "-p", "w1", "-n", "4", "--schedule", "dense"],
    "perplexity": ["perplexity", "-f", "TEXT", "-c", "8", "--chunks", "1", "--schedule", "dense"],
    "bench": ["bench", "-p", "4", "-n", "2", "-r", "1"],
    "profile": ["profile", "--contexts", "16", "-r", "3", "--seconds", "1"],
    "inspect": ["inspect"],
    "verify": ["verify"],
    "pull": ["pull"],
    "doctor": ["doctor"],
    "--help": ["--help"],
    "generate --help": ["generate", "--help"],
    "--version": ["--version"],
}
_QUICK = {"generate", "inspect", "--help", "pull"}
_WITHOUT_MODEL = {"pull", "doctor", "--help", "generate --help", "--version"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else pytest.mark.slow) for name in COMMANDS]
)
def test_a_reader_that_left_ends_every_command_quietly(name: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("w1 w2 w3 " * 20)
    argv = [str(tmp_path / "text") if part == "TEXT" else part for part in COMMANDS[name]]
    argv += [] if name in _WITHOUT_MODEL else ["-m", str(bundle)]
    ended = without_reader(argv, stdin=subprocess.DEVNULL)
    assert ended.returncode == READER_GONE, ended.stderr
    for word in (b"Traceback", b"BrokenPipe", b"error:", b"Exception ignored"):
        assert word not in ended.stderr


def test_a_reader_of_dev_stdout_that_left_ends_the_command_quietly(tmp_path: Path) -> None:
    header = {
        "format": "sol_rt.trace", "format_version": 1, "bundle": "tiny", "config_sha256": "", "prompt_tokens": [1],
        "prompt": "a", "schedule": "dense", "budget": 1.0, "cost_model": "bytes", "generation": {},
    }  # fmt: skip
    (tmp_path / "trace.jsonl").write_text(json.dumps(header) + "\n")
    argv = ["trace", str(tmp_path / "trace.jsonl"), "-o", "/dev/stdout"]
    read = sol_rt(argv, stdout=subprocess.PIPE)
    assert read.returncode == 0, read.stderr
    assert b"<html" in read.stdout
    left = without_reader(argv)
    assert (left.returncode, left.stderr) == (READER_GONE, b"")


def test_a_trace_to_dev_stdout_whose_reader_left_ends_quietly(bundle: Path) -> None:
    argv = ["generate", "-m", str(bundle), "-p", "w1", "-n", "2", "--schedule", "dense", "--trace", "/dev/stdout"]
    read = sol_rt(argv, stdout=subprocess.PIPE)
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout.splitlines()[0])["format"] == "sol_rt.trace"
    left = without_reader(argv)
    assert left.returncode == READER_GONE
    assert b"error:" not in left.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_stdout_that_is_full_is_named(bundle: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = sol_rt(["generate", "-m", str(bundle), "-p", "w1", "-n", "2", "--schedule", "dense"], stdout=full)
    assert ended.returncode == 1
    assert b"sol-rt: error: stdout: No space left on device\n" in ended.stderr


def test_an_error_that_nobody_reads_keeps_its_exit_code(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(os.devnull, "w") as null:
        ended = sol_rt(["generate", "-m", str(tmp_path / "none"), "-p", "a"], stdout=null, stderr=writer)
    os.close(writer)
    assert ended.returncode == 2


LOCALES = {
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX"},
    "C without Python's help": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a locale that is not installed": {"LC_ALL": "xx_YY.ISO-8859-1"},
}


@pytest.mark.parametrize("name", LOCALES)
def test_prompts_text_and_paths_are_utf8_in_every_locale(name: str, tmp_path: Path) -> None:
    bundle = with_word(with_word(write_bundle(tmp_path / "tiny"), 7, "schön"), 8, "日本")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment = {**kept, **LOCALES[name], "PYTHONPATH": os.pathsep.join(sys.path)}
    words, trace = "schön 日本", tmp_path / "Spür 語.jsonl"
    argv = ["generate", "-m", str(bundle), "-n", "2", "--schedule", "dense", "--trace", str(trace), "--seed", "0"]
    argument = sol_rt([*argv, "-p", words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    assert argument.returncode == 0, argument.stderr
    assert f"trace: {trace};".encode() in argument.stderr
    assert f'"prompt":"{words}"' in trace.read_text(encoding="utf-8")
    piped = sol_rt(argv, stdout=subprocess.PIPE, input=words.encode(), env=environment)
    assert piped.stdout == argument.stdout
    listed = sol_rt(["trace", str(trace)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    assert listed.stdout.decode() == f"{trace.with_suffix('.html')}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_text_that_the_encoding_of_stdout_lacks_is_replaced(command: str, encoding: str, tmp_path: Path) -> None:
    folder = with_word(write_bundle(tmp_path / "tiny"), 7, "語é")
    argv = [command, "-m", str(folder), "-p", "w1", "-n", "2", "--temperature", "0", "--logit-bias", "7=100"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = sol_rt(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["?é".encode(encoding, "replace")] * 2
    if command == "generate":  # JSON has escapes for them
        ended = sol_rt([*argv, "--json"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
        assert json.loads(ended.stdout)["text"].split() == ["語é"] * 2


def test_a_path_that_is_not_utf8_is_printed_as_it_is(bundle: Path, tmp_path: Path) -> None:
    trace = os.fsencode(tmp_path) + b"/a\xff.jsonl"
    argv = ["generate", "-m", str(bundle), "-p", "w1", "-n", "2", "--schedule", "dense", "--trace", os.fsdecode(trace)]
    assert sol_rt(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).returncode == 0
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as where the locale is UTF-8
    drawn = sol_rt(["trace", os.fsdecode(trace)], stdout=subprocess.PIPE, env=environment)
    assert drawn.stdout == trace.replace(b"jsonl", b"html") + b"\n", drawn.stderr


@pytest.mark.parametrize(("state", "restarts"), [("", 1), ("sys.frozen = True", 0), ("os.environ['_SOL_RT_RESTARTED'] = '1'", 0)])  # fmt: skip  # noqa: E501
def test_the_restart_in_utf8_happens_once_and_never_in_a_frozen_program(state: str, restarts: int) -> None:
    program = f"""
import os, sys
from sol_rt import cli
os.execv = lambda *command: print("restart")
{state}
cli._use_utf8()
"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout.count("restart") == restarts


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or not os.access("/dev/shm", os.W_OK), reason="no second file system")
def test_a_home_on_another_file_system(bundle: Path, tmp_path: Path) -> None:
    import tempfile

    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as home:
        environment = {**os.environ, "SOL_RT_HOME": home, "TMPDIR": str(tmp_path)}
        argv = ["profile", "-m", str(bundle), "--contexts", "16", "-r", "3", "--seconds", "1"]
        ended = sol_rt(argv, stdout=subprocess.PIPE, env=environment)
        assert ended.returncode == 0, ended.stderr
        assert {path.name for path in Path(home).iterdir()} == {"costs", "verified.json"}
        assert len(list((Path(home) / "costs").iterdir())) == 1


@pytest.mark.slow
def test_two_profiles_at_once_leave_one_whole_table(bundle: Path, tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "sol_rt",
        "profile",
        "-m",
        str(bundle),
        "--contexts",
        "16",
        "-r",
        "3",
        "--seconds",
        "1",
    ]
    environment = {**os.environ, "SOL_RT_HOME": str(tmp_path / "home")}
    both = [subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(list((tmp_path / "home" / "costs").iterdir())) == 1
    ended = sol_rt(["inspect", "-m", str(bundle), "--json"], stdout=subprocess.PIPE, env=environment)
    assert b'"cost_model": "measured"' in ended.stdout
