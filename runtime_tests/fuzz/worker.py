"""Gives inputs to one reader, in a process that may die of them.

The input, and how far the worker is, lie in files, so that whoever started the worker can tell which input ended it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fuzz.mutate import mutated
from fuzz.oracle import REFUSED, WRONG, Verdict, judge
from fuzz.targets import Reader, Target

INPUT, STATE, FINDINGS = "input", "state", "findings.jsonl"
_LAYOUT = "<5q"  # number of the input, whether it is being tried, then how many were tried, refused, and wrong


class State:
    """Numbers that outlive the process: they lie in a mapped file.

    Attributes:
        number: of the input.
        busy: whether it is being tried.
        tried, refused, wrong: counts.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / STATE
        if not path.exists():
            path.write_bytes(bytes(struct.calcsize(_LAYOUT)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.number, self.busy, self.tried, self.refused, self.wrong = struct.unpack(_LAYOUT, self._map[:])

    def save(self) -> None:
        self._map[:] = struct.pack(_LAYOUT, self.number, self.busy, self.tried, self.refused, self.wrong)


class Worker:
    """Tries inputs and writes down what was wrong.

    Args:
        target: what is fuzzed.
        folder: of this worker; a folder `files` in it is the reader's.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder, self.state = target, folder, State(folder)
        files = folder / "files"
        files.mkdir(exist_ok=True)
        self.reader: Reader = target.reader(Path(tempfile.mkdtemp(dir=files)))
        self.corpus = target.corpus()
        self.seeds = [*self.reader.seeds, *self.corpus.values()]

    def input(self, seed: int, number: int) -> bytes:
        """The input of this number: the seeds as they are, then what is made of them."""
        if number < len(self.seeds):
            return self.seeds[number]
        rng = random.Random(f"{self.target.name} {seed} {number}")
        return mutated(self.target.kind, rng, self.seeds, self.target.words)

    def replayed(self) -> list[tuple[str, bytes]]:
        """The corpus, and the reader's own seeds before it."""
        seeds = [(f"seed {number}", seed) for number, seed in enumerate(self.reader.seeds)]
        return [*seeds, *self.corpus.items()]

    def attempt(self, data: bytes, name: str) -> Verdict:
        """Gives one input to the reader. The counts and findings are then up to date."""
        (self.folder / INPUT).write_bytes(data)
        self.state.busy = True
        self.state.save()
        verdict = judge(self.reader.read, data)
        self.state.tried += 1
        self.state.refused += verdict.kind == REFUSED
        if verdict.kind == WRONG:
            self.state.wrong += 1
            self.found(data, name, verdict)
        self.state.busy = False
        self.state.save()
        return verdict

    def found(self, data: bytes, name: str, verdict: Verdict) -> None:
        with (self.folder / FINDINGS).open("a", encoding="utf-8") as file:
            entry = {"name": name, "reason": verdict.reason, "where": verdict.where, "input": data.hex()}
            file.write(json.dumps(entry) + "\n")


def _mutate(worker: Worker, seed: int, count: int, until: float) -> None:
    while worker.state.number < count and time.monotonic() < until:
        number = worker.state.number
        worker.attempt(worker.input(seed, number), f"seed {seed}, input {number}")
        worker.state.number += 1


def _hypothesis(worker: Worker, seed: int, count: int, until: float) -> None:
    """Draws inputs by hypothesis, which makes those that it finds as small as it can."""
    seconds = until - time.monotonic()
    _round(worker, seed, 1, until + 60)  # the first one makes hypothesis's tables of characters, which takes seconds
    until = time.monotonic() + seconds
    while worker.state.tried < count and time.monotonic() < until:
        at = worker.state.number
        smallest = _round(worker, seed * 1_000_003 + at, min(50, count - worker.state.tried), until)
        if smallest is not None:
            worker.found(smallest[0], f"hypothesis, seed {seed}, round {at}", smallest[1])
        worker.state.number += 1


def _round(worker: Worker, seed: int, count: int, until: float) -> tuple[bytes, Verdict] | None:
    """Some inputs, until one is wrong. Returns the smallest one like it."""
    import hypothesis
    from hypothesis import strategies

    from fuzz.strategies import inputs

    made = inputs(worker.target.kind, worker.reader.seeds)
    last: list[tuple[bytes, Verdict]] = []

    def one(drawn: strategies.DataObject) -> None:
        data = drawn.draw(made)
        if time.monotonic() > until:
            return
        verdict = worker.attempt(data, "")
        if verdict.kind == WRONG:
            last.append((data, verdict))
            raise AssertionError(verdict.where)

    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        report_multiple_bugs=False,
    )
    try:
        hypothesis.seed(seed)(settings(hypothesis.given(strategies.data())(one)))()
    except (AssertionError, hypothesis.errors.Flaky):  # flaky: the second time took another end, or the time is over
        return last[-1] if last else None
    return None


def _atheris(worker: Worker, seed: int, count: int, until: float) -> None:
    """Lets atheris look for inputs that reach new lines of the package."""
    import atheris

    folder = worker.folder / "coverage"
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(worker.seeds):
        (folder / f"seed-{number}").write_bytes(data)

    def one(data: bytes) -> None:
        worker.attempt(data, f"atheris, seed {seed}")
        worker.state.number += 1

    def change(data: bytes, most: int, drawn: int) -> bytes:
        rng = random.Random(drawn)
        if rng.random() < 0.2:
            return bytes(atheris.Mutate(data, most))
        try:
            return mutated(worker.target.kind, rng, [data], worker.target.words)[:most]
        except Exception:  # an input far from its seed; atheris would end the process
            return data[:most]

    seconds = max(1, int(until - time.monotonic()))
    options = [
        f"-max_total_time={seconds}",
        f"-runs={min(count, (1 << 31) - 1)}",
        f"-seed={seed + 1}",
        "-max_len=1048576",
        "-timeout=0",
    ]
    options += ["-rss_limit_mb=0", "-len_control=0", "-verbosity=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *options, str(folder)], one, custom_mutator=change)
    atheris.Fuzz()


def _replay(worker: Worker, seed: int, count: int, until: float) -> None:
    for number, (name, data) in enumerate(worker.replayed()):
        if number >= worker.state.number:
            worker.state.number = number
            worker.attempt(data, f"corpus {worker.target.name}/{name}")
    worker.state.number = len(worker.replayed())


ENGINES: dict[str, Callable[[Worker, int, int, float], None]] = {
    "mutate": _mutate,
    "hypothesis": _hypothesis,
    "atheris": _atheris,
    "replay": _replay,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Give inputs to one reader. The supervisor starts this.")
    parser.add_argument("module", help="module with the table TARGETS")
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    os.environ["SOL_RT_HOME"] = str(given.folder / "home")
    target: Target = importlib.import_module(given.module).TARGETS[given.target]
    if given.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["sol_rt", "gguf"]):
            worker = Worker(target, given.folder)
    else:
        worker = Worker(target, given.folder)
    if given.engine == "hypothesis":
        import fuzz.strategies  # noqa: F401 - its import must not take the inputs' time
    ENGINES[given.engine](worker, given.seed, given.count, time.monotonic() + given.seconds)


if __name__ == "__main__":
    main()
