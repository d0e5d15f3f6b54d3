"""Puts the headers that the native operators need into a folder: Highway's, and ONNX Runtime's C API.

`python scripts/fetch_headers.py [FOLDER]` is for systems without packages of them, such as the images in which wheels
are built. FOLDER is build/headers by default, where CMake finds them. The releases are pinned, and every file is
compared with its SHA-256. `--from /usr/include` copies what a package has installed there instead. Needs only Python.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

HIGHWAY = "https://github.com/google/highway/archive/refs/tags/1.2.0.tar.gz"
HIGHWAY_SHA256 = "7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343"
# The oldest ONNX Runtime that the operators run on: they ask it for this version of the C API.
ONNXRUNTIME = (
    "https://raw.githubusercontent.com/microsoft/onnxruntime/v1.21.0"
    "/include/onnxruntime/core/session/onnxruntime_c_api.h"
)
ONNXRUNTIME_SHA256 = "7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882"
C_API = "onnxruntime_c_api.h"
DEFAULT = Path(__file__).resolve().parents[1] / "build" / "headers"


def download(url: str, sha256: str) -> bytes:
    """The file at `url`. Raises ValueError if it is another than the pinned one, OSError if it cannot be fetched."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except OSError as error:
        raise OSError(f"{url}: {error}; or install packages with the headers and pass --from /usr/include") from None
    if (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{url}: SHA-256 {got}, expected {sha256}")
    return content


def from_releases(folder: Path) -> None:
    """Downloads the pinned releases and writes their headers into `folder`."""
    with tarfile.open(fileobj=io.BytesIO(download(HIGHWAY, HIGHWAY_SHA256))) as archive:
        for member in archive:
            name = Path(*Path(member.name).parts[1:])
            if member.isfile() and name.parts[:1] == ("hwy",) and name.suffix == ".h":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    (folder / C_API).write_bytes(download(ONNXRUNTIME, ONNXRUNTIME_SHA256))


def from_system(folder: Path, include: Path) -> None:
    """Copies the headers of installed packages. A cross compiler must not see the other headers that lie there.

    Raises FileNotFoundError if they are not in `include`.
    """
    places = (include / C_API, include / "onnxruntime" / C_API, include / "onnxruntime" / "core" / "session" / C_API)
    header = next((path for path in places if path.is_file()), None)
    if header is None or not (include / "hwy" / "highway.h").is_file():
        raise FileNotFoundError(f"{include}: no hwy/highway.h or no {C_API}; leave out --from to download them")
    shutil.copytree(include / "hwy", folder / "hwy")
    for part in header.parent.glob("onnxruntime_*c_api.h"):  # from 1.22 on the header includes a second one
        shutil.copy(part, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT, help="where to write (default: build/headers)")
    parser.add_argument("--from", dest="include", type=Path, help="copy from this folder of installed headers")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        target = Path(fresh) / "headers"
        target.mkdir()
        try:
            from_releases(target) if options.include is None else from_system(target, options.include)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        shutil.rmtree(folder, ignore_errors=True)
        target.rename(folder)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
