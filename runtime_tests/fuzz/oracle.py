"""Verdict on a reader: it takes an input, or raises a SolError of one short line. Anything else is a finding.

A reader may print nothing: neither Python nor the libraries below it.

It may print nothing: neither Python nor the libraries below it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sol_rt.errors import QualityWarning, SolError

SECONDS = 10.0
"""Processor time that an input may take."""
MEMORY_BYTES = 1 << 30
"""Memory that an input may take, beyond what the process has before it."""
MOST_ECHOED = 200
"""Characters of an input that an error may repeat."""
MOST_SAID = 1000
"""Characters of an error, with the path of its file."""

TAKEN, REFUSED, WRONG = "taken", "refused", "wrong"


@dataclass(frozen=True)
class Verdict:
    """Verdict on a reader and an input.

    Attributes:
        kind: TAKEN, REFUSED or WRONG.
        reason: what was wrong, in one line; of a refusal, the error's text.
        where: key that separates findings: type and place of the exception.
    """

    kind: str
    reason: str = ""
    where: str = ""


def judge(read: Callable[[bytes], None], data: bytes) -> Verdict:
    """Gives an input to a reader.

    The system ends this process if the reader takes more than SECONDS of processor time, or is ended by a signal for
    any other reason: whoever started it has to look.
    """
    printed = [_Printed(1), _Printed(2)]
    with warnings.catch_warnings(record=True) as warned, _limited():
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", QualityWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            read(data)
        except SolError as error:
            verdict = _refusal(error, data)
        except KeyboardInterrupt:
            raise
        except MemoryError as error:
            resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))  # what follows needs some
            verdict = Verdict(WRONG, f"more than {MEMORY_BYTES >> 20} MB", f"memory {_place(error)}")
        except BaseException as error:
            what = type(error).__name__
            verdict = Verdict(WRONG, f"{what}: {' '.join(str(error).split())[:300]}", f"{what} {_place(error)}")
        else:
            verdict = Verdict(TAKEN)
    if warned and verdict.kind != WRONG:
        first = warned[0]
        where = f"{first.category.__name__} {Path(first.filename).name}:{first.lineno}"
        return Verdict(WRONG, f"a warning: {str(first.message)[:200]}", where)
    text = "".join(stream.since() for stream in printed)
    if text.strip() and verdict.kind != WRONG:
        return Verdict(WRONG, f"it prints: {text[:300]!r}", f"prints {' '.join(text.split()[:3])[:60]}")
    return verdict


class _Printed:
    """Text that arrives at a descriptor that leads to a file, whoever writes it; empty if it leads elsewhere."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._is_file = descriptor, stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._flush()
        self._start = os.fstat(descriptor).st_size

    def since(self) -> str:
        """The text since this object was made."""
        self._flush()
        end = os.fstat(self._descriptor).st_size
        if not self._is_file or end <= self._start:
            return ""
        return os.pread(self._descriptor, end - self._start, self._start).decode("utf-8", "replace")

    def _flush(self) -> None:
        (sys.stdout if self._descriptor == 1 else sys.stderr).flush()


def _refusal(error: SolError, data: bytes) -> Verdict:
    said = str(error)
    where = f"{type(error).__name__} {_place(error)}"
    if any(unicodedata.category(character) in {"Cc", "Zl", "Zp", "Cs"} for character in said):
        return Verdict(WRONG, f"not one line of plain characters: {said[:300]!r}", f"line {where}")
    if len(said) > MOST_SAID or _echoes(said, data):
        return Verdict(WRONG, f"{len(said)} characters, or too much of the input: {said[:300]!r}", f"echo {where}")
    return Verdict(REFUSED, said, where)


def _echoes(said: str, data: bytes) -> bool:
    """True if more than MOST_ECHOED characters in a row come from the input."""
    if len(said) <= MOST_ECHOED:
        return False
    text = " ".join(data.decode("utf-8", "replace").split())
    return any(said[at : at + MOST_ECHOED + 1] in text for at in range(len(said) - MOST_ECHOED))


def _place(error: BaseException) -> str:
    """File and line of the innermost frame of the package, or of the innermost one at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/sol_rt/" in frame.filename or "/export/" in frame.filename]
    if not frames:
        return ""
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Bounds processor time by a signal that ends the process, and memory by the system's refusal."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
