"""Sessions of the native core through its C interface: golden traces, and the calls of core/tests/session.

Under the sanitizers the core runs function bodies: ONNX Runtime's threads, in which operators run, are not checked.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from helpers.core_build import (
    ADDRESS,
    SANITIZER_OPTIONS,
    THREAD,
    core_build,
    ort_library,
    skip_without_room,
    valgrind,
)
from helpers.places import GOLDEN

IN_OPEN = 0x20  # of inotify
CALLS = ("session_calls", "step_calls", "mask_calls", "batch_calls", "host_engine_calls")
BUILDS = [("", True), ("", False), (ADDRESS, False), (THREAD, False)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BUILDS, ids=["operators", "bodies", "address", "thread"])
def built(request: pytest.FixtureRequest) -> tuple[Path, list[str]]:
    """The folder of the programs, and their arguments after the others."""
    sanitize, operators = request.param
    folder = core_build("golden", *CALLS, sanitize=sanitize, operators=not sanitize)
    return folder, [] if operators else ["--bodies"]


def run(program: Path, *arguments: object, before: tuple[str, ...] = ()) -> str:
    command = [*before, program, ort_library(), *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=os.environ | SANITIZER_OPTIONS
    )
    skip_without_room(done.stderr)
    assert done.returncode == 0, (done.returncode, done.stdout[-1000:], done.stderr[-6000:])
    return done.stdout


def test_golden_traces(built: tuple[Path, list[str]]) -> None:
    folder, more = built
    said = run(folder / "golden", GOLDEN / "tiny", GOLDEN / "cases.tsv", *more)
    assert " golden cases, 0 differ" in said


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
def test_each_small_file_is_opened_once(built: tuple[Path, list[str]], tmp_path: Path) -> None:
    """So the bytes whose hash was compared are the bytes that are used."""
    folder, more = built
    bundle = Path(shutil.copytree(GOLDEN / "tiny", tmp_path / "tiny"))
    small = {path.name for path in bundle.iterdir()} - {"weights.bin"}
    libc = ctypes.CDLL(None)
    watched = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watched, os.fsencode(bundle), IN_OPEN) > 0
    run(folder / "golden", bundle, GOLDEN / "cases.tsv", *more)
    events, names = os.read(watched, 1 << 20), []
    os.close(watched)
    while events:
        _, _, _, length = struct.unpack_from("iIII", events)
        names.append(events[16 : 16 + length].rstrip(b"\0").decode())
        events = events[16 + length :]
    opened = Counter(names)
    assert {"model.q4.onnx", "policy.onnx", "tokenizer.json"} < small
    assert {name: opened[name] for name in small} == dict.fromkeys(small, 1)


def test_a_wrong_golden_trace_is_noticed(built: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, more = built
    lines = (GOLDEN / "cases.tsv").read_text(encoding="utf-8").splitlines()
    fields = next(line for line in lines if not line.startswith("#")).split("\t")
    for field, change in ((3, "1 "), (4, "k001-s100-q8 "), (5, "0.5 "), (6, '"x')):
        changed = list(fields)
        changed[field] = change + (changed[field].partition(" ")[2] if field < 6 else changed[field][1:])
        (tmp_path / "wrong.tsv").write_text("\t".join(changed) + "\n", encoding="utf-8")
        with pytest.raises(AssertionError, match="1 golden cases, 1 differ"):
            run(folder / "golden", GOLDEN / "tiny", tmp_path / "wrong.tsv", *more)


@pytest.mark.parametrize("program", CALLS)
def test_calls(built: tuple[Path, list[str]], program: str, tmp_path: Path) -> None:
    """The first comment of each program says which calls."""
    folder, more = built
    assert run(folder / program, GOLDEN / "tiny", tmp_path, *more) == "0 checks failed\n"


def test_calls_under_valgrind(tmp_path: Path) -> None:
    """Function bodies draft nothing, so no sanitizer sees drafts."""
    program = core_build("session_calls") / "session_calls"
    assert run(program, GOLDEN / "tiny", tmp_path, before=valgrind()) == "0 checks failed\n"
