"""Damages a bundle's weights file at random places, and checks that each time the bundle is refused, in one line.

    python runtime_tests/robustness/damaged_weights.py --count 53
    python runtime_tests/robustness/damaged_weights.py path/to/bundle --count 53

Without a path, the bundle is a tiny one of random weights. Another one is copied first, and stays as it is. The kinds
take turns: a bit that flips, a page of zeros, two pages that change places, an end that is cut off, and one that is too
long. Before and after all of them, the undamaged copy has to generate a token.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.cli import main as sol_rt_main

PAGE = 4096
_Damage = Callable[[BinaryIO, int, random.Random], None]


def _flip(file: BinaryIO, size: int, draw: random.Random) -> None:
    at = draw.randrange(size)
    file.seek(at)
    byte = file.read(1)[0]
    file.seek(at)
    file.write(bytes([byte ^ 1 << draw.randrange(8)]))


def _page(file: BinaryIO, number: int) -> bytes:
    file.seek(number * PAGE)
    return file.read(PAGE)


def _put(file: BinaryIO, number: int, page: bytes) -> None:
    file.seek(number * PAGE)
    file.write(page)


def _zero(file: BinaryIO, size: int, draw: random.Random) -> None:
    while not any(page := _page(file, number := draw.randrange(size // PAGE))):  # a gap between tensors
        pass
    _put(file, number, bytes(len(page)))


def _swap(file: BinaryIO, size: int, draw: random.Random) -> None:
    one, other = draw.sample(range(size // PAGE), 2)
    first, second = _page(file, one), _page(file, other)
    if first == second:  # two gaps
        return _swap(file, size, draw)
    _put(file, one, second)
    return _put(file, other, first)


def _cut(file: BinaryIO, size: int, draw: random.Random) -> None:
    file.truncate(size - draw.randint(1, min(size, 10 * PAGE)))


def _lengthen(file: BinaryIO, size: int, draw: random.Random) -> None:
    file.seek(size)
    file.write(draw.randbytes(draw.randint(1, 10 * PAGE)))


KINDS: dict[str, _Damage] = {
    "a flipped bit": _flip,
    "a page of zeros": _zero,
    "two swapped pages": _swap,
    "a cut end": _cut,
    "a long end": _lengthen,
}


@contextlib.contextmanager
def damaged(weights: Path, kind: str, draw: random.Random) -> Iterator[None]:
    """Replaces the file by a damaged copy, and puts it back at the end."""
    kept = weights.with_name(f"{weights.name}.kept")
    weights.rename(kept)
    shutil.copyfile(kept, weights)
    with weights.open("r+b") as file:
        KINDS[kind](file, kept.stat().st_size, draw)
    try:
        yield
    finally:
        kept.replace(weights)


def generates(bundle: Path) -> str:
    """Empty if the bundle generates a token, else what the command said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = sol_rt_main(["generate", "-m", str(bundle), "-p", "w1", "-n", "1", "--schedule", "dense"])
    return "" if code == 0 else out.getvalue() + err.getvalue()


def try_all(bundle: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Damages the bundle's weights `count` times. Returns how many of each kind were refused, and what was not."""
    weights, draw = bundle / read_config(bundle / CONFIG_NAME).weights_file, random.Random(seed)
    refused: Counter[str] = Counter()
    failures = [f"undamaged, it is refused: {said}"] if (said := generates(bundle)) else []
    for trial in range(count):
        kind = list(KINDS)[trial % len(KINDS)]
        with damaged(weights, kind, draw):
            said = generates(bundle)
        lines = [line for line in said.splitlines() if not line.startswith("checking ")]  # progress, of a large file
        if len(lines) == 1 and re.fullmatch(f"sol-rt: error: {re.escape(str(weights))}: .{{20,300}}", lines[0]):
            refused[kind] += 1
        else:
            failures.append(f"trial {trial}, {kind}: {said or 'taken'}")
    if said := generates(bundle):
        failures.append(f"undamaged again, it is refused: {said}")
    return refused, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="default: a tiny one of random weights")
    parser.add_argument("--count", type=int, default=53)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SOL_RT_HOME"] = str(Path(folder) / "home")
        bundle = Path(folder) / "bundle"
        write_bundle(bundle) if given.bundle is None else shutil.copytree(given.bundle, bundle)
        refused, failures = try_all(bundle, given.count, given.seed)
    print(f"{sum(refused.values())} of {given.count} refused in one line:", *(f"{n} {k}," for k, n in refused.items()))
    print("\n".join(failures), end="\n" if failures else "")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
