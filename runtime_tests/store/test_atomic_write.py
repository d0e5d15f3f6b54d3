"""Files and folders that are replaced as a whole, on full disks, under signals and beside other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers import full_disk
from helpers.tiny_bundle import write_bundle
from sol_rt import atomic_write
from sol_rt.atomic_write import (
    TEMPORARY,
    is_temporary,
    put_in_place,
    remove_abandoned,
    replacing,
    replacing_folder,
    temporary_folder,
    temporary_name,
    write_bytes,
)
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.errors import WriteError

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX file systems")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestFiles:
    def test_a_reader_of_the_old_file_keeps_it(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with path.open("rb") as reader:
            write_bytes(path, b"new")
            assert reader.read() == b"old"
        assert path.read_bytes() == b"new"
        assert names(tmp_path) == {"file"}

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    def test_an_exception_changes_nothing(self, error: type[BaseException], tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def interrupted() -> None:
            with replacing(path) as file:
                file.write(b"new")
                raise error

        with pytest.raises(error):
            interrupted()
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == {"file"}

    @posix
    def test_mode_and_link_stay(self, tmp_path: Path) -> None:
        (tmp_path / "real").write_bytes(b"old")
        (tmp_path / "real").chmod(0o600)
        (tmp_path / "link").symlink_to("real")
        write_bytes(tmp_path / "link", b"new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_bytes() == b"new"
        assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600

    @posix
    def test_a_device_is_written_to_and_stays(self) -> None:
        write_bytes(Path("/dev/null"), b"gone")
        assert Path("/dev/null").is_char_device()

    @posix
    @pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout")
    def test_a_pipe_behind_dev_stdout(self) -> None:
        program = 'from pathlib import Path; from sol_rt.atomic_write import write_bytes; write_bytes(Path("/dev/stdout"), b"new")'  # noqa: E501
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
        assert ended.stdout == b"new", ended.stderr

    def test_a_folder_or_a_missing_folder_is_one_line(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none" / "file"):
            with pytest.raises(WriteError) as caught:
                write_bytes(path, b"new")
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)

    def test_an_error_of_another_file_is_not_said_to_be_of_this_one(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
            (tmp_path / "source").open()
        assert names(tmp_path) == set()

    def test_long_names(self, tmp_path: Path) -> None:
        path = tmp_path / ("ü" * 127)
        write_bytes(path, b"new")
        assert path.read_bytes() == b"new"


class TestFolders:
    def test_a_folder_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        target = tmp_path / "bundle"
        for content in ("old", "new"):
            with replacing_folder(target) as folder:
                (folder / content).write_text(content)
                assert names(tmp_path) - {"bundle"} == {folder.name}
            assert names(target) == {content}
        assert names(tmp_path) == {"bundle"}

    def test_an_exception_changes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()

        def interrupted() -> None:
            with replacing_folder(tmp_path / "bundle") as folder:
                (folder / "new").write_text("new")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert names(tmp_path) == {"bundle"}
        assert names(tmp_path / "bundle") == set()

    @posix
    @pytest.mark.parametrize("swapped", [True, False])
    def test_a_link_is_replaced_and_its_target_stays(
        self, swapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not swapped:
            monkeypatch.setattr(atomic_write, "_exchange", lambda one, other: False)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "file").touch()
        (tmp_path / "bundle").symlink_to("elsewhere")
        (tmp_path / "new").mkdir()
        put_in_place(tmp_path / "new", tmp_path / "bundle")
        assert names(tmp_path) == {"bundle", "elsewhere"}
        assert not (tmp_path / "bundle").is_symlink()
        assert names(tmp_path / "elsewhere") == {"file"}

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux swaps two folders in one step")
    def test_there_is_no_moment_without_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target, folder = tmp_path / "bundle", tmp_path / "new"
        target.mkdir()
        folder.mkdir()

        def never(path: Path, other: Path) -> Path:
            raise AssertionError(f"{path} was moved away")

        monkeypatch.setattr(Path, "rename", never)
        put_in_place(folder, target)
        assert names(tmp_path) == {"bundle"}


WAITING = """
import sys, time
from pathlib import Path
from sol_rt.atomic_write import {function}
with {function}(Path(sys.argv[1])):
    print("begun", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("function", ["replacing", "replacing_folder"])
def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(function: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITING.format(function=function), str(tmp_path / "target")]
    (tmp_path / ".mine").write_text("not a temporary file of ours")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        left = names(tmp_path) - {".mine"}
        assert len(left) == 1
        assert all(is_temporary(name) for name in left)
        write_bytes(tmp_path / "other", b"")
        assert names(tmp_path) == {".mine", "other", *left}
        process.kill()
    assert names(tmp_path) == {".mine", "other", *left}
    write_bytes(tmp_path / "other", b"")
    assert names(tmp_path) == {".mine", "other"}
    remove_abandoned(tmp_path / "none")  # a folder that is not there has nothing to remove


@pytest.mark.parametrize("folder", [False, True])
def test_a_temporary_folder_first_removes_what_a_killed_process_left(folder: bool, tmp_path: Path) -> None:
    left = temporary_name(tmp_path / "target")
    left.mkdir() if folder else left.touch()
    with temporary_folder(tmp_path / "target") as made:
        assert left.exists() == (folder and sys.platform == "win32")
        assert made.is_dir()


@pytest.mark.parametrize("made", ["mkdir", "open"])
def test_an_interrupt_right_after_the_creation_leaves_nothing(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = getattr(Path, made)

    def interrupted(path: Path, *arguments: Any, **more: Any) -> None:
        make(path, *arguments, **more)
        raise KeyboardInterrupt

    target, write = tmp_path / "target", temporary_folder if made == "mkdir" else replacing
    with monkeypatch.context() as patch:
        patch.setattr(Path, made, interrupted)
        with pytest.raises(KeyboardInterrupt), write(target):
            pass
    assert not list(tmp_path.iterdir())


def test_processes_with_one_number_have_names_of_their_own() -> None:
    """In a container the first process of every run has the number 1."""
    program = "import os; os.getpid = lambda: 1; from pathlib import Path; from sol_rt.atomic_write import temporary_name; print(temporary_name(Path('a')))"  # noqa: E501
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in "ab"]
    assert runs[0] != runs[1]
    assert all(is_temporary(run.decode().strip()) for run in runs)


@posix
def test_pipes_and_links_with_a_temporary_name_stay_and_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    os.mkfifo(tmp_path / f".pipe{TEMPORARY}")
    (tmp_path / f".link{TEMPORARY}").symlink_to(tmp_path / "other" / "file")
    (tmp_path / f".folder{TEMPORARY}").symlink_to(tmp_path / "other")
    before = names(tmp_path)
    program = "import sys; from pathlib import Path; from sol_rt.atomic_write import remove_abandoned; remove_abandoned(Path(sys.argv[1]))"  # noqa: E501
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
    assert names(tmp_path) == before
    assert names(tmp_path / "other") == {"file"}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux")
def test_on_windows_files_are_closed_when_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to remove an open file, and has no lock that says whether a folder is in use."""
    (tmp_path / f".file{TEMPORARY}").touch()
    (tmp_path / f".folder{TEMPORARY}").mkdir()
    unlink = Path.unlink

    def as_on_windows(path: Path, missing_ok: bool = False) -> None:
        if str(path) in {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}:
            raise PermissionError("the file is in use")
        unlink(path, missing_ok)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "unlink", as_on_windows)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == {f".folder{TEMPORARY}"}


def test_two_writers_leave_one_whole_file(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from sol_rt.atomic_write import write_bytes
for _ in range(30):
    write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)
"""
    path = tmp_path / "table"
    write_bytes(path, b"a" * 100_000)
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == {"table"}


# Every writer of the package, given the file to write

WRITERS: dict[str, str] = {
    "saved chat": """
        from sol_rt.cli.run.saved_chat import SavedChat
        SavedChat("tiny", None, [], {}).write(str(path))""",
    "evaluation state": """
        from sol_rt.evaluation.quality.state import State
        State(path, {}).put("key", 1)""",
    "page of a trace": """
        from sol_rt.cli.app import run
        sys.exit(run(["trace", str(path.parent.parent / "trace.jsonl"), "-o", str(path)]))""",
    "picture": """
        from sol_rt.atomic_write import replacing
        with replacing(path) as file:
            for _ in range(3):
                file.write(bytes(100_000))""",
    "policy": """
        import numpy as np
        from sol_rt.export.policy_file import TrainedPolicy, write_policy
        from sol_rt.export.graphs.policy_graph import PolicyShape
        write_policy(path, TrainedPolicy(PolicyShape(8, 1, 1, 16), (), (), "", {"a": np.zeros(8, np.float32)}))""",
    "checkpoint of a training": """
        from sol_rt.train.run import checkpoints
        checkpoints.CHECKPOINT = path.name
        checkpoints.save_checkpoint(path.parent, {"step": 1})""",
    "the default bundle": """
        import os
        os.environ["SOL_RT_HOME"] = str(path.parent)
        from sol_rt.store import home
        home._LAST_EXPORT = path.name
        home.remember_last_export(path)""",
}
_PROGRAM = """
import sys
from pathlib import Path
path = Path(sys.argv[1])
from sol_rt.errors import SolError
try:
    {body}
except SolError as error:
    sys.exit(f"sol-rt: error: {{error}}")
"""
_NEEDED = {"checkpoint of a training": "torch", "policy": "safetensors"}
_QUICK = {"picture"}


def _program(writer: str) -> str:
    body = "\n".join(line.removeprefix("    ") for line in WRITERS[writer].splitlines()).strip()
    return _PROGRAM.format(body=body)


def _fails_whole(argv: list[str], folder: Path, old: dict[str, bytes], kept: Callable[[dict[str, bytes]], bool]) -> int:
    """Runs a writer on disks that take more and more changes, until it ends well. Returns how many it needs."""
    for changes in range(60):
        for path in folder.iterdir():
            path.unlink()
        for name, content in old.items():
            (folder / name).write_bytes(content)
        ended = full_disk.run(argv, folder, changes)
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        if ended.returncode == 0:
            assert "error" not in ended.stderr
            return changes
        assert ended.returncode in (1, 2)
        assert "Traceback" not in ended.stderr
        line = ended.stderr.splitlines()[-1]
        assert line.startswith("sol-rt: error:"), ended.stderr
        assert str(folder) in line
        assert os.strerror(28) in line or "no room" in line
        assert kept(found), (changes, found)
    raise AssertionError("the writer never ends well")


@pytest.mark.parametrize(
    "writer", [pytest.param(name, marks=[] if name in _QUICK else pytest.mark.slow) for name in WRITERS]
)
def test_a_full_disk_is_one_line_with_the_path_and_leaves_the_old_file(writer: str, tmp_path: Path) -> None:
    pytest.importorskip(_NEEDED.get(writer, "sol_rt"))
    folder = tmp_path / "folder"
    folder.mkdir()
    header = {
        "format": "sol_rt.trace", "format_version": 1, "bundle": "tiny", "config_sha256": "", "prompt_tokens": [1],
        "prompt": "a", "schedule": "dense", "budget": 1.0, "cost_model": "bytes", "generation": {},
    }  # fmt: skip
    (tmp_path / "trace.jsonl").write_text(json.dumps(header) + "\n")
    argv = [sys.executable, "-c", _program(writer), str(folder / "file")]
    if writer == "evaluation state":  # it is appended to: a key may be missing, but the header is whole
        whole = b'{"format": "sol_rt.evaluation_state", "format_version": 1}\n'
        changes = _fails_whole(argv, folder, {"file": whole}, lambda found: found == {"file": whole})
        changes += _fails_whole(argv, folder, {}, lambda found: found in ({}, {"file": whole}))
    else:
        changes = _fails_whole(argv, folder, {"file": b"old"}, lambda found: found == {"file": b"old"})
    assert changes >= 3, "the disk was never full"


@pytest.mark.slow
def test_a_full_disk_while_a_bundle_gets_a_policy_leaves_the_old_bundle(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    folder, policy = tmp_path / "bundle", tmp_path / "policy.safetensors"
    write_bundle(folder, policy=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(before[CONFIG_NAME])
    program = f"""
import sys
from pathlib import Path
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import SolError
from sol_rt.export.policy_file import TrainedPolicy, give_policy, write_policy
from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters
config = Bundle.open(sys.argv[1]).config
shape = PolicyShape(config.model.hidden_size, 1, len(config.actions), 16)
parameters = random_policy_parameters(1, shape)
actions = tuple(entry.action for entry in config.actions)
write_policy(Path({str(policy)!r}), TrainedPolicy(shape, ("budget",), actions, "", parameters))
try:
    give_policy(Path(sys.argv[1]), Path({str(policy)!r}))
except SolError as error:
    sys.exit(f"sol-rt: error: {{error}}")
"""
    argv = [sys.executable, "-c", program, str(folder)]
    assert config["policy"] is not None
    changes = _fails_whole(argv, folder, before, lambda found: found == before)
    assert changes >= 6


@posix
def test_two_that_give_a_bundle_a_policy_leave_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    from sol_rt.export import bundle_folder, policy_file
    from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters

    folder = write_bundle(tmp_path / "bundle", policy=True)
    config = Bundle.open(folder).config
    shape, actions = (
        PolicyShape(config.model.hidden_size, 1, len(config.actions), 16),
        [a.action for a in config.actions],
    )
    policies = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for seed, path in enumerate(policies):
        parameters = random_policy_parameters(seed, shape)
        policy_file.write_policy(path, policy_file.TrainedPolicy(shape, ("budget",), tuple(actions), "", parameters))
    write, others = bundle_folder.write_text, []

    def write_late(path: Path, text: str) -> None:
        """Lets the other one begin between the graph and the config, and gives it time to end if it does not wait."""
        if not others:
            others.append(executor.submit(policy_file.give_policy, folder, policies[1]))
            wait(others, timeout=2)
        write(path, text)

    monkeypatch.setattr(bundle_folder, "write_text", write_late)
    with ThreadPoolExecutor() as executor:
        policy_file.give_policy(folder, policies[0])
        others[0].result()
    policy = Bundle.open(folder).config.policy
    assert policy is not None
    assert [path.name for path in folder.glob("policy*.onnx")] == [policy.file]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [0, 1, 6, 15, 30])
def test_a_full_disk_in_an_export_leaves_the_old_bundle(changes: int, llama_checkpoint: Path, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "disk" / "bundle")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    argv = [sys.executable, "-m", "sol_rt", "export", "-m", str(llama_checkpoint), "-o", str(folder), "--force"]
    settings = ["--calibration", "none", "--no-parity", "--bits", "4", "--ctx-size", "64"]
    ended = full_disk.run([*argv, *settings], folder.parent, changes)
    assert ended.returncode == 1
    assert f"disk: no room left in {folder.parent}; make room" in ended.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(folder.parent) == {"bundle"}


@posix
def test_a_limit_on_the_size_of_files_is_one_line_too(tmp_path: Path) -> None:
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
{_program("saved chat")}
"""
    path = tmp_path / "table.json"
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"{path}: File too large; choose another file" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert names(tmp_path) == set()


def test_sigterm_removes_the_temporary_file(tmp_path: Path) -> None:
    program = """
import sys
from sol_rt.cli import _ended_cleanly
with _ended_cleanly():
""" + "\n".join("    " + line for line in WAITING.format(function="replacing").strip().splitlines())
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "file")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert names(tmp_path) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_a_folder_that_another_process_is_about_to_remove_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That process took it for abandoned between its making and its lock."""
    tried, held = [], atomic_write._held

    @contextmanager
    def taken_at_first(path: Path) -> Iterator[None]:
        tried.append(path)
        if len(tried) == 1:
            raise BlockingIOError
        with held(path):
            yield

    monkeypatch.setattr(atomic_write, "_held", taken_at_first)
    with temporary_folder(tmp_path / "bundle") as folder:
        assert tried == [tried[0], folder]
        assert folder != tried[0]
        assert folder.is_dir()
