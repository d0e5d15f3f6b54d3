"""Starts the process of an engine and asks it to run, by protocol.py. The process is stopped between two requests."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

WITHOUT_FLASH = "llama.cpp -fa 0"
"""llama.cpp with the option that turns its flash attention off. Which is faster depends on processor and context."""
SCRIPTS = {
    "sol_rt": ("sol_rt_worker.py",),
    "llama.cpp": ("llama_cpp_worker.py",),
    WITHOUT_FLASH: ("llama_cpp_worker.py", "--no-flash-attention"),
    "genai": ("genai_worker.py",),
    "optimum": ("optimum_worker.py",),
}
"""Engine -> script and options of its worker."""


def engines_of(peer: str) -> tuple[str, ...]:
    """The engines that are measured for a peer: llama.cpp both with and without flash attention."""
    return (peer, WITHOUT_FLASH) if peer == "llama.cpp" else (peer,)


class WorkerError(Exception):
    """A worker's process ended; its message is on stderr."""


class WorkerProcess:
    """Starts a command that speaks the protocol. Between requests its process is stopped, so that no thread spins.

    Attributes:
        name: name of the engine in messages.
        version, settings: what the engine reports about itself.

    Raises WorkerError if the process ends instead of answering.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        hello = self._answer()
        self.version, self.settings = str(hello["version"]), str(hello["settings"])

    @classmethod
    def start(
        cls,
        engine: str,
        python: Path | str,
        model: Path,
        threads: int,
        name: str | None = None,
        options: Sequence[str] = (),
    ) -> WorkerProcess:
        """Starts the worker of an engine under the Python of its environment.

        Args:
            engine: name in SCRIPTS.
            python: Python of the engine's environment.
            model: what the worker loads.
            threads: threads that it computes with.
            name: defaults to the engine's name.
            options: further options of the worker.
        """
        script, *always = SCRIPTS[engine]
        command = [python, Path(__file__).with_name(script), model, "--threads", threads, *always, *options]
        return cls(name or engine, [str(part) for part in command])

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request and waits for its answer."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # the process has ended; reading the answer reports it
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name}: its process ended with {self._process.wait()}; its own message is above")
        self._process.send_signal(signal.SIGSTOP)
        return dict(json.loads(line))

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # ends a stopped process too; a worker has nothing to save
        with contextlib.suppress(BrokenPipeError), self._process:  # a request may still be unread
            pass
