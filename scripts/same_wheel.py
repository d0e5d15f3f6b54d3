"""Builds the wheel of the last commit twice and compares the bytes: `python scripts/same_wheel.py`, `make same-wheel`.

The two builds lie in folders of different names and depths, run in that order, and differ in umask, time zone, language
and user name, and in the order in which files were written. Options of the build are taken from the environment, as in
`make wheel`; CUDA operators are left out unless SOL_CUDA=ON asks for them. Where the environment has CMake use ccache,
the first build may take objects from it, and the second one compiles everything. Exit code 1 if a byte differs; the
files of the wheels that differ are then named.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MOST_LINES = 20
_FIRST = {"TZ": "UTC", "LC_ALL": "C", "USER": "one"}
_SECOND = {"CCACHE_DISABLE": "1", "TZ": "Asia/Kolkata", "LC_ALL": "C.UTF-8", "USER": "another", "LOGNAME": "another"}


def unpack(commit: bytes, folder: Path, umask: int, *, backwards: bool) -> None:
    """Puts a commit's files into a folder, with the rights that a umask leaves."""
    previous = os.umask(umask)
    try:
        with tarfile.open(fileobj=BytesIO(commit)) as archive:
            members = archive.getmembers()
            for member in reversed(members) if backwards else members:
                if member.isfile():
                    path = folder / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    content = archive.extractfile(member)
                    assert content is not None
                    path.write_bytes(content.read())
                    path.chmod((0o777 if member.mode & 0o100 else 0o666) & ~umask)
    finally:
        os.umask(previous)


def build(source: Path, umask: int, settings: dict[str, str]) -> Path:
    """Builds the wheel of a source folder beside it."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    run = subprocess.run(
        [*command, "-q", "-w", str(source.parent / "wheel"), str(source)], env={**os.environ, **settings}, umask=umask,
        check=False,
    )  # fmt: skip
    if run.returncode:
        sys.exit(run.returncode)
    return next((source.parent / "wheel").glob("*.whl"))


def differences(one: Path, other: Path) -> list[str]:
    """Differences between two wheels: names of files, or their places, times and rights in the archive."""
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        found = [f"{name}: in one of them" for name in sorted({*first.namelist()} ^ {*second.namelist()})]
        for name in sorted({*first.namelist()} & {*second.namelist()}):
            a, b = first.getinfo(name), second.getinfo(name)
            if a.CRC != b.CRC or first.read(name) != second.read(name):
                found.append(f"{name}: its content")
            elif (a.date_time, a.external_attr) != (b.date_time, b.external_attr):
                found.append(
                    f"{name}: time {a.date_time} and {b.date_time}, rights {a.external_attr:x} and {b.external_attr:x}"
                )
    return found or ["the archive: order or compression"]


def main() -> int:
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "archive", "HEAD"], capture_output=True, check=True).stdout
    epoch = subprocess.run([*git, "log", "-1", "--format=%ct"], capture_output=True, check=True, text=True).stdout
    settings = {"SOL_NATIVE": "ON", "SOL_CORE": "ON", "SOL_CUDA": os.environ.get("SOL_CUDA", "OFF")}
    settings["SOURCE_DATE_EPOCH"] = epoch.strip()
    with tempfile.TemporaryDirectory() as folder:
        wheels = []
        for name, umask, others in (("a", 0o022, _FIRST), ("another folder/of/a longer name", 0o077, _SECOND)):
            source = Path(folder) / name / "source"
            source.mkdir(parents=True)
            unpack(commit, source, umask, backwards=umask != 0o022)
            cached = {"CCACHE_BASEDIR": str(source), "CCACHE_NOHASHDIR": "1"}
            wheels.append(build(source, umask, {**settings, **cached, **others}))
            digest = hashlib.sha256(wheels[-1].read_bytes()).hexdigest()
            print(f"{digest}  {wheels[-1].stat().st_size} bytes  {wheels[-1].name}", flush=True)
        if wheels[0].read_bytes() == wheels[1].read_bytes():
            print("the same bytes")
            return 0
        found = differences(*wheels)
        print("\n".join(found[:_MOST_LINES]), f"{len(found)} differ", sep="\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
