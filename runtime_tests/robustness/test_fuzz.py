"""The corpus again, a short fuzz of every reader, and that the oracle sees what a reader may not do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the tiny bundle's graphs are made with onnx, of the extra export")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the system and /proc")

from fuzz.supervisor import Run, run  # noqa: E402
from fuzz.targets import CORPUS, TARGETS, Target  # noqa: E402

SEED = 19
PLANTED = """
import os, signal, time, warnings
from fuzz.targets import Reader, Target
from sol_rt.errors import SolError

class Panic(BaseException):
    pass

def reader(folder):
    def read(data):
        if b"int" in data:
            int(data)
        if b"panic" in data:
            raise Panic("range end out of range")
        if b"lines" in data:
            raise SolError("x" * 1200)
        if b"echo" in data:
            raise SolError(data.decode()[:250])
        if b"signal" in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"hang" in data:
            while True:
                pass
        if b"memory" in data:
            bytearray(3 << 30)
        if b"spoken" in data:
            print("taken")
        if b"native" in data:
            os.write(2, b"thread panicked")
            raise SolError("file: got this, expected that; do the other")
        if b"warning" in data:
            warnings.warn("overflow", RuntimeWarning)
        if b"refused" in data:
            raise SolError("file: got this, expected that; do the other")
    return Reader(read, [SEEDS])

SEEDS = b"fine"
TARGETS = {"planted": Target("planted", "planted:reader", "bytes")}
"""


def replayed(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> Run:
    """Runs the planted reader on one input."""
    (tmp_path / "planted.py").write_text(PLANTED.replace('SEEDS = b"fine"', f"SEEDS = {data!r}"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return run(target, "replay", SEED, module="planted")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"int", "ValueError planted.py"),
        (b"panic", "Panic planted.py"),
        (b"echo " + b"A" * 300, "echo SolError"),
        (b"signal", "dies SIGSEGV"),
        (b"hang", "hangs"),
        (b"memory", "memory"),
        (b"warning", "RuntimeWarning planted.py"),
        (b"spoken", "prints taken"),
        (b"native", "prints thread panicked"),
        (b"refused", ""),
        (b"fine", ""),
    ],
)
def test_the_oracle_sees_what_a_reader_may_not_do(
    data: bytes, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = replayed(Target("planted", "planted:reader", "bytes"), tmp_path, monkeypatch, data)
    assert result.tried == 1
    assert result.refused == (data == b"refused")
    assert [finding.verdict.where[: len(where)] for finding in result.findings] == ([where] if where else [])
    assert all(finding.data == data for finding in result.findings)


def test_every_folder_of_the_corpus_is_read() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= {*TARGETS, "operators"}  # test_sanitizers.py replays that one
    assert not [path for path in CORPUS.rglob("*") if path.is_file() and path.stat().st_size > 60_000]


def _needs(target: Target) -> None:
    if target.make.startswith("fuzz.source_targets"):
        pytest.importorskip("torch", reason="exporting comes with the extra export")


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_a_short_fuzz_find_nothing(name: str) -> None:
    """Tries inputs that once broke a reader, then inputs of a fixed seed and number. `make fuzz` tries others."""
    target = TARGETS[name]
    _needs(target)
    count = len(target.corpus()) + target.inputs
    result = run(target, "mutate", SEED, count=count)
    assert [f"{finding} input {finding.data[:200]!r}" for finding in result.findings] == []
    assert result.tried == count
    assert result.refused > 0
    assert result.taken > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generation_config", "trace", "saved_chat"])
def test_hypothesis_finds_nothing(name: str) -> None:
    result = run(TARGETS[name], "hypothesis", SEED, count=100)
    assert [f"{finding} input {finding.data[:200]!r}" for finding in result.findings] == []
    assert result.tried >= 100
