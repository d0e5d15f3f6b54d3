"""Fuzzes the CPU operators under the address and undefined-behaviour sanitizers, without ONNX Runtime.

    python runtime_tests/fuzz/operators.py --seconds 60

Byte strings say which operator runs, its attributes, the shapes of its tensors and what they hold, and how all that is
damaged: operators_case.h. The build and what earlier runs found are kept in build/sanitized. What breaks an operator
goes to runtime_tests/corpus/operators, which the tests replay. Exits with 1 where something broke, with 2 where it
can't run here.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.sanitized_build import ADDRESS, BASELINE, CORPUS, Build, MissingError, best_target, build


def fuzz(built: Build, seconds: float, seed: int, target: str | None) -> bool:
    """Runs the fuzzer once, from what earlier runs in this folder found. Prints its counts, or what broke and where its
    input is now.
    """
    found = built.folder / "found"
    known = [*CORPUS.iterdir(), *(found.iterdir() if found.is_dir() else [])]
    command = ("fuzz", seconds, seed, built.folder, *sorted(known))
    done = built.run("operators", *command, target=target, timeout=seconds + 600)
    if done.returncode == 0:
        print(f"operators, {target or 'best target'}, seed {seed}: {done.stdout.strip()}", flush=True)
        return True
    written = (built.folder / "current").read_bytes()
    broke = written[8 : 8 + int.from_bytes(written[:8], "little")]
    place = CORPUS / f"broke-{hashlib.sha256(broke).hexdigest()[:12]}"
    place.write_bytes(broke)
    print(f"{done.stderr[-6000:]}\noperators, seed {seed}: broke with code {done.returncode}; input: {place}")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long to fuzz, after the build")
    parser.add_argument("--seed", type=int, default=None, help="the first seed; default: another one each time")
    parser.add_argument(
        "--baseline", action="store_true", help="run the kernels of the lowest SIMD target, not the best"
    )
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    try:
        built = build(ADDRESS, best_target())
        return 0 if fuzz(built, options.seconds, seed, BASELINE if options.baseline else None) else 1
    except MissingError as error:
        print(f"operators: not fuzzed: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
