"""Fuzzes the readers, one after another, and prints what was found. Every finding's input is kept."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import time
from pathlib import Path

from fuzz.supervisor import Run, run
from fuzz.targets import TARGETS

_ENGINES = ("mutate", "hypothesis", "atheris")
_REPLAY = "replay"
_HYPOTHESIS_SHARE = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz the readers of every file.")
    parser.add_argument("--seconds", type=float, default=600, help="of all targets together")
    parser.add_argument("--target", action="append", choices=TARGETS, help="all by default")
    parser.add_argument(
        "--engine", action="append", choices=(*_ENGINES, _REPLAY), help="all that are installed by default"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="folder for inputs that were wrong")
    given = parser.parse_args()
    targets = [TARGETS[name] for name in given.target or TARGETS]
    engines = given.engine or [name for name in _ENGINES if name == "mutate" or importlib.util.find_spec(name)]
    shares = {name: _HYPOTHESIS_SHARE if name == "hypothesis" else 1.0 for name in engines}
    whole = sum(target.share for target in targets) * sum(shares.values())
    print(f"seed {given.seed}; engines {', '.join(engines)}", flush=True)
    runs: list[Run] = []
    failed = 0
    for target in targets:
        for engine in engines:
            if engine == "atheris" and not target.atheris:
                continue
            seconds = given.seconds * target.share * shares[engine] / whole
            try:
                runs.append(run(target, engine, given.seed, seconds=seconds))
            except RuntimeError as error:
                failed += 1
                print(f"error: {error}", file=sys.stderr, flush=True)
                continue
            print(runs[-1], flush=True)
            for finding in runs[-1].findings:
                digest = hashlib.sha256(finding.data).hexdigest()[:8]
                path = given.findings / target.name / digest
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(finding.data)
                print(f"  {path}: {finding}", flush=True)
    print(f"{sum(each.tried for each in runs):,} inputs, {sum(each.wrong for each in runs)} wrong")
    return 1 if failed or any(each.wrong for each in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
