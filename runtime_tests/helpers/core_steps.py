"""The native core's engine, driven by the program engine_steps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from helpers.core_build import SANITIZER_OPTIONS, core_build, ort_library, skip_without_room
from sol_rt.bundle.actions import Action


class Core:
    """The program engine_steps, as a conversation of commands and answers."""

    def __init__(
        self, results: Path, *, native: bool = True, build: Path | None = None, before: tuple[str, ...] = (),
        host: str = "", **environment: str,
    ) -> None:  # fmt: skip
        program = (build or core_build("engine_steps")) / "engine_steps"
        self.results, self._read = results, 0
        command = [*before, str(program), host + str(ort_library()), str(int(native)), "2", str(results)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | SANITIZER_OPTIONS | environment,
        )  # fmt: skip
        self.version = self._answer()

    def __enter__(self) -> Core:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _, errors = self.process.communicate(timeout=300)
        if kind is None:
            assert self.process.returncode == 0, errors[-4000:]

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            errors = self.process.communicate()[1]
            skip_without_room(errors)
            pytest.fail(errors[-4000:])
        return line.rstrip("\n")

    def say(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def do(self, command: str) -> int:
        word, _, rest = self.say(command).partition(" ")
        assert word == "ok", rest
        return int(rest)

    def fails(self, command: str, code: int, *parts: str) -> None:
        word, number, message = self.say(command).split(" ", 2)
        assert (word, int(number)) == ("error", code), message
        for part in parts:
            assert part in message

    def floats(self) -> np.ndarray:
        """Numbers that the last commands appended to the results, float32 [n]."""
        values = np.fromfile(self.results, np.float32, offset=self._read)
        self._read += values.nbytes
        return values

    def forward(self, action: Action, tokens: list[int]) -> np.ndarray:
        self.do(f"forward {action.tag} {' '.join(map(str, tokens))}")
        return self.floats()
