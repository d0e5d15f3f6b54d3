"""Starts workers, notices how they end, and collects what they found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.oracle import MEMORY_BYTES, SECONDS, WRONG, Verdict
from fuzz.targets import Target
from fuzz.worker import FINDINGS, INPUT, State

_ROOT = Path(__file__).resolve().parents[1]
_SILENCE = 600.0
"""Seconds of real time for one input, after which a worker is waiting for something that does not come."""


@dataclass(frozen=True)
class Finding:
    """An input that a reader did something wrong with.

    Attributes:
        target, name: which input it is.
        verdict: what the reader did.
        data: the input.
    """

    target: str
    name: str
    verdict: Verdict
    data: bytes

    def __str__(self) -> str:
        return f"{self.target}, {self.name}: {self.verdict.reason} [{self.verdict.where}]"


@dataclass
class Run:
    """Result of the inputs of one target.

    Attributes:
        target, engine: what was run.
        tried, refused, wrong: inputs.
        findings: at most a few of each kind.
        seconds: of real time.
        restarts: workers that died.
    """

    target: str
    engine: str
    tried: int = 0
    refused: int = 0
    wrong: int = 0
    seconds: float = 0.0
    restarts: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def taken(self) -> int:
        """Inputs that the reader took."""
        return self.tried - self.refused - self.wrong

    def __str__(self) -> str:
        return (
            f"{self.target} ({self.engine}): {self.tried} inputs, {self.taken} taken, {self.refused} refused, "
            f"{self.wrong} wrong, {self.seconds:.0f} s"
        )


def run(
    target: Target, engine: str, seed: int, *, count: int = 1 << 60, seconds: float = 1e9, module: str = "fuzz.targets"
) -> Run:
    """Fuzzes one target, until `count` inputs were tried or the time is over.

    Args:
        target: the target.
        engine: a key of `worker.ENGINES`.
        seed: of all inputs.
        count: inputs.
        seconds: of real time.
        module: where a worker finds the target, in a table TARGETS.
    """
    result, started = Run(target.name, engine), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        while True:
            left = seconds - (time.monotonic() - started)
            process = _start(target, engine, seed, count, max(left, 1.0), module, folder)
            ended = _wait(process, folder)
            state = State(folder)
            if process.returncode == 0:
                break
            if not state.busy:
                said = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"fuzzing {target.name}: its worker fails: {said[-1500:]}")
            result.restarts += 1
            data = (folder / INPUT).read_bytes()
            result.findings.append(Finding(target.name, f"seed {seed}, input {state.number}", ended, data))
            state.busy = False
            state.wrong, state.tried, state.number = state.wrong + 1, state.tried + 1, state.number + 1
            state.save()
            if time.monotonic() - started > seconds:
                break
        result.tried, result.refused, result.wrong = state.tried, state.refused, state.wrong
        result.findings += _few(target.name, folder / FINDINGS)
    result.seconds = time.monotonic() - started
    return result


def _start(
    target: Target, engine: str, seed: int, count: int, seconds: float, module: str, folder: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fuzz.worker", module, target.name, str(folder), "--engine", engine]
    command += ["--seed", str(seed), "--count", str(count), "--seconds", str(seconds)]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SOL_RT_HOME": str(folder / "home")}
    with (folder / "stdout").open("w+b") as output, (folder / "stderr").open("w+b") as errors:  # the worker reads them
        return subprocess.Popen(command, env=environment, stdout=output, stderr=errors, cwd=folder)


def _wait(process: subprocess.Popen[bytes], folder: Path) -> Verdict:
    """Waits for a worker's end, and says what it means if the worker did not end by itself."""
    seen, since = (-1, -1), time.monotonic()
    while True:
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            state = State(folder)
            if (state.number, state.tried) != seen:
                seen, since = (state.number, state.tried), time.monotonic()
            elif time.monotonic() - since > _SILENCE:
                process.kill()
                process.wait()
                return Verdict(WRONG, f"it waits for more than {_SILENCE:.0f} s", "waits")
            continue
        code = process.returncode
        if code == -signal.SIGPROF:
            return Verdict(WRONG, f"more than {SECONDS:.0f} s of processor time", "hangs")
        if code == -signal.SIGKILL:
            return Verdict(WRONG, f"killed, perhaps for more than {MEMORY_BYTES >> 20} MB", "killed")
        errors = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Verdict(WRONG, f"{ended}: {' '.join(errors.split())[-300:]}", f"dies {ended}")


def _few(target: str, path: Path, most: int = 3) -> list[Finding]:
    """The smallest findings of each kind."""
    if not path.exists():
        return []
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    entries.sort(key=lambda entry: len(entry["input"]))
    seen: Counter[str] = Counter()
    found = []
    for entry in entries:
        seen[entry["where"]] += 1
        if seen[entry["where"]] <= most and entry["name"]:
            verdict = Verdict(WRONG, entry["reason"], entry["where"])
            found.append(Finding(target, entry["name"], verdict, bytes.fromhex(entry["input"])))
    return found
