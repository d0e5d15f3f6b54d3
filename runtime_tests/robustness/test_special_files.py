"""Pipes, devices, sockets and folders where a file is expected: one line at once, and no reading without end."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the tiny bundle's graphs are made with onnx, of the extra export")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="named pipes and devices")

from helpers.tiny_bundle import write_bundle  # noqa: E402
from sol_rt.atomic_write import write_bytes  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.cli import loading, main  # noqa: E402
from sol_rt.cli.run.saved_chat import read as read_chat  # noqa: E402
from sol_rt.errors import BundleError, SolError, UsageError, WriteError  # noqa: E402
from sol_rt.generate.model import SolModel  # noqa: E402
from sol_rt.generate.trace import read_trace  # noqa: E402
from sol_rt.read_file import TooLargeError, read_bytes, require_regular  # noqa: E402

KINDS = {
    "pipe": "got a named pipe, expected a regular file",
    "folder": "Is a directory",
    "socket": "No such device or address|Operation not supported",
    "/dev/zero": "got a device, expected a regular file",
}
UNWRITTEN = "a pipe that nobody writes to"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("made") / "tiny", policy=True)


@pytest.fixture
def special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which has one of each kind."""
    monkeypatch.chdir(tmp_path)  # a socket's name has at most 107 bytes
    os.mkfifo("pipe")
    Path("folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        yield tmp_path


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], pattern: str) -> None:
    assert main(argv) in {1, 2}
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("sol-rt: error: ")]
    assert out == ""
    assert len(errors) == 1, err
    assert re.search(pattern, errors[0]), err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "-f"],
        ["generate", "--replay"],
        ["perplexity", "-f"],
        ["eval", "-f"],
        ["trace"],
    ],
    ids=" ".join,
)
def test_a_command_reads_regular_files_alone(
    argv: list[str], kind: str, bundle: Path, special: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = UNWRITTEN if kind == "pipe" else KINDS[kind]
    refused(capsys, [*argv, kind, *([] if argv == ["trace"] else ["-m", str(bundle)])], f"{kind}.*({pattern})")


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_policies(kind: str, bundle: Path, special: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("yaml")
    refused(capsys, ["export", "-m", str(bundle), "--policy", kind], f"{kind}: got no policy .*{KINDS[kind]}")
    train = ["train", "-m", str(bundle), "-o", "policy"]
    refused(capsys, [*train, "--data", str(bundle / "sol_config.json"), "--config", kind], f"{kind}.*({KINDS[kind]})")
    if kind != "folder":  # whose texts are read
        refused(capsys, [*train, "--data", kind], f"{kind}.*({UNWRITTEN if kind == 'pipe' else KINDS[kind]})")


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_files_of_a_bundle(kind: str, bundle: Path, special: Path) -> None:
    copy = Path(shutil.copytree(bundle, special / "tiny"))
    opened = Bundle.open(copy)
    for name in ("tokenizer.json", "sol_config.json", "chat_template.jinja", "model.q8.onnx", "policy.onnx"):
        (copy / name).unlink()
        (copy / name).symlink_to(Path(kind).resolve())
    for read in (
        opened.tokenizer,
        opened.chat_template,
        lambda: opened.read("model.q8.onnx"),
        lambda: Bundle.open(copy),
    ):
        with pytest.raises(BundleError, match=f"{KINDS[kind]}|got no such file"):
            read()


def test_a_bundles_file_that_leads_to_a_device_is_said_to_be_one(
    bundle: Path, special: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle, special / "tiny"))
    opened = Bundle.open(copy)
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.jinja").symlink_to("/dev/zero")
    pattern = "chat_template.jinja: got a pipe, socket or device, expected a file of "
    refused(capsys, ["generate", "-m", str(copy), "-p", "w1"], pattern)
    with pytest.raises(SolError, match=pattern):
        SolModel.from_pretrained(opened, provider="cpu", measure_costs=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [read_trace, read_chat], ids=["trace", "chat"])
def test_traces_and_chats(read: Callable[[str], object], kind: str, special: Path) -> None:
    pattern = UNWRITTEN if kind == "pipe" and read is read_trace else KINDS[kind]
    with pytest.raises(SolError, match=pattern):
        read(kind)


def test_a_trace_or_page_is_not_written_to_a_pipe_that_nobody_reads(
    bundle: Path, special: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = ["generate", "-m", str(bundle), "-p", "w1", "-n", "2", "--trace"]
    refused(capsys, [*generate, "pipe"], "trace pipe: got a pipe or socket that nobody reads, expected a file; choose")
    with pytest.raises(WriteError, match=r"pipe: cannot be written .got a pipe or socket that nobody reads"):
        write_bytes(Path("pipe"), b"new")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        holder = os.open("pipe", os.O_WRONLY)  # waits for the reader
        assert main([*generate, "pipe"]) == 0
        os.close(holder)
        written, _ = reader.communicate()
    assert written.count(b"\n") == 3


def test_a_text_may_come_from_a_pipe(special: Path) -> None:
    with subprocess.Popen(["sh", "-c", "{ printf 'a\\r\\n'; sleep 1.2; printf b; } > pipe"]):
        assert loading.read_text(special / "pipe") == "a\nb"


def test_a_trace_may_come_from_a_pipe(special: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-m", str(bundle), "-p", "w1", "-n", "3", "--trace", "t.jsonl"]) == 0
    with subprocess.Popen(["sh", "-c", "cat t.jsonl > pipe"]):
        assert read_trace("pipe").records == read_trace("t.jsonl").records


def test_a_text_to_train_on_may_come_from_a_pipe(special: Path, bundle: Path) -> None:
    pytest.importorskip("torch")
    from sol_rt.train.data.corpus import read_documents

    tokenizer = Bundle.open(bundle).tokenizer()
    with subprocess.Popen(["sh", "-c", "printf 'w1 w2' > pipe"]):
        (tokens,) = read_documents([special / "pipe"], tokenizer, lambda done, total: None)
    assert tokens.tolist() == tokenizer.encode("w1 w2", add_special_tokens=False)


def test_a_writer_of_a_pipe_may_take_its_time(special: Path) -> None:
    with subprocess.Popen(["sh", "-c", "exec 3> pipe; sleep 1.5; printf late >&3"]):
        assert read_bytes("pipe", pipes=True) == b"late"


def test_reads_are_bounded(special: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_bytes(b"x" * 2000)
    assert read_bytes("file", 2000) == b"x" * 2000
    with pytest.raises(TooLargeError):
        read_bytes("file", 1999)
    monkeypatch.setattr(loading, "MOST_TEXT", 1 << 20)
    with Path("file").open("wb") as file:
        file.truncate(1 << 40)  # has no blocks
    with pytest.raises(UsageError, match=r"^file: got more than 1 MB, expected at most that; give another file"):
        loading.read_text(Path("file"))
    with pytest.raises(TooLargeError):
        read_bytes("file")


def test_libraries_open_regular_files_alone(special: Path) -> None:
    Path("file").touch()
    require_regular("file")
    for kind, pattern in KINDS.items():
        with pytest.raises(OSError, match=pattern):
            require_regular(kind)
